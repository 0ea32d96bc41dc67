//! P1, P2 and P7 under faults: crashes at each stage, lost answers, outages, frozen owners.

use std::time::Duration;

use uuid::Uuid;

use crate::support::ledger::Ledger;
use crate::support::{Database, Kafka, Outboxd, Postgres, Proxy, eventually, eventually_some};

const PATIENCE: Duration = Duration::from_secs(60);

/// Short, so that a dead owner's lanes are soon free.
const LEASE: &str = "producer.lease = \"1s\"";

/// A producer dies at that place while applications write; the next one goes on.
async fn survives_a_crash_at(point: &str) {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let ledger = Ledger::new(&database, &kafka.topic(4).await);
    let doomed = Outboxd::new(&database, kafka).set(LEASE).failpoint(point).producer();
    doomed.ready().await;
    let writing = tokio::spawn({
        let ledger = ledger.clone();
        async move { ledger.write(4, 80).await }
    });
    assert_eq!(doomed.wait_exit().await, None, "{point} was not reached");
    let _next = Outboxd::new(&database, kafka).set(LEASE).producer();
    writing.await.unwrap();
    ledger.published(&database).await;
    ledger.check(&database, kafka).await;
}

macro_rules! crashes {
    ($($name:ident at $point:literal;)*) => {
        $(#[tokio::test]
        async fn $name() {
            survives_a_crash_at($point).await;
        })*
    };
}

crashes! {
    a_crash_before_a_window_is_durable at "relay-before-window:4";
    a_crash_after_a_window_is_durable at "relay-after-window:4";
    a_crash_after_reading at "relay-after-read:3";
    a_crash_after_sending at "relay-after-send:3";
    a_crash_after_the_acknowledgement at "relay-after-ack:3";
}

#[tokio::test]
async fn a_crash_in_the_middle_of_a_window_repeats_its_tail_alone() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let ledger = Ledger::new(&database, &kafka.topic(4).await);
    database
        .execute(
            "insert into outboxd.messages (topic, key, payload)
             select $1, 'key-' || i % 50, convert_to(repeat('x', 300), 'UTF8') from generate_series(1, 60000) i",
            &[&ledger.topic],
        )
        .await;
    // Long enough that a busy machine loses none, and repeats nothing for it.
    let outboxd = || Outboxd::new(&database, kafka).set("producer.lease = \"8s\"");
    let doomed = outboxd().failpoint("relay-after-progress:2").producer();
    assert_eq!(doomed.wait_exit().await, None);
    let published = database.count("select published_seq from outboxd.lanes where priority = 0").await;
    assert!(published > 0, "the cursor moves within a window");
    let _next = outboxd().producer();
    ledger.published(&database).await;
    let found = ledger.check(&database, kafka).await;
    let tail = usize::try_from(60_000 - published).unwrap();
    assert!(found.repeats <= tail, "{} repeats, with {tail} behind the cursor", found.repeats);
}

/// The lane's owner, once it is another than `former`.
async fn owner(database: &Database, former: Option<Uuid>) -> Uuid {
    eventually_some("the lane has an owner", PATIENCE, async || {
        let row = database.query_one("select owner from outboxd.lanes where priority = 0", &[]).await;
        row.get::<_, Option<Uuid>>(0).filter(|owner| Some(*owner) != former)
    })
    .await
}

/// How the fenced writes of that owner begin on the wire: priority and owner, each behind its length.
fn fence(owner: Uuid) -> Vec<u8> {
    [&[0, 0, 0, 2, 0, 0, 0, 0, 0, 16], owner.as_bytes().as_slice()].concat()
}

