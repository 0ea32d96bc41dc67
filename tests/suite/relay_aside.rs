//! P3: what cannot be published now waits in order and lets the others pass; what never can be is parked, visibly.

use crate::support::ledger::Ledger;
use crate::support::{Kafka, Outboxd, Postgres, Record};

const INSERT: &str = "insert into outboxd.messages (topic, key, payload)
    select $1, 'key-' || i % 7, 'x' from generate_series(1, $2::integer) i";

#[tokio::test]
async fn messages_of_a_missing_topic_wait_in_order_and_go_by_themselves() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let (missing, there) = (format!("later-{:x}", fastrand::u64(..)), kafka.topic(2).await);
    let outboxd = Outboxd::new(&database, kafka).set("producer.lease = \"1s\"");
    let producer = outboxd.producer();
    database.execute(INSERT, &[&missing, &500]).await;
    database.execute(INSERT, &[&there, &500]).await;
    database.reach(&there, "published", 500).await;
    database.reach(&missing, "held", 500).await;
    let reason = "select reason from outboxd.message_states where topic = $1 limit 1";
    let reason: String = database.query_one(reason, &[&missing]).await.get(0);
    assert_eq!(reason, format!("topic `{missing}` does not exist"));
    // The next owner knows that they wait, and lines the new ones up behind them.
    producer.kill();
    let _next = outboxd.producer();
    database.execute(INSERT, &[&missing, &500]).await;
    database.reach(&missing, "held", 1_000).await;
    kafka.create_topic(&missing, 2, &[]).await;
    database.execute(INSERT, &[&missing, &500]).await;
    let ledger = Ledger::new(&database, &missing);
    ledger.published(&database).await;
    assert_eq!(ledger.check(&database, kafka).await.messages, 1_500);
}

#[tokio::test]
async fn messages_of_a_forbidden_topic_wait_until_it_is_allowed() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let (forbidden, there) = (kafka.topic(2).await, kafka.topic(2).await);
    kafka.forbid(&forbidden).await;
    let _producer = Outboxd::new(&database, kafka).guarded(kafka).producer();
    database.execute(INSERT, &[&forbidden, &100]).await;
    database.execute(INSERT, &[&there, &100]).await;
    database.reach(&there, "published", 100).await;
    database.reach(&forbidden, "held", 100).await;
    kafka.allow(&forbidden).await;
    database.execute(INSERT, &[&forbidden, &100]).await;
    let ledger = Ledger::new(&database, &forbidden);
    ledger.published(&database).await;
    assert_eq!(ledger.check(&database, kafka).await.messages, 200);
}

#[tokio::test]
async fn a_record_too_large_for_its_topic_is_parked_alone() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = format!("small-{:x}", fastrand::u64(..));
    kafka.create_topic(&topic, 1, &[("max.message.bytes", "20000")]).await;
    let good = "insert into outboxd.messages (topic, key, payload) select $1, 'key-' || i % 7, 'x' from generate_series(1, 300) i";
    // Not compressible, and within librdkafka's own limit: only the broker refuses it.
    let bad = "insert into outboxd.messages (topic, key, payload)
        select $1, 'key-3', decode(string_agg(md5(random()::text), ''), 'hex') from generate_series(1, 5000)";
    let mut client = database.connect().await;
    let transaction = client.transaction().await.unwrap();
    for _ in 0..2 {
        transaction.execute(good, &[&topic]).await.unwrap();
        transaction.execute(bad, &[&topic]).await.unwrap();
    }
    transaction.execute(good, &[&topic]).await.unwrap();
    transaction.commit().await.unwrap();
    let producer = Outboxd::new(&database, kafka).producer();
    database.reach(&topic, "parked", 2).await;
    database.reach(&topic, "published", 900).await;
    producer.wait_for_line("a message is parked").await;
    // What is left in the table is what the topic must hold.
    database.batch("delete from outboxd.messages where octet_length(payload) > 20000").await;
    assert_eq!(Ledger::new(&database, &topic).check(&database, kafka).await.messages, 900);
}

#[tokio::test]
async fn a_record_over_the_clients_limit_is_parked_alone() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = kafka.topic(2).await;
    database.execute(INSERT, &[&topic, &50]).await;
    let large = "insert into outboxd.messages (topic, key, payload) values ($1, 'key-3', convert_to(repeat('x', 1100000), 'UTF8'))";
    database.execute(large, &[&topic]).await;
    database.execute(INSERT, &[&topic, &50]).await;
    let _producer = Outboxd::new(&database, kafka).producer();
    database.reach(&topic, "parked", 1).await;
    database.reach(&topic, "published", 100).await;
    database.batch("delete from outboxd.messages where octet_length(payload) > 1000000").await;
    let found = Ledger::new(&database, &topic).check(&database, kafka).await;
    assert_eq!((found.messages, found.repeats), (100, 0));
}

#[tokio::test]
async fn a_delayed_message_is_published_when_it_is_due_and_not_before() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = kafka.topic(1).await;
    let producer = Outboxd::new(&database, kafka).producer();
    // On a slow machine it would start when both are due.
    producer.ready().await;
    let insert = "insert into outboxd.messages (topic, payload, deliver_after) values ($1, $2, clock_timestamp() + $3::text::interval)";
    database.execute(insert, &[&topic, &b"tomorrow".as_slice(), &"1 day"]).await;
    database.execute(insert, &[&topic, &b"soon".as_slice(), &"2 seconds"]).await;
    database.execute(INSERT, &[&topic, &1]).await;
    database.reach(&topic, "published", 1).await;
    database.reach(&topic, "scheduled", 2).await;
    database.reach(&topic, "published", 2).await;
    let records = kafka.read_all(&topic).await;
    let payloads: Vec<String> = records.iter().map(Record::payload_text).collect();
    assert_eq!(payloads, ["x", "soon"]);
    let due = "select extract(epoch from deliver_after)::float8 * 1000 from outboxd.messages where payload = 'soon'";
    let due: f64 = database.query_one(due, &[]).await.get(0);
    #[allow(clippy::cast_precision_loss, reason = "milliseconds fit")]
    let published = records[1].timestamp.unwrap() as f64;
    assert!(published >= due - 1.0, "{published} before {due}");
}

#[tokio::test]
async fn a_time_that_never_comes_keeps_nothing_else_back() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = kafka.topic(1).await;
    let outboxd = Outboxd::new(&database, kafka);
    let _producer = outboxd.producer();
    let insert = "insert into outboxd.messages (topic, payload, deliver_after) values ($1, 'x', $2::text::timestamptz)";
    for time in ["infinity", "-infinity", "294276-12-31", "4713-01-01 bc"] {
        database.execute(insert, &[&topic, &time]).await;
    }
    database.execute(INSERT, &[&topic, &1]).await;
    database.reach(&topic, "published", 3).await;
    database.reach(&topic, "scheduled", 2).await;
    let listed = outboxd.run(&["messages", "list"]).await;
    assert_eq!(listed.code, 0, "{listed:?}");
    assert!(outboxd.run(&["messages", "list", "--json"]).await.stdout.contains("9999-12-31"));
}
