//! A partition whose messages are full up is paused, and a pause is no longer than its assignment.

use super::{Consumer, PATIENCE, Receiver, evidence, posting, unique};
use crate::support::log::Log;
use crate::support::{Kafka, Postgres, eventually};

/// In each of two partitions: more than an agent takes in at a time.
const MANY: usize = 1_200;

#[tokio::test]
async fn a_partition_that_was_full_and_went_to_another_member_is_read_on_when_it_comes_back() {
    let log = Log::of_this_thread();
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let (topic, group) = (kafka.topic(2).await, unique("orders"));
    let (slow, quick) = (Receiver::default(), Receiver::default());
    slow.stuck.lock().unwrap().insert("m".into());
    let settings = |url: &str| format!("{}\nbatch = 100", posting(&[&topic], url));
    let start = |url: &str| Consumer::start(&database.agent_url(), kafka, &group, &settings(url));
    for partition in 0..2 {
        kafka.produce_many(&topic, partition, "m", MANY).await;
    }
    let stays = start(&slow.clone().listen().await);
    let paused = "select coalesce(sum(paused_partitions), 0)::bigint from outboxd.members";
    eventually("both are full", PATIENCE, async || database.count(paused).await == 2).await;
    let comes = start(&quick.clone().listen().await);
    eventually("one is to be given back", PATIENCE, async || log.text().contains("revoked")).await;
    // What runs comes to its end, and nothing of that partition is started any more: it stays full.
    slow.stuck.lock().unwrap().clear();
    comes.assigned(1).await;
    comes.drained().await;
    stays.assigned(2).await;
    for partition in 0..2 {
        kafka.produce_many(&topic, partition, "more", 10).await;
    }
    let all = i64::try_from(2 * (MANY + 10)).unwrap();
    eventually("all are handled", PATIENCE, async || evidence(&database).await == all).await;
    stays.drained().await;
}
