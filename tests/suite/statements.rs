//! Rust and SQL agree: every statement fits the schema and the rights of who runs it, and ids are derived alike.

use chrono::{DateTime, Utc};
use outboxd::domain::identity::Tag;
use outboxd::pg::{inspect, messages, operations, parked, rebase, sql};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::support::{Postgres, database};

/// Plans it without running it. A plan checks rights, which preparing alone does not.
async fn plan(client: &Client, name: &str, sql: &str) -> Result<(), String> {
    let described = |error: tokio_postgres::Error| format!("{name}: {error:?}");
    let parameters = client.prepare(sql).await.map_err(described)?.params().len();
    let is_planned = ["select", "insert", "update", "delete", "with"]
        .iter()
        .any(|verb| sql.trim_start().to_lowercase().starts_with(verb));
    if !is_planned {
        return Ok(());
    }
    let nulls = vec!["null"; parameters].join(", ");
    let arguments = if parameters == 0 { String::new() } else { format!("({nulls})") };
    let explain = format!("prepare planned as {sql}; explain execute planned{arguments}; deallocate planned");
    client.batch_execute(&explain).await.map_err(described)
}

async fn plan_all(url: &str, statements: &[(&str, &str)]) {
    let client = database::connect(url).await;
    client.batch_execute("set plan_cache_mode = force_generic_plan").await.unwrap();
    let mut wrong = Vec::new();
    for (name, sql) in statements {
        if let Err(error) = plan(&client, name, sql).await {
            wrong.push(error);
        }
        let _ = client.batch_execute("deallocate all").await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn every_statement_fits_the_schema_and_the_rights_of_a_daemon() {
    let database = Postgres::shared().await.database().await;
    let all = sql::all();
    assert!(all.len() > 30, "{} statements", all.len());
    plan_all(&database.agent_url(), &all).await;
}

#[tokio::test]
async fn who_looks_and_who_sends_may_run_what_those_commands_run() {
    let database = Postgres::shared().await.database().await;
    let looks: Vec<_> = inspect::SQL.iter().filter(|(name, _)| *name != "CONTENT").copied().collect();
    plan_all(&database.reader_url(), &looks).await;
    plan_all(&database.operator_url(), inspect::SQL).await;
    plan_all(&database.operator_url(), parked::SQL).await;
    let kept: Vec<_> = operations::SQL.iter().filter(|(name, _)| *name != "FORGET").copied().collect();
    plan_all(&database.operator_url(), &kept).await;
    plan_all(&database.app_url(), messages::SQL).await;
    plan_all(&database.url, rebase::SQL).await;
}

#[tokio::test]
async fn a_right_that_is_missing_is_found_by_planning() {
    let database = Postgres::shared().await.database().await;
    let app = database::connect(&database.app_url()).await;
    let looked = plan(&app, "LANES", "select * from outboxd.lanes where priority = $1").await;
    assert!(looked.unwrap_err().contains("42501"));
}

/// What Postgres can store, in microseconds since 1970: from 4714 BC to beyond what 48 bits of milliseconds hold.
fn moments() -> impl Strategy<Value = i64> {
    prop_oneof![
        4 => -2_000_000_000_000_000_i64..4_000_000_000_000_000,
        1 => -210_000_000_000_000_000_i64..=8_210_000_000_000_000_000,
        1 => -3_000_i64..3_000,
    ]
}

fn seqs() -> impl Strategy<Value = i64> {
    prop_oneof![3 => 1_i64..10_000_000_000, 1 => 1..=i64::MAX, 1 => (0_u32..63).prop_map(|bit| 1 << bit)]
}

#[tokio::test]
async fn sql_and_rust_derive_the_same_id_of_any_row() {
    const ROWS: usize = 20_000;
    let database = Postgres::shared().await.database().await;
    let mut runner = TestRunner::deterministic();
    let rows = proptest::collection::vec((moments(), seqs()), ROWS).new_tree(&mut runner).unwrap().current();
    let (moments, seqs): (Vec<DateTime<Utc>>, Vec<i64>) = rows
        .into_iter()
        .map(|(micros, seq)| (DateTime::from_timestamp_micros(micros).expect("chrono reaches as far"), seq))
        .unzip();
    let tag = database.query_one("select tag_high, tag_low from outboxd.outbox", &[]).await;
    let tag = Tag::new(tag.get(0), tag.get(1));
    let derive = "select outboxd.message_id(created_at, seq)
        from unnest($1::timestamptz[], $2::bigint[]) with ordinality as row (created_at, seq, place) order by place";
    let derived: Vec<Uuid> =
        database.query(derive, &[&moments, &seqs]).await.iter().map(|row| row.get(0)).collect();
    assert_eq!(derived.len(), ROWS);
    for ((id, moment), seq) in derived.into_iter().zip(moments).zip(seqs) {
        assert_eq!(id, tag.message_id(moment, seq), "{moment} {seq}");
        assert_eq!(tag.seq_of(id), Some(seq), "{moment} {seq}");
    }
}
