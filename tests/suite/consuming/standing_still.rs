//! Assigned, more and more waits, and nothing is finished: whatever the cause, it is told, and so is its end.

use std::time::Duration;

use outboxd::consumer::ConsumerStatus;
use outboxd::domain::health::Vitals;

use super::{Consumer, PATIENCE, Receiver, evidence, posting, unique};
use crate::support::log::Log;
use crate::support::{Kafka, Postgres, eventually};

#[tokio::test]
async fn a_handler_that_hangs_while_more_comes_is_told_in_log_and_health_until_it_goes_on() {
    // Of this thread: the consumer runs in it.
    let log = Log::of_this_thread();
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let (topic, group) = (kafka.topic(1).await, unique("orders"));
    let receiver = Receiver::default();
    let url = receiver.clone().listen().await;
    let settings = posting(&[&topic], &url);
    let patience = Duration::from_secs(1);
    let consumer = Consumer::start_watched(&database.agent_url(), kafka, &group, &settings, patience);
    let vitals = ConsumerStatus(vec![consumer.status.clone()]);
    let waiting_for = || vitals.waiting_for().unwrap_or_default();
    kafka.produce(&topic, None, Some(b"first"), &[]).await;
    eventually("one is handled", PATIENCE, async || evidence(&database).await == 1).await;
    receiver.stuck.lock().unwrap().insert("more".into());
    let told = "messages wait, more than before, and none was finished for 1s";
    let mut more = 0;
    eventually("it is told", PATIENCE, async || {
        kafka.produce(&topic, None, Some(b"more"), &[]).await;
        more += 1;
        waiting_for().contains(told)
    })
    .await;
    eventually("all that waits is seen", PATIENCE, async || consumer.number("lag") == more).await;
    let health = vitals.health();
    let progress = &health["groups"][&group]["last_progress_at"];
    assert!(progress.is_string(), "since when, everybody sees: {health}");
    let log = log.text();
    assert_eq!(log.matches(told).count(), 1, "{log}");
    assert!(log.lines().any(|line| line.contains("WARN") && line.contains(&group) && line.contains(told)));
    receiver.stuck.lock().unwrap().clear();
    eventually("all are handled", PATIENCE, async || {
        evidence(&database).await == i64::try_from(more).unwrap() + 1
    })
    .await;
    eventually("it stands still no more", PATIENCE, async || waiting_for().is_empty()).await;
    consumer.drained().await;
}
