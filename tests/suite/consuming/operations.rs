//! Operations that several messages stand for: done once, whoever is at them, and told where they are not the same.

use std::time::Duration;

use super::{Consumer, PATIENCE, Receiver, evidence, posting, unique};
use crate::support::log::Log;
use crate::support::{Kafka, Postgres, eventually};

/// Of each four, two have the same id, two the same idempotency key, crosswise: whoever waits for one while it holds the
/// other would wait for ever.
#[tokio::test]
async fn two_agents_with_keys_that_cross_never_lock_each_other_out() {
    const FOURS: i64 = 40;
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let topic = kafka.topic(8).await;
    let receiver = Receiver { takes: Duration::from_millis(20), ..Receiver::default() };
    let url = receiver.clone().listen().await;
    let (group, settings) = (unique("orders"), format!("dedup = \"id\"\n{}", posting(&[&topic], &url)));
    let consumers = [
        Consumer::start(&database.agent_url(), kafka, &group, &settings),
        Consumer::start(&database.agent_url(), kafka, &group, &settings),
    ];
    for consumer in &consumers {
        consumer.assigned(1).await;
    }
    for n in 0..FOURS {
        for (id, key) in [("a", "x"), ("b", "y"), ("b", "x"), ("a", "y")] {
            let (payload, id, key) = (format!("{n} {id} {key}"), format!("{n}-{id}"), format!("{n}-{key}"));
            let headers = [("ce_id", &*id), ("idempotency-key", &*key)];
            kafka.produce(&topic, Some(&payload), Some(payload.as_bytes()), &headers).await;
        }
    }
    eventually("all have evidence", PATIENCE, async || evidence(&database).await == FOURS * 4).await;
    for consumer in consumers {
        consumer.drained().await;
    }
    let handled = receiver.handled();
    assert!(handled.values().all(|times| *times == 1));
    for n in 0..FOURS {
        let of_four = |id: &str, key: &str| handled.contains_key(&format!("{n} {id} {key}"));
        let (one_way, other_way) = (of_four("a", "x"), of_four("a", "y"));
        assert_ne!(one_way, other_way, "each id and each key once");
        assert_eq!((of_four("b", "y"), of_four("b", "x")), (one_way, other_way));
    }
}

#[tokio::test]
async fn a_key_that_comes_again_with_another_payload_is_skipped_flagged_and_counted() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let topic = kafka.topic(1).await;
    let receiver = Receiver::default();
    let settings = posting(&[&topic], &receiver.clone().listen().await);
    // Of this thread: the consumer runs in it.
    let log = Log::of_this_thread();
    let group = unique("orders");
    let consumer = Consumer::start(&database.agent_url(), kafka, &group, &settings);
    for payload in ["one", "one", "another", "one"] {
        kafka.produce(&topic, None, Some(payload.as_bytes()), &[("idempotency-key", "order-7")]).await;
    }
    eventually("all have evidence", PATIENCE, async || evidence(&database).await == 4).await;
    eventually("they are counted", PATIENCE, async || consumer.number("duplicates") == 3).await;
    let vitals = outboxd::consumer::ConsumerStatus(vec![consumer.status.clone()]);
    let health = outboxd::domain::health::Vitals::health(&vitals);
    assert_eq!(health["groups"][&group]["duplicates_with_other_payload"], 1, "{health}");
    consumer.drained().await;
    assert_eq!(receiver.handled().values().sum::<usize>(), 1);
    let log = log.text();
    assert_eq!(log.matches("skipped as a duplicate, though its payload is another").count(), 1, "{log}");
}
