//! The runner of jobs: what is due starts once in the whole cluster, and what has nothing to do leaves no trace.

use std::time::Duration;

use crate::support::{Database, Kafka, Outboxd, Postgres, eventually};

const SOON: Duration = Duration::from_secs(30);

async fn runs(database: &Database, job: &str) -> i64 {
    let sql = "select coalesce(sum(runs), 0)::bigint from outboxd.jobs where name = $1";
    database.query_one(sql, &[&job]).await.get(0)
}

#[tokio::test]
async fn two_agents_share_the_firings_and_what_has_nothing_to_do_claims_nothing() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let outboxd = Outboxd::new(&database, kafka).set("jobs.cleanup.schedule = \"every 1s\"");
    let daemons = [outboxd.producer(), outboxd.producer()];
    let seconds = "select extract(epoch from clock_timestamp())::bigint";
    eventually("cleanup runs", SOON, async || runs(&database, "cleanup").await > 0).await;
    let (before, began) = (runs(&database, "cleanup").await, database.count(seconds).await);
    eventually("it goes on", SOON, async || runs(&database, "cleanup").await >= before + 4).await;
    let (ran, took) = (runs(&database, "cleanup").await - before, database.count(seconds).await - began);
    assert!(ran <= took + 1, "{ran} runs in {took} seconds");
    assert_eq!(runs(&database, "process-retry").await, 0);
    let idle = "select count(*) from outboxd.job_runs where job <> 'partitions'";
    assert_eq!(database.count(idle).await, 0, "there was nothing to tell");
    for daemon in &daemons {
        daemon.terminate();
        assert_eq!(daemon.wait_exit().await, Some(0), "{}", daemon.log());
    }
}
