//! What goes wrong around a job, or is forgotten, ends as its rules say.

use std::time::Duration;

use serde_json::Value;

use super::own_jobs::{database, ticks};
use crate::support::{Database, Kafka, Outboxd, eventually};

/// Longer than the claim of a run whose agent has died, and than what waits behind it.
const SOON: Duration = Duration::from_secs(90);

fn noting(outboxd: Outboxd, job: &str, schedule: &str, table: &str) -> Outboxd {
    outboxd.set(&format!("jobs.{job}.schedule = \"{schedule}\"")).set(&format!(
        "jobs.{job}.action = {{ kind = \"sql\", statement = \"insert into {table} (firing) values ($1)\" }}"
    ))
}

async fn ordered(outboxd: &Outboxd, job: &str) {
    let run = async || outboxd.run(&["jobs", "run", job]).await.code == 0;
    eventually("it is ordered", SOON, run).await;
}

/// Until its runner has looked at the board some times more.
async fn looks_on(database: &Database) {
    let firings = async || database.count("select count(*) from tocks").await;
    let before = firings().await;
    eventually("another job goes on", SOON, async || firings().await >= before + 3).await;
}

/// Beside the job of the test, one that shows that the runner is at work.
async fn with_another(database: &Database, outboxd: Outboxd) -> Outboxd {
    database.batch("create table tocks (firing timestamptz); grant all on tocks to public").await;
    noting(outboxd, "tock", "every 1s", "tocks")
}

#[tokio::test]
async fn a_database_clock_that_is_set_back_repeats_nothing_and_one_that_was_wrong_is_followed() {
    let (database, kafka) = (database().await, Kafka::shared().await);
    let outboxd = noting(Outboxd::new(&database, kafka), "tick", "every 1s", "ticks");
    let daemons = [with_another(&database, outboxd).await.producer()];
    eventually("it ticks", SOON, async || ticks(&database).await >= 2).await;
    // To the board a clock that is set back is a last firing that lies ahead.
    let set_back = async |hours: i64| {
        let sql = format!(
            "update outboxd.jobs set last_firing = last_firing + interval '{hours} hours' where name = 'tick'"
        );
        database.batch(&sql).await;
    };
    set_back(1).await;
    let now = ticks(&database).await;
    looks_on(&database).await;
    // One may have been under way.
    assert!(ticks(&database).await <= now + 1, "what has been is not repeated");
    let now = ticks(&database).await;
    set_back(2).await;
    daemons[0].wait_for_line("was set back: it goes on from there").await;
    eventually("it ticks again", SOON, async || ticks(&database).await >= now + 2).await;
    let twice = "select count(*) - count(distinct firing) from ticks";
    assert_eq!(database.count(twice).await, 0);
}

#[tokio::test]
async fn a_run_that_has_lost_its_lease_is_cut_and_counted_as_lost() {
    let (database, kafka) = (database().await, Kafka::shared().await);
    let folder = tempfile::tempdir().unwrap();
    let told = folder.path().join("told");
    let script = format!("trap 'echo cut >> {}; exit 1' TERM; sleep 300 & wait", told.display());
    let outboxd = Outboxd::new(&database, kafka)
        .set("jobs.works.schedule = \"@yearly\"")
        .set("jobs.works.timeout = \"1h\"")
        .set(&format!("jobs.works.action = {{ kind = \"exec\", command = [\"sh\", \"-c\", \"{script}\"] }}"));
    let daemon = outboxd.producer();
    ordered(&outboxd, "works").await;
    let leased = "select count(*) from outboxd.jobs where name = 'works' and lease is not null";
    eventually("it is under way", SOON, async || database.count(leased).await == 1).await;
    // As if another had taken it over, while this agent was frozen or cut off.
    database.batch("update outboxd.jobs set lease = gen_random_uuid() where name = 'works'").await;
    daemon.wait_for_line("the run is cut: its lease has ended").await;
    let (_, metrics) = daemon.get("/metrics").await.unwrap();
    assert!(metrics.contains("outboxd_job_runs_total{job=\"works\",result=\"lost\"} 1"), "{metrics}");
    daemon.terminate();
    assert_eq!(daemon.wait_exit().await, Some(0), "nothing of it is left: {}", daemon.log());
}

#[tokio::test]
async fn a_last_firing_outlives_the_history() {
    let (database, kafka) = (database().await, Kafka::shared().await);
    let outboxd = noting(Outboxd::new(&database, kafka), "yearly", "@yearly", "ticks")
        .set("jobs.cleanup.schedule = \"every 1s\"")
        .set("retention.runs = \"2s\"");
    let outboxd = with_another(&database, outboxd).await;
    let daemon = outboxd.producer();
    ordered(&outboxd, "yearly").await;
    eventually("it has run", SOON, async || ticks(&database).await == 1).await;
    let of_this_year =
        "update outboxd.jobs set last_firing = date_trunc('year', now()) where name = 'yearly'";
    database.batch(of_this_year).await;
    let history = "select count(*) from outboxd.job_runs where job = 'yearly'";
    eventually("its history is forgotten", SOON, async || database.count(history).await == 0).await;
    daemon.terminate();
    assert_eq!(daemon.wait_exit().await, Some(0));
    let _later = outboxd.producer();
    looks_on(&database).await;
    assert_eq!(ticks(&database).await, 1, "it ran this year");
    let listed: Vec<Value> =
        serde_json::from_str(&outboxd.run(&["jobs", "list", "--json"]).await.stdout).unwrap();
    let yearly = listed.iter().find(|job| job["name"] == "yearly").unwrap();
    assert_eq!((&yearly["result"], &yearly["runs"]), (&"done".into(), &1.into()), "{yearly}");
}

#[tokio::test]
async fn statements_and_conditions_run_as_whom_the_file_says() {
    let (database, kafka) = (database().await, Kafka::shared().await);
    let role = format!("accounts_{:08x}", fastrand::u32(..));
    database
        .batch(&format!(
            "create role {role}; grant {role} to agent; create table done_by (name text); grant insert on done_by to {role}"
        ))
        .await;
    let outboxd = Outboxd::new(&database, kafka)
        .set("jobs.close.schedule = \"@yearly\"")
        .set(&format!("jobs.close.run_as = \"{role}\""))
        .set(&format!("jobs.close.when = \"select current_user = '{role}'\""))
        .set(
            "jobs.close.action = { kind = \"sql\", statement = \"insert into done_by select current_user\" }",
        );
    let _daemon = outboxd.producer();
    ordered(&outboxd, "close").await;
    let ended = "select count(*) from outboxd.job_runs where job = 'close'";
    eventually("it has ended", SOON, async || database.count(ended).await == 1).await;
    let done = database.query("select name from done_by", &[]).await;
    assert_eq!(
        done.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>().as_slice(),
        std::slice::from_ref(&role)
    );
    database.batch(&format!("drop owned by {role}; drop role {role}")).await;
}

#[tokio::test]
async fn a_job_that_is_switched_off_starts_neither_by_schedule_nor_by_order() {
    let (database, kafka) = (database().await, Kafka::shared().await);
    let outboxd =
        noting(Outboxd::new(&database, kafka), "tick", "every 1s", "ticks").set("jobs.tick.enabled = false");
    let outboxd = with_another(&database, outboxd).await;
    let _daemon = outboxd.producer();
    looks_on(&database).await;
    let refused = outboxd.run(&["jobs", "run", "tick"]).await;
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains("switched off"), "{refused:?}");
    assert!(outboxd.run(&["jobs", "list"]).await.stdout.contains("disabled"));
    looks_on(&database).await;
    assert_eq!(ticks(&database).await, 0);
}
