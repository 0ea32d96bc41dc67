//! P1 and P2: what is committed is published, in order per key, once unless something crashes; what is not, never.

use std::time::{Duration, Instant};

use crate::support::ledger::Ledger;
use crate::support::{Kafka, Outboxd, Postgres, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn nothing_is_lost_inverted_or_repeated_under_concurrent_writers() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = kafka.topic(4).await;
    let ledger = Ledger::new(&database, &topic);
    let _producer = Outboxd::new(&database, kafka).producer();

    // One transaction has an xid and a row from the beginning, one an xid alone, one a snapshot that holds vacuum back.
    let (mut early, mut idle, mut reader) =
        (database.connect_app().await, database.connect_app().await, database.connect_app().await);
    let early = early.transaction().await.unwrap();
    let insert = "insert into outboxd.messages (topic, key, payload) values ($1, $2, 'x')";
    early.execute(insert, &[&topic, &"early"]).await.unwrap();
    let idle = idle.transaction().await.unwrap();
    idle.execute("select pg_current_xact_id()", &[]).await.unwrap();
    let reader = reader.build_transaction().isolation_level(tokio_postgres::IsolationLevel::RepeatableRead);
    let reader = reader.start().await.unwrap();
    reader.execute("select 1", &[]).await.unwrap();

    ledger.write(8, 60).await;
    early.execute(insert, &[&topic, &"early"]).await.unwrap();
    early.commit().await.unwrap();
    idle.execute(insert, &[&topic, &"late"]).await.unwrap();
    idle.commit().await.unwrap();
    reader.commit().await.unwrap();

    ledger.published(&database).await;
    let found = ledger.check(&database, kafka).await;
    assert!(found.messages > 1_000, "{found:?}");
    assert_eq!(found.repeats, 0);
}

#[tokio::test]
async fn a_long_transaction_holds_nobody_else_up() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = kafka.topic(1).await;
    let _producer = Outboxd::new(&database, kafka).producer();
    let mut client = database.connect_app().await;
    let held = client.transaction().await.unwrap();
    let insert = "insert into outboxd.messages (topic, key, payload) values ($1, $2, 'x')";
    held.execute(insert, &[&topic, &"held"]).await.unwrap();
    for _ in 0..3 {
        database.execute(insert, &[&topic, &"free"]).await;
        eventually("the others are published", PATIENCE, async || {
            let sql = "select count(*) from outboxd.message_states where state <> 'published'";
            database.count(sql).await == 0
        })
        .await;
    }
    held.commit().await.unwrap();
    let ledger = Ledger::new(&database, &topic);
    ledger.published(&database).await;
    assert_eq!(ledger.check(&database, kafka).await.messages, 4);
}

#[tokio::test]
async fn a_clean_end_hands_the_lanes_over_at_once_and_repeats_nothing() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let ledger = Ledger::new(&database, &kafka.topic(2).await);
    // A lease so long that nobody takes over by waiting for its end.
    let outboxd = Outboxd::new(&database, kafka).set("producer.lease = \"10m\"");
    let first = outboxd.producer();
    first.wait_for_line("lane acquired").await;
    let second = outboxd.producer();
    second.ready().await;
    let writing = tokio::spawn({
        let ledger = ledger.clone();
        async move { ledger.write(4, 60).await }
    });
    eventually("some are published", PATIENCE, async || {
        database.count("select published_seq + floor from outboxd.lanes where priority = 0").await > 0
    })
    .await;
    first.terminate();
    assert_eq!(first.wait_exit().await, Some(0));
    let ended = Instant::now();
    second.wait_for_line("lane acquired").await;
    assert!(ended.elapsed() < Duration::from_secs(5), "{:?}", ended.elapsed());
    writing.await.unwrap();
    ledger.published(&database).await;
    assert_eq!(ledger.check(&database, kafka).await.repeats, 0);
}

#[tokio::test]
async fn a_record_carries_what_the_message_said() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = kafka.topic(3).await;
    let _producer = Outboxd::new(&database, kafka).producer();
    let app = database.connect_app().await;
    let own = uuid::Uuid::new_v4();
    let row = app
        .query_one(
            "select outboxd.enqueue($1, '{\"a\": 1}'::jsonb, key => 'k', type => 'Placed', idempotency_key => 'i',
               headers => '{\"traceparent\": \"00-1-2-01\"}', id => $2),
             outboxd.enqueue($1, null::bytea, key => 'k')",
            &[&topic, &own],
        )
        .await
        .unwrap();
    assert_eq!(row.get::<_, uuid::Uuid>(0), own);
    let second: uuid::Uuid = row.get(1);
    let ledger = Ledger::new(&database, &topic);
    ledger.published(&database).await;
    let records = kafka.read_all(&topic).await;
    assert_eq!(records.len(), 2);
    let first = &records[0];
    assert_eq!((first.key_text(), first.payload_text()), ("k".into(), "{\"a\": 1}".into()));
    let header = |name: &str| first.header(name).unwrap_or_else(|| panic!("no header {name}"));
    assert_eq!(header("id"), own.to_string());
    assert_ne!(header("outboxd-id"), own.to_string());
    assert_eq!(header("type"), "Placed");
    assert_eq!(header("idempotency-key"), "i");
    assert_eq!(header("traceparent"), "00-1-2-01");
    assert_eq!(header("content-type"), "application/json");
    let tombstone = &records[1];
    assert_eq!((tombstone.payload.clone(), tombstone.header("outboxd-id")), (None, Some(second.to_string())));
}

#[tokio::test]
async fn a_sequence_that_was_set_back_stops_the_lane_and_names_the_way_out() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = kafka.topic(1).await;
    let producer = Outboxd::new(&database, kafka).producer();
    let insert = "insert into outboxd.messages (topic, payload) select $1, 'x' from generate_series(1, 100)";
    database.execute(insert, &[&topic]).await;
    eventually("the floor follows", PATIENCE, async || {
        database.count("select floor from outboxd.lanes where priority = 0").await >= 100
    })
    .await;
    database.batch("select setval('outboxd.messages_seq', 50)").await;
    producer.wait_for_line("it was set back").await;
    assert!(producer.is_running());
}
