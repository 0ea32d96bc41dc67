//! Batches that cannot be decoded: a disk that rots, a producer with a compression of its own.

use outboxd::consumer::ConsumerStatus;
use outboxd::domain::health::Vitals;

use super::{Consumer, PATIENCE, Receiver, posting, unique};
use crate::support::batch::Batch;
use crate::support::log::Log;
use crate::support::{Kafka, Outboxd, Postgres, eventually};

#[tokio::test]
async fn a_batch_that_cannot_be_decoded_is_told_and_stood_before_and_no_other_partition_waits() {
    let log = Log::of_this_thread();
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let (topic, group) = (kafka.topic(2).await, unique("orders"));
    let receiver = Receiver::default();
    let settings = posting(&[&topic], &receiver.clone().listen().await);
    let start = || Consumer::start(&database.agent_url(), kafka, &group, &settings);
    let write = async |partition: i32, payloads: &[&str]| {
        for payload in payloads {
            kafka.produce_to(&topic, partition, payload, &[]).await;
        }
    };
    let answered = || {
        let mut answered = receiver.answered();
        answered.sort();
        answered
    };
    write(0, &["m0", "m1", "m2", "m3"]).await;
    let rotten = Batch::at(kafka, &topic, 0, 1);
    rotten.rots(b"m1");
    let consumer = start();
    let vitals = ConsumerStatus(vec![consumer.status.clone()]);
    let waiting_for = || vitals.waiting_for().unwrap_or_default();
    let told = "what comes at offset 1 cannot be decoded: its checksum does not fit";
    eventually("it is told", PATIENCE, async || waiting_for().contains(told)).await;
    write(1, &["o0", "o1"]).await;
    eventually("others go on", PATIENCE, async || answered() == ["m0", "o0", "o1"]).await;
    let outboxd = Outboxd::new(&database, kafka);
    let paused = "\"paused_partitions\": 1";
    eventually("everybody sees it", PATIENCE, async || {
        outboxd.run(&["groups", "list", "--json"]).await.stdout.contains(paused)
    })
    .await;
    assert_eq!(answered(), ["m0", "o0", "o1"], "nothing behind it");
    let said = log.text();
    let line = said.lines().find(|line| line.contains(told)).unwrap();
    assert!(line.contains("ERROR") && line.contains("outboxd groups reset"), "{line}");
    assert_eq!(said.matches(told).count(), 1, "once: {said}");
    rotten.is_mended();
    eventually("it is read on", PATIENCE, async || answered() == ["m0", "m1", "m2", "m3", "o0", "o1"]).await;
    assert_eq!(waiting_for(), "");
    consumer.drained().await;

    write(0, &["m4", "m5", "m6"]).await;
    Batch::at(kafka, &topic, 0, 5).is_compressed_somehow();
    let consumer = start();
    let vitals = ConsumerStatus(vec![consumer.status.clone()]);
    let told = "what comes at offset 5 cannot be decoded: its compression is not known";
    eventually("it is told", PATIENCE, async || vitals.waiting_for().unwrap_or_default().contains(told))
        .await;
    eventually("what is before it is handled", PATIENCE, async || receiver.tried("m4") == 1).await;
    consumer.drained().await;
    let behind = ["--topic", &topic, "--partition", "0", "--to", "6", "--yes"];
    let moved = outboxd.run(&[&["groups", "reset", &group][..], &behind].concat()).await;
    assert_eq!(moved.code, 0, "{moved:?}");
    let consumer = start();
    let all = ["m0", "m1", "m2", "m3", "m4", "m6", "o0", "o1"];
    eventually("it is passed over as told", PATIENCE, async || answered() == all).await;
    consumer.drained().await;
}
