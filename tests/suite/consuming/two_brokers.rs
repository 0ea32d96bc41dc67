//! A broker of two that dies, and comes back: it led half of the topic, and coordinated the group.

use crate::support::ledger::Ledger;
use crate::support::{Database, Kafka, Outboxd, Postgres, eventually, eventually_some};

use super::{PATIENCE, evidence, unique};

/// The node that dies; the other is the controller.
const DIES: i32 = 2;

#[tokio::test]
async fn a_broker_that_dies_and_comes_back_moves_leaders_and_coordinator_and_costs_nothing() {
    let (database, [kafka, second]) = (Postgres::shared().await.database().await, Kafka::pair().await);
    database
        .batch(
            "create table effects (n bigserial, message_id uuid);
             create function on_order(d outboxd.delivery) returns void language sql security definer as
               $$ insert into effects (message_id) values (d.id) $$;
             grant execute on function on_order to outboxd_agent",
        )
        .await;
    let ledger = Ledger::new(&database, &kafka.topic(4).await);
    let group = coordinated_by(DIES, &kafka).await;
    let outboxd = || {
        Outboxd::new(&database, &kafka).group(
            &group,
            &ledger.topic,
            "kind = \"sql\"\nfunction = \"on_order\"",
        )
    };
    let producer = outboxd().producer();
    let consumers = [outboxd().consumer(&[&group]), outboxd().consumer(&[&group])];
    for consumer in &consumers {
        consumer.wait_for_line("assigned").await;
    }
    let writers = ledger.keep_writing(4);
    more_are_handled(&database).await;

    second.kill();
    led_by(1, &kafka, &group, &ledger.topic).await;
    more_are_handled(&database).await;

    second.start().await;
    led_by(DIES, &kafka, &group, &ledger.topic).await;
    more_are_handled(&database).await;

    writers.stop().await;
    ledger.published(&database).await;
    let found = ledger.check(&database, &kafka).await;
    let messages = i64::try_from(found.messages).unwrap();
    eventually("all are handled", PATIENCE, async || evidence(&database).await == messages).await;
    assert_eq!(database.count("select count(*) from effects").await, messages, "each has its effect once");
    let inverted = "select count(*) from (
        select seq, lag(seq) over (partition by key, priority order by n) as before
        from effects e join outboxd.messages m on outboxd.message_id(m.created_at, m.seq) = e.message_id) _
        where seq < before";
    assert_eq!(database.count(inverted).await, 0, "the effects of a key happen in its order");
    assert!(producer.is_running());
    for consumer in consumers {
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

/// The node coordinates the group, and leads half of the topic if that is the one that was dead, or all.
async fn led_by(node: i32, kafka: &Kafka, group: &str, topic: &str) {
    let share = if node == DIES { 2 } else { 4 };
    eventually("leaders and coordinator have moved", PATIENCE, async || {
        let leaders = kafka.leaders(topic).await.unwrap_or_default();
        leaders.values().filter(|leader| **leader == node).count() == share
            && kafka.coordinator(group).await == Some(node)
    })
    .await;
}

async fn more_are_handled(database: &Database) {
    let before = evidence(database).await;
    eventually("200 more are handled", PATIENCE, async || evidence(database).await >= before + 200).await;
}
