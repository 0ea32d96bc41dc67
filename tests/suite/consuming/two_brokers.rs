//! A broker of two that leads half of the topic and coordinates the group, dies, and comes back.

use std::collections::HashMap;

use super::{PATIENCE, evidence, unique};
use crate::support::ledger::Ledger;
use crate::support::{Database, Kafka, Outboxd, Postgres, eventually, eventually_some};

/// The node that stays is the controller.
const STAYS: i32 = 1;
const DIES: i32 = 2;

const PARTITIONS: i32 = 4;

#[tokio::test]
async fn a_broker_that_dies_and_comes_back_moves_leaders_and_coordinator_and_costs_nothing() {
    let (database, [kafka, second]) = (Postgres::shared().await.database().await, Kafka::pair().await);
    database
        .batch(
            "create table effects (n bigserial, id uuid);
             create function on_order(d outboxd.delivery) returns void language sql security definer as
               $$ insert into effects (id) values (d.id) $$;
             grant execute on function on_order to outboxd_agent",
        )
        .await;
    let ledger = Ledger::new(&database, &kafka.topic(PARTITIONS).await);
    let group = coordinated_by(DIES, &kafka).await;
    let outboxd = || {
        Outboxd::new(&database, &kafka).group(
            &group,
            &ledger.topic,
            "kind = \"sql\"\nfunction = \"on_order\"",
        )
    };
    let leads_and_coordinates = async |node, partitions| {
        eventually(&format!("node {node} leads and coordinates"), PATIENCE, async || {
            let leaders = kafka.leaders(&ledger.topic).await.unwrap_or_default();
            leaders.values().filter(|leader| **leader == node).count() == partitions
                && kafka.coordinator(&group).await == Some(node)
        })
        .await;
    };
    let producer = outboxd().producer();
    let mut consumers = vec![outboxd().consumer(&[&group]), outboxd().consumer(&[&group])];
    for consumer in &consumers {
        consumer.wait_for_line("assigned").await;
    }
    let writers = ledger.keep_writing(4);
    leads_and_coordinates(DIES, 2).await;
    each_partition_goes_on(&database).await;

    second.kill();
    leads_and_coordinates(STAYS, 4).await;
    each_partition_goes_on(&database).await;
    // Who joins has to be let in by the new coordinator, and all others have to hear of it there.
    let third = outboxd().consumer(&[&group]);
    third.wait_for_line("assigned").await;
    consumers.push(third);

    second.start().await;
    leads_and_coordinates(DIES, 2).await;
    each_partition_goes_on(&database).await;

    writers.stop().await;
    ledger.published(&database).await;
    let found = ledger.check(&database, &kafka).await;
    let messages = i64::try_from(found.messages).unwrap();
    eventually("all are handled", PATIENCE, async || evidence(&database).await == messages).await;
    Ledger::check_effects(messages, &database).await;
    assert!(producer.is_running());
    for consumer in consumers {
        assert!(!consumer.log().contains("lost to another member"), "{}", consumer.log());
        consumer.terminate();
        assert_eq!(consumer.wait_exit().await, Some(0), "{}", consumer.log());
    }
}

/// A group whose offsets that node keeps.
async fn coordinated_by(node: i32, kafka: &Kafka) -> String {
    eventually_some("the node coordinates a group", PATIENCE, async || {
        let group = unique("orders");
        (kafka.coordinator(&group).await == Some(node)).then_some(group)
    })
    .await
}

async fn each_partition_goes_on(database: &Database) {
    let handled = async || -> HashMap<i32, i64> {
        let counted = "select partition, count(*) from outboxd.handled group by partition";
        database.query(counted, &[]).await.iter().map(|row| (row.get(0), row.get(1))).collect()
    };
    let before = handled().await;
    let at = |counts: &HashMap<i32, i64>, partition| counts.get(&partition).copied().unwrap_or_default();
    eventually("30 more of each partition are handled", PATIENCE, async || {
        let now = handled().await;
        (0..PARTITIONS).all(|partition| at(&now, partition) >= at(&before, partition) + 30)
    })
    .await;
}
