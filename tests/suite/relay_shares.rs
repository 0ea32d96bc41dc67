//! Producers share the lanes evenly, and one hands a lane over by draining it.

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::support::ledger::Ledger;
use crate::support::{Daemon, Database, Kafka, Outboxd, Postgres, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

/// How many lanes each owner has, fewest first.
async fn shares(database: &Database) -> Vec<i64> {
    let sql = "select count(*) from outboxd.lanes where owner is not null group by agent order by count(*)";
    database.query(sql, &[]).await.iter().map(|row| row.get(0)).collect()
}

async fn shared_as(database: &Database, expected: &[i64]) {
    eventually(&format!("the lanes are shared {expected:?}"), PATIENCE, async || {
        shares(database).await == expected
    })
    .await;
}

/// When it said so, by its log, and of which lane.
async fn said(daemon: &Daemon, text: &str) -> (DateTime<Utc>, String) {
    let line: serde_json::Value = serde_json::from_str(&daemon.wait_for_line(text).await).unwrap();
    let at = line["timestamp"].as_str().unwrap().parse().unwrap();
    (at, line["lane"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn two_and_three_producers_share_the_lanes_evenly_while_messages_flow() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let ledger = Ledger::new(&database, &kafka.topic(2).await);
    // Nobody gets a lane by waiting for the end of a lease.
    let outboxd = Outboxd::new(&database, kafka).set("producer.lease = \"10m\"");
    let first = outboxd.producer();
    shared_as(&database, &[3]).await;
    let writing = tokio::spawn({
        let ledger = ledger.clone();
        async move { ledger.write(4, 60).await }
    });
    let second = outboxd.producer();
    shared_as(&database, &[1, 2]).await;
    let _third = outboxd.producer();
    shared_as(&database, &[1, 1, 1]).await;
    let (given_up, lane) = said(&first, "the lane is given up").await;
    let (acquired, taken) = said(&second, "lane acquired").await;
    assert_eq!(lane, taken);
    let took = acquired - given_up;
    eprintln!("a lane was handed over in {} ms", took.num_milliseconds());
    assert!(took < chrono::Duration::seconds(5), "{took}");
    // Who leaves gives all of it back.
    first.terminate();
    assert_eq!(first.wait_exit().await, Some(0));
    shared_as(&database, &[1, 2]).await;
    writing.await.unwrap();
    ledger.published(&database).await;
    assert_eq!(ledger.check(&database, kafka).await.repeats, 0);
}

/// Its lane would stand still while another could publish it.
#[tokio::test]
async fn who_has_no_way_to_kafka_asks_for_no_lane() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let ledger = Ledger::new(&database, &kafka.topic(1).await);
    let _able = Outboxd::new(&database, kafka).producer();
    shared_as(&database, &[3]).await;
    let cut_off = Outboxd::without_kafka(&database).producer();
    eventually("it says that Kafka is away", PATIENCE, async || {
        cut_off.get("/readyz").await.is_some_and(|(status, body)| status == 503 && body.contains("kafka"))
    })
    .await;
    // It looks each second at the least: more than one look is behind us once these are through.
    for _ in 0..3 {
        ledger.flows(&database).await;
    }
    assert_eq!(shares(&database).await, [3]);
    let wished = "select count(*) from outboxd.lanes where wanted_by is not null";
    assert_eq!(database.count(wished).await, 0);
}
