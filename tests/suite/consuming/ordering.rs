//! Which messages wait for which, and how many run beside each other.

use std::collections::HashSet;
use std::time::Duration;

use super::{Consumer, PATIENCE, Receiver, evidence, posting, unique};
use crate::support::{Kafka, Postgres, eventually};

/// Handles ten messages of each of five keys under these settings, and answers none before so many are under way; payloads
/// are `key:number`.
async fn handled(settings: &str, at_once: usize) -> Receiver {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let topic = kafka.topic(2).await;
    let receiver = Receiver { takes: Duration::from_millis(20), ..Receiver::default() };
    let url = receiver.clone().listen().await;
    for n in 0..10 {
        for key in 0..5 {
            let (key, payload) = (format!("k{key}"), format!("k{key}:{n}"));
            kafka.produce(&topic, Some(&key), Some(payload.as_bytes()), &[]).await;
            receiver.stuck.lock().unwrap().insert(payload);
        }
    }
    let settings = format!("{settings}\n{}", posting(&[&topic], &url));
    let consumer = Consumer::start(&database.agent_url(), kafka, &unique("orders"), &settings);
    eventually("as many run as may", PATIENCE, async || receiver.running.lock().unwrap().len() == at_once)
        .await;
    receiver.stuck.lock().unwrap().clear();
    eventually("all are handled", PATIENCE, async || evidence(&database).await == 50).await;
    consumer.drained().await;
    receiver
}

fn key(payload: &str) -> &str {
    payload.split_once(':').unwrap().0
}

/// The most that were under way at one moment, and the most of one key.
fn overlaps(receiver: &Receiver) -> (usize, usize) {
    let together = receiver.together.lock().unwrap();
    let of_one_key = together.iter().map(|running| {
        let keys: HashSet<&str> = running.iter().map(|payload| key(payload)).collect();
        1 + running.len() - keys.len()
    });
    (together.iter().map(Vec::len).max().unwrap(), of_one_key.max().unwrap())
}

fn assert_order_per_key(receiver: &Receiver) {
    for k in 0..5 {
        let of_key = format!("k{k}");
        let answered = receiver.answered().into_iter().filter(|payload| key(payload) == of_key);
        let expected: Vec<String> = (0..10).map(|n| format!("{of_key}:{n}")).collect();
        assert_eq!(answered.collect::<Vec<_>>(), expected);
    }
}

#[tokio::test]
async fn messages_of_a_key_go_one_by_one_in_order_and_other_keys_beside_them() {
    let receiver = handled("concurrency = 3", 3).await;
    assert_eq!(overlaps(&receiver), (3, 1));
    assert_order_per_key(&receiver);
}

#[tokio::test]
async fn messages_of_a_partition_go_one_by_one_if_that_is_asked_for() {
    let receiver = handled("ordering = \"partition\"", 2).await;
    assert_eq!(overlaps(&receiver).0, 2, "there are two partitions");
    assert_order_per_key(&receiver);
}

#[tokio::test]
async fn without_an_order_as_many_run_as_may() {
    let receiver = handled("ordering = \"none\"\nconcurrency = 8", 8).await;
    let (all, of_one_key) = overlaps(&receiver);
    assert_eq!(all, 8);
    assert!(of_one_key > 1);
}

#[tokio::test]
async fn a_slow_message_stops_neither_other_keys_nor_other_partitions() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let topic = kafka.topic(2).await;
    let receiver = Receiver::default();
    receiver.stuck.lock().unwrap().insert("slow:0".into());
    let url = receiver.clone().listen().await;
    let group = unique("orders");
    let (partition, offset) = kafka.produce(&topic, Some("slow"), Some(b"slow:0"), &[]).await;
    kafka.produce(&topic, Some("slow"), Some(b"slow:1"), &[]).await;
    for n in 0..60 {
        let key = format!("k{n}");
        kafka.produce(&topic, Some(&key), Some(format!("{key}:0").as_bytes()), &[]).await;
    }
    let settings = format!("concurrency = 2\nbatch = 5\n{}", posting(&[&topic], &url));
    let consumer = Consumer::start(&database.agent_url(), kafka, &group, &settings);
    eventually("all others are handled", PATIENCE, async || evidence(&database).await == 60).await;
    assert_eq!(receiver.tried("slow:1"), 0, "its key waits");
    let position = format!("select next_offset from outboxd.group_positions where partition = {partition}");
    assert_eq!(database.count(&position).await, offset, "nothing unfinished is passed");
    receiver.stuck.lock().unwrap().clear();
    eventually("it is handled too", PATIENCE, async || evidence(&database).await == 62).await;
    eventually("the position follows", PATIENCE, async || database.count(&position).await > offset).await;
    consumer.drained().await;
    assert!(receiver.handled().values().all(|times| *times == 1));
}
