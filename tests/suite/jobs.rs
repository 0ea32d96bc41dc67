//! The runner of jobs: what is due starts once in the whole cluster, and what has nothing to do leaves no trace.

use std::time::Duration;

use crate::support::{Database, Kafka, Outboxd, Postgres, eventually};

const SOON: Duration = Duration::from_secs(30);

async fn runs(database: &Database, job: &str) -> i64 {
    let sql = "select coalesce(sum(runs), 0)::bigint from outboxd.jobs where name = $1";
    database.query_one(sql, &[&job]).await.get(0)
}

async fn insert(database: &Database, topic: &str) {
    database.execute("insert into outboxd.messages (topic, payload) values ($1, 'x')", &[&topic]).await;
}

#[tokio::test]
async fn the_relay_publishes_at_its_firings_or_not_at_all_while_it_is_paused() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = kafka.topic(1).await;
    let outboxd = Outboxd::new(&database, kafka).set("jobs.process-pending.schedule = \"0 0 1 1 *\"");
    let producer = outboxd.producer();
    producer.ready().await;
    insert(&database, &topic).await;
    eventually("the lanes are owned", SOON, async || {
        database.count("select count(*) from outboxd.lanes where owner is not null").await == 3
    })
    .await;
    assert_eq!(database.in_state(&topic, "pending").await, 1, "it is not due this year");
    outboxd.run(&["jobs", "run", "process-pending"]).await;
    database.reach(&topic, "published", 1).await;
    producer.terminate();
    assert_eq!(producer.wait_exit().await, Some(0));

    let outboxd = Outboxd::new(&database, kafka);
    let paused = outboxd.run(&["jobs", "pause", "process-pending"]).await;
    assert_eq!(paused.code, 0, "{paused:?}");
    let producer = outboxd.producer();
    producer.ready().await;
    insert(&database, &topic).await;
    let before = runs(&database, "cleanup").await;
    outboxd.run(&["jobs", "run", "cleanup"]).await;
    eventually("its runner is at work", SOON, async || runs(&database, "cleanup").await > before).await;
    assert_eq!(database.in_state(&topic, "pending").await, 1, "it is paused, over a restart");
    outboxd.run(&["jobs", "resume", "process-pending"]).await;
    database.reach(&topic, "published", 2).await;
    assert_eq!(outboxd.run(&["jobs", "pause", "heartbeat"]).await.code, 2);
}

#[tokio::test]
async fn two_agents_share_the_firings_and_what_has_nothing_to_do_claims_nothing() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let outboxd = Outboxd::new(&database, kafka).set("jobs.cleanup.schedule = \"every 1s\"");
    let daemons = [outboxd.producer(), outboxd.producer()];
    eventually("cleanup runs", SOON, async || runs(&database, "cleanup").await > 0).await;
    // In one look: nothing lies between the two.
    let ran_at = async || {
        let sql = "select runs, floor(extract(epoch from clock_timestamp()))::bigint from outboxd.jobs where name = 'cleanup'";
        let row = database.query_one(sql, &[]).await;
        (row.get::<_, i64>(0), row.get::<_, i64>(1))
    };
    let (before, began) = ran_at().await;
    eventually("it goes on", SOON, async || ran_at().await.0 >= before + 4).await;
    let (after, ended) = ran_at().await;
    let (ran, took) = (after - before, ended - began);
    // One firing of before may have been waiting for its start.
    assert!(ran <= took + 1, "{ran} runs in {took} seconds");
    assert_eq!(runs(&database, "process-retry").await, 0);
    let idle = "select count(*) from outboxd.job_runs where job <> 'partitions'";
    assert_eq!(database.count(idle).await, 0, "there was nothing to tell");
    for daemon in &daemons {
        daemon.terminate();
        assert_eq!(daemon.wait_exit().await, Some(0), "{}", daemon.log());
    }
}