#[tokio::test]
async fn a_cursor_write_whose_answer_is_lost_skips_no_window() {
    let postgres = Postgres::shared().await;
    let (database, kafka) = (postgres.database().await, Kafka::shared().await);
    let proxy = Proxy::to(postgres.port()).await;
    let ledger = Ledger::new(&database, &kafka.topic(4).await);
    // In clear, for the proxy to read along.
    let url = format!("{}?sslmode=disable", proxy.reroute(&database.agent_url()));
    let producer = Outboxd::new(&database, kafka).postgres_url(&url).producer();
    producer.ready().await;
    let writing = tokio::spawn({
        let ledger = ledger.clone();
        async move { ledger.write(6, 100).await }
    });
    // Closings and openings of windows, one after the other, each committed and never heard of.
    let mut former = None;
    for _ in 0..5 {
        let owner = owner(&database, former).await;
        let lost = proxy.lose_answer_to(fence(owner));
        former = Some(owner);
        // Should the writers be through, this calls for a write of the cursor.
        let insert = "insert into outboxd.messages (topic, key, payload) values ($1, 'last', 'x')";
        database.execute(insert, &[&ledger.topic]).await;
        tokio::time::timeout(PATIENCE, lost).await.expect("a cursor is written");
    }
    writing.await.unwrap();
    ledger.published(&database).await;
    ledger.check(&database, kafka).await;
    assert!(producer.is_running());
}

#[tokio::test]
async fn a_frozen_owner_that_wakes_up_does_no_harm() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let ledger = Ledger::new(&database, &kafka.topic(4).await);
    let outboxd = Outboxd::new(&database, kafka).set(LEASE);
    let owner_of = async || {
        let row = database.query_one("select agent from outboxd.lanes where priority = 0", &[]).await;
        row.get::<_, Option<String>>(0)
    };
    let (first, second) = (outboxd.producer(), outboxd.producer());
    let writing = tokio::spawn({
        let ledger = ledger.clone();
        async move { ledger.write(4, 150).await }
    });
    for frozen in [&first, &second, &first] {
        let other = if std::ptr::eq(frozen, &raw const first) { &second } else { &first };
        // Let the one that is to freeze own the lane: the other stands by while it is frozen itself.
        other.pause();
        let name = frozen.wait_for_line("joined").await;
        eventually("it owns the lane", PATIENCE, async || {
            owner_of().await.is_some_and(|owner| name.contains(&format!("\"{owner}\"")))
        })
        .await;
        other.resume();
        frozen.pause();
        eventually("the other takes over", PATIENCE, async || {
            owner_of().await.is_some_and(|owner| !name.contains(&format!("\"{owner}\"")))
        })
        .await;
        frozen.resume();
    }
    writing.await.unwrap();
    ledger.published(&database).await;
    ledger.check(&database, kafka).await;
    assert!(first.is_running() && second.is_running());
}

#[tokio::test]
async fn a_broker_that_is_away_costs_no_message() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::private().await);
    let ledger = Ledger::new(&database, &kafka.topic(4).await);
    let producer = Outboxd::new(&database, &kafka).producer();
    producer.ready().await;
    let writing = tokio::spawn({
        let ledger = ledger.clone();
        async move { ledger.write(4, 150).await }
    });
    eventually("some are published", PATIENCE, async || {
        database.count("select published_seq + floor from outboxd.lanes where priority = 0").await > 0
    })
    .await;
    kafka.kill();
    writing.await.unwrap();
    database
        .execute("insert into outboxd.messages (topic, key, payload) values ($1, 'k', 'x')", &[&ledger.topic])
        .await;
    producer.wait_for_line("has not acknowledged").await;
    kafka.start().await;
    ledger.published(&database).await;
    ledger.check(&database, &kafka).await;
    assert!(producer.is_running());
}

#[tokio::test]
async fn a_database_that_restarts_costs_no_message() {
    let (postgres, kafka) = (Postgres::private().await, Kafka::shared().await);
    let database = postgres.database().await;
    let ledger = Ledger::new(&database, &kafka.topic(4).await);
    let producer = Outboxd::new(&database, kafka).set(LEASE).producer();
    producer.ready().await;
    for _ in 0..2 {
        ledger.write(4, 30).await;
        // A crash, in which the sequence may go back.
        postgres.kill();
        postgres.start().await;
        ledger.write(4, 30).await;
        ledger.published(&database).await;
    }
    ledger.check(&database, kafka).await;
    assert!(producer.is_running());
}
