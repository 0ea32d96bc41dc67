//! What the relay asks every few milliseconds is planned as index scans, whatever the planner believes of the tables.

use outboxd::pg::lanes::SESSION;
use outboxd::pg::sql;
use serde_json::Value;
use tokio_postgres::Client;

use crate::support::{Database, Postgres};

/// What never stands in such a plan: it grows with the outbox, not with what is new.
const FORBIDDEN: &[&str] = &["Seq Scan", "Bitmap Heap Scan", "Gather", "Gather Merge", "Hash Join", "Hash"];

/// One row a lane: reading it whole costs nothing.
const SMALL: &str = "lanes";

const SNAPSHOT: &str = "pg_current_snapshot()::text";

/// Statement, its arguments in order (of which it may take fewer), and the column that leads it into the index. What
/// comes by `txid` was in progress a moment ago: to sort that by `seq` is what it takes.
const PLANNED: &[(&str, [&str; 7], &str)] = &[
    ("POLL", ["array['00000000-0000-0000-0000-000000000001']::uuid[]"; 7], ""),
    ("READ_MAIN", ["0", "100", "'3'", SNAPSHOT, "5000", "0", "0"], "seq"),
    ("LATE_PLACES", ["0", "100", "array['900', '901']", SNAPSHOT, "5000", "0", "0"], "txid"),
];

/// Every node of a plan.
fn nodes(plan: &Value) -> Vec<&Value> {
    let below = plan["Plans"].as_array().into_iter().flatten();
    std::iter::once(plan).chain(below.flat_map(nodes)).collect()
}

async fn plan(client: &Client, text: &str, arguments: &[&str; 7]) -> Value {
    let count = client.prepare(text).await.unwrap().params().len();
    let arguments = arguments[..count].join(", ");
    client.batch_execute(&format!("prepare planned as {text}")).await.unwrap();
    let explain = format!("explain (format json) execute planned ({arguments})");
    let explained = client.query_one(&explain, &[]).await.unwrap().get::<_, Value>(0);
    client.batch_execute("deallocate planned").await.unwrap();
    explained[0]["Plan"].clone()
}

/// What is wrong with a plan.
fn faults(plan: &Value, leads: &str) -> Vec<String> {
    let scans = nodes(plan).into_iter();
    scans
        .filter(|node| {
            let kind = node["Node Type"].as_str().unwrap();
            let relation = node["Relation Name"].as_str().unwrap_or_default();
            let condition = node["Index Cond"].as_str().unwrap_or_default();
            let strays = relation.starts_with("messages") && !leads.is_empty() && !condition.contains(leads);
            let sorts = kind.contains("Sort") && leads != "txid";
            (FORBIDDEN.contains(&kind) && relation != SMALL) || strays || sorts
        })
        .map(|node| format!("{} {} {}", node["Node Type"], node["Relation Name"], node["Index Cond"]))
        .collect()
}

/// What looks for something new, what reads on from a `seq`, and what reads the rows of certain transactions.
const LOOKS: &[&str] = &["POLL"];
const BY_SEQ: &[&str] = &["READ_MAIN"];
const BY_TXID: &[&str] = &["LATE_PLACES"];

async fn all_are_index_scans(database: &Database, names: &[&str], situation: &str) {
    let client = database.connect().await;
    client.batch_execute(SESSION).await.unwrap();
    let statements = sql::all();
    let mut looked_at = 0;
    for mode in ["force_generic_plan", "force_custom_plan"] {
        client.batch_execute(&format!("set plan_cache_mode = {mode}")).await.unwrap();
        for (name, arguments, leads) in PLANNED.iter().filter(|(name, ..)| names.contains(name)) {
            let Some((_, text)) = statements.iter().find(|(known, _)| known == name) else { continue };
            let plan = plan(&client, text, arguments).await;
            let messages = |node: &&Value| {
                node["Relation Name"].as_str().is_some_and(|relation| relation.starts_with("messages"))
            };
            assert!(nodes(&plan).iter().any(messages), "{name}: the plan was not understood: {plan:#}");
            assert_eq!(faults(&plan, leads), Vec::<String>::new(), "{situation}, {mode}, {name}");
            looked_at += 1;
        }
    }
    assert!(looked_at >= 2, "the relay's statements have other names now: {looked_at}");
}

const FILL: &str = "insert into outboxd.messages (topic, key, payload, priority)
    select 't', 'k', 'x', i % 2 from generate_series(1, 100000) i";

async fn however_large_the_outbox_is(names: &[&str]) {
    let database = Postgres::shared().await.database().await;
    all_are_index_scans(&database, names, "empty").await;
    database.batch("analyze outboxd.messages").await;
    all_are_index_scans(&database, names, "empty and analyzed").await;
    database.batch("alter table outboxd.messages_0 set (autovacuum_enabled = false)").await;
    database.batch(FILL).await;
    database.batch(FILL).await;
    all_are_index_scans(&database, names, "large").await;
    database.batch("analyze outboxd.messages").await;
    all_are_index_scans(&database, names, "large and analyzed").await;
}

async fn across_range_partitions(names: &[&str]) {
    let database = Postgres::shared().await.database().await;
    let own = "select string_agg(format('drop table %s', inhrelid::regclass), '; ') from pg_inherits
        where inhparent = 'outboxd.messages'::regclass and inhrelid <> 'outboxd.messages_default'::regclass";
    database.batch(&database.query_one(own, &[]).await.get::<_, String>(0)).await;
    for leaf in 0..6 {
        let (from, to) = (leaf * 20_000, (leaf + 1) * 20_000);
        let name = format!("messages_of_the_test_{leaf}");
        database
            .batch(&format!(
                "create table outboxd.{name} partition of outboxd.messages for values from ({from}) to ({to})"
            ))
            .await;
    }
    all_are_index_scans(&database, names, "empty leaves").await;
    database.batch(FILL).await;
    all_are_index_scans(&database, names, "leaves").await;
    database.batch("analyze outboxd.messages").await;
    all_are_index_scans(&database, names, "leaves analyzed").await;
}

#[tokio::test]
async fn what_is_new_is_read_by_the_primary_key_however_large_the_outbox_is() {
    however_large_the_outbox_is(BY_SEQ).await;
}

#[tokio::test]
async fn what_is_new_is_read_by_the_primary_key_across_range_partitions() {
    across_range_partitions(BY_SEQ).await;
}

#[tokio::test]
async fn a_poll_looks_into_indexes_however_large_the_outbox_is() {
    however_large_the_outbox_is(LOOKS).await;
}

#[tokio::test]
async fn a_poll_looks_into_indexes_across_range_partitions() {
    across_range_partitions(LOOKS).await;
}

#[tokio::test]
async fn what_commits_late_is_read_by_its_xid_however_large_the_outbox_is() {
    however_large_the_outbox_is(BY_TXID).await;
}

#[tokio::test]
async fn what_commits_late_is_read_by_its_xid_across_range_partitions() {
    across_range_partitions(BY_TXID).await;
}

#[tokio::test]
async fn a_plan_that_reads_the_whole_outbox_is_found() {
    let database = Postgres::shared().await.database().await;
    database.batch(FILL).await;
    database.batch("analyze outboxd.messages").await;
    let client = database.connect().await;
    let whole = "select seq from outboxd.messages where priority + 0 = 0 and random() >= 0 order by seq";
    let explained = client.query_one(&format!("explain (format json) {whole}"), &[]).await.unwrap();
    let found = faults(&explained.get::<_, Value>(0)[0]["Plan"], "seq");
    assert!(found.len() >= 2, "a scan and a sort: {found:?}");
}
