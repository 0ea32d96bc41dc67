//! The largest record: `send` refuses exactly what librdkafka would refuse the relay.

use std::time::Duration;

use crate::support::{Kafka, Outboxd, Postgres, eventually};

const SOON: Duration = Duration::from_secs(60);
const LIMIT: usize = 20_000;

/// Everything that takes room in a record.
const FACTS: [&str; 11] =
    ["send", "--key", "k", "--type", "T", "--header", "a=b", "--header", "empty=", "--idempotency-key", "i"];

#[tokio::test]
async fn the_largest_that_send_takes_is_published_and_one_byte_more_is_refused_by_both() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let database = postgres.database().await;
    let topic = kafka.topic(1).await;
    let outboxd =
        Outboxd::new(&database, kafka).set(&format!("kafka.producer.\"message.max.bytes\" = {LIMIT}"));
    let send = async |length: usize| {
        let arguments = [&FACTS[..], &["--topic", &topic]].concat();
        outboxd.run_with_input(&arguments, &vec![b'x'; length]).await
    };
    let refused = send(LIMIT).await;
    assert_eq!(refused.code, 2, "{refused:?}");
    let (_, size) = refused.stderr.split_once("takes ").unwrap();
    let size: usize = size.split(' ').next().unwrap().parse().unwrap();
    let largest = LIMIT - (size - LIMIT);
    let too_large = send(largest + 1).await;
    assert_eq!(too_large.code, 2, "{too_large:?}");
    assert!(too_large.stderr.contains("message.max.bytes"), "{}", too_large.stderr);
    assert_eq!(database.count("select count(*) from outboxd.messages").await, 0);
    let fits = send(largest).await;
    assert_eq!(fits.code, 0, "{fits:?}");
    // The same with one byte more, by the door that knows no limit.
    let larger = "insert into outboxd.messages (topic, key, payload, headers, type, idempotency_key)
        select topic, key, payload || 'x'::bytea, headers, type, idempotency_key from outboxd.messages";
    assert_eq!(database.execute(larger, &[]).await, 1);

    let producer = outboxd.producer();
    let settled = "select count(*) from outboxd.message_states where state in ('published', 'parked')";
    eventually("both are settled", SOON, async || database.count(settled).await == 2).await;
    let states = database.query("select state, reason from outboxd.message_states order by seq", &[]).await;
    let state = |row: usize| states[row].get::<_, String>("state");
    assert_eq!((state(0), state(1)), ("published".to_owned(), "parked".to_owned()), "{}", producer.log());
    let records = kafka.read_all(&topic).await;
    assert_eq!(records.iter().map(|record| record.payload_text().len()).collect::<Vec<_>>(), [largest]);
    let listed = outboxd.run(&["messages", "list", "--state", "parked", "--json"]).await;
    let listed: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
    assert!(listed[0]["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{listed}");
    producer.terminate();
    assert_eq!(producer.wait_exit().await, Some(0));
}

/// What fits no record is not read into memory to find that out.
#[tokio::test]
async fn a_message_that_is_larger_than_memory_may_be_is_parked_unread() {
    const BYTES: u64 = 300_000_000;
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = kafka.topic(1).await;
    let insert =
        "insert into outboxd.messages (topic, payload) values ($1, convert_to(repeat('x', $2), 'UTF8'))";
    database.execute(insert, &[&topic, &i32::try_from(BYTES).unwrap()]).await;
    database.execute(insert, &[&topic, &1]).await;
    let producer = Outboxd::new(&database, kafka).producer();
    database.reach(&topic, "parked", 1).await;
    database.reach(&topic, "published", 1).await;
    let peak = producer.peak_memory();
    assert!(peak < BYTES / 2, "{peak} bytes at its peak");
    let reason = database.query_one("select reason from outboxd.set_aside", &[]).await.get::<_, String>(0);
    assert!(reason.contains("300000000 bytes") && reason.contains("message.max.bytes"), "{reason}");
    producer.terminate();
    assert_eq!(producer.wait_exit().await, Some(0));
}
