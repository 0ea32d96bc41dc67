//! Members that come and go: what their partitions' messages suffer, and what the others notice.

use std::collections::HashSet;

use super::{PATIENCE, Receiver, evidence, unique};
use crate::support::{Kafka, Outboxd, Postgres, eventually};

#[tokio::test]
async fn a_static_member_that_restarts_has_its_partitions_as_before_and_the_others_notice_nothing() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let (topic, group) = (kafka.topic(4).await, unique("orders"));
    let receiver = Receiver::default();
    let handler = format!("kind = \"http\"\nurl = \"{}\"", receiver.clone().listen().await);
    let named = |name: &str| {
        Outboxd::new(&database, kafka)
            .set(&format!("agent.name = \"{name}\""))
            .set(&format!("groups.{group}.static_membership = true"))
            .group(&group, &topic, &handler)
    };
    let (first, other) = (named("first@of-two"), named("the-other"));
    let daemon = first.consumer(&[&group]);
    daemon.wait_for_line("assigned").await;
    let beside = other.consumer(&[&group]);
    beside.wait_for_line("assigned").await;
    let partitions = |log: &str| -> HashSet<String> {
        let last = log.lines().rfind(|line| line.contains("assigned") && line.contains("partitions"));
        let named = |word: &&str| word.starts_with(&topic);
        last.into_iter()
            .flat_map(|line| line.split([' ', '"', ',', '=']).filter(named))
            .map(str::to_owned)
            .collect()
    };
    let of_other = partitions(&beside.log());
    assert_eq!(of_other.len(), 2, "{}", beside.log());
    let rebalances = || beside.log().matches("assigned").count() + beside.log().matches("revoked").count();
    let before = rebalances();
    daemon.terminate();
    assert_eq!(daemon.wait_exit().await, Some(0));
    for n in 0..40 {
        kafka.produce(&topic, Some(&format!("k{n}")), Some(format!("m{n}").as_bytes()), &[]).await;
    }
    let again = first.consumer(&[&group]);
    again.wait_for_line("assigned").await;
    eventually("all are handled", PATIENCE, async || evidence(&database).await == 40).await;
    assert!(partitions(&again.log()).is_disjoint(&of_other), "{}", again.log());
    assert_eq!(partitions(&again.log()).len(), 2);
    assert_eq!(rebalances(), before, "{}", beside.log());
    assert!(receiver.handled().values().all(|times| *times == 1));
}
