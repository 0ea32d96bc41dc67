//! What a job's rules say holds over a cluster: cooldown, overlap, time limits, and one start for a firing that is made up for.

use std::time::Duration;

use outboxd::config::Config;
use outboxd::pg::Connector;
use outboxd::pg::jobs::{Board, Claim, End, Entry};
use uuid::Uuid;

use super::own_jobs::{database, ticks};
use crate::support::{Daemon, Database, Kafka, Outboxd, eventually, eventually_some};

/// Longer than the claim of a run whose agent has died, and than what waits behind it.
const SOON: Duration = Duration::from_secs(90);

#[tokio::test]
async fn a_condition_that_becomes_true_within_the_cooldown_runs_the_job_when_that_is_over() {
    let (database, kafka) = (database().await, Kafka::shared().await);
    database
        .batch(
            "create table stock (amount integer); insert into stock values (1); grant all on stock to public",
        )
        .await;
    let outboxd = Outboxd::new(&database, kafka)
        .set("jobs.low.on = \"select amount < 3 from stock\"")
        .set("jobs.low.schedule = \"every 1s\"")
        .set("jobs.low.cooldown = \"6s\"")
        .set("jobs.low.action = { kind = \"sql\", statement = \"insert into ticks (firing) values ($1)\" }");
    let _daemons = [outboxd.producer(), outboxd.producer()];
    eventually("it runs", SOON, async || ticks(&database).await == 1).await;
    database.batch("update stock set amount = 9").await;
    let armed = "select count(*) from outboxd.jobs where name = 'low' and armed";
    eventually("that is seen", SOON, async || database.count(armed).await == 1).await;
    database.batch("update stock set amount = 1").await;
    eventually("it runs again", SOON, async || ticks(&database).await == 2).await;
    let apart = "select count(*) from (select at - lag(at) over (order by at) as gap from ticks) gaps
        where gap < interval '5.9 s'";
    assert_eq!(database.count(apart).await, 0);
}

#[tokio::test]
async fn firings_that_queue_start_one_behind_the_other_whoever_runs_them() {
    let (database, kafka) = (database().await, Kafka::shared().await);
    let outboxd = Outboxd::new(&database, kafka)
        .set("jobs.slow.schedule = \"every 1s\"")
        .set("jobs.slow.overlap = \"queue\"")
        .set("jobs.slow.action.kind = \"sql\"")
        // Not a wait: a run that is longer than the interval.
        .set("jobs.slow.action.statement = \"insert into ticks (firing) select $1 from pg_sleep(1.7)\"");
    let _daemons = [outboxd.producer(), outboxd.producer()];
    eventually("five have run", SOON, async || ticks(&database).await >= 5).await;
    let gaps =
        "select count(*) from (select firing - lag(firing) over (order by firing) as gap from ticks) gaps
        where gap <> interval '1 s'";
    assert_eq!(database.count(gaps).await, 0, "none is left out, none comes twice");
    let together = "select count(*) from outboxd.job_runs a join outboxd.job_runs b on a.id < b.id
        where a.job = 'slow' and b.job = 'slow' and b.started_at < a.ended_at";
    assert_eq!(database.count(together).await, 0, "one at a time");
}

#[tokio::test]
async fn a_program_that_takes_too_long_is_asked_to_end_before_it_is_killed() {
    let (database, kafka) = (database().await, Kafka::shared().await);
    let folder = tempfile::tempdir().unwrap();
    let told = folder.path().join("told");
    let script = format!("trap 'echo asked >> {}; exit 0' TERM; sleep 60 & wait", told.display());
    let outboxd = Outboxd::new(&database, kafka)
        .set("jobs.hangs.schedule = \"@yearly\"")
        .set("jobs.hangs.timeout = \"1s\"")
        .set(&format!("jobs.hangs.action = {{ kind = \"exec\", command = [\"sh\", \"-c\", \"{script}\"] }}"));
    let producer = outboxd.producer();
    eventually("it is ordered", SOON, async || outboxd.run(&["jobs", "run", "hangs"]).await.code == 0).await;
    let ended = eventually_some("it has ended", SOON, async || {
        let run = database.query("select result, error from outboxd.job_runs where job = 'hangs'", &[]).await;
        run.first().map(|run| (run.get::<_, String>(0), run.get::<_, Option<String>>(1)))
    })
    .await;
    assert_eq!(ended, ("cut".to_owned(), Some("cut after 1s".to_owned())));
    assert_eq!(std::fs::read_to_string(&told).unwrap(), "asked\n");
    producer.terminate();
    assert_eq!(producer.wait_exit().await, Some(0));
}

#[tokio::test]
async fn a_lost_run_is_done_again_by_one_agent_however_late_another_comes() {
    let database = database().await;
    let text = format!("postgres.url = \"{}\"", database.agent_url());
    let config = Config::parse(&text, None, []).unwrap().config;
    let board = Board::open(&Connector::new(&config.postgres, "outboxd/test")).await.unwrap();
    let entry = Entry {
        name: "call",
        scope: "cluster",
        role: "producer",
        schedule: "@yearly".to_owned(),
        timezone: "UTC",
        enabled: true,
        at_start: false,
    };
    board.enter(&[entry]).await.unwrap();
    let look = board.look(&["call"], Uuid::nil()).await.unwrap();
    let last = look.standings["call"].last_firing;
    let claim = |lost: Option<Uuid>| Claim {
        name: "call".to_owned(),
        last_firing: last,
        new_last_firing: last,
        firing: last,
        requested: None,
        agent: "a".to_owned(),
        lease: Uuid::new_v4(),
        lost,
        missed: 0,
        note: None,
    };
    let (first, again) = (claim(None), claim(None));
    assert!(board.claim(&first).await.unwrap() && !board.claim(&again).await.unwrap());
    database.batch("update outboxd.jobs set busy_until = clock_timestamp() where name = 'call'").await;
    let redo = claim(Some(first.lease));
    assert!(board.claim(&redo).await.unwrap(), "the first was lost");
    let end = End { result: "done", error: None, rows: None, is_kept: true };
    assert!(board.end("call", redo.lease, &end).await.unwrap());
    assert!(!board.claim(&claim(Some(first.lease))).await.unwrap(), "it is done");
}

#[tokio::test]
async fn pausing_the_job_of_a_consumer_pauses_its_group() {
    let (database, kafka) = (database().await, Kafka::shared().await);
    let topic = kafka.topic(1).await;
    let outboxd = Outboxd::new(&database, kafka).group(&topic, &topic, "kind = \"log\"");
    let job = format!("consume-{topic}");
    let consumer = outboxd.consumer(&[&topic]);
    consumer.wait_for_line("\"assigned\"").await;
    assert_eq!(outboxd.run(&["jobs", "pause", &job]).await.code, 0);
    consumer.wait_for_line("nothing more is started").await;
    assert_eq!(outboxd.run(&["jobs", "run", &job]).await.code, 2);
    let shown = outboxd.run(&["groups", "show", &topic]).await;
    assert!(shown.stdout.contains("paused"), "{}", shown.stdout);
    let listed = outboxd.run(&["groups", "list"]).await.stdout;
    assert!(listed.contains(" by "), "it is paused by somebody: {listed}");
    kafka.produce(&topic, None, Some(b"x"), &[]).await;
    let handled = async || database.count("select count(*) from outboxd.handled").await;
    assert_eq!(outboxd.run(&["jobs", "pause", &job]).await.code, 0);
    assert_eq!(handled().await, 0);
    assert_eq!(outboxd.run(&["jobs", "resume", &job]).await.code, 0);
    eventually("it is handled", SOON, async || handled().await == 1).await;
    let recorded = "select array_agg(command || ': ' || result order by id) from outboxd.operations";
    let recorded: Vec<String> = database.query_one(recorded, &[]).await.get(0);
    assert_eq!(recorded, ["jobs pause: done", "jobs pause: nothing to do", "jobs resume: done"]);
}

/// A producer that drains for so long, with a job whose program takes that long, under way.
async fn at_work(database: &Database, kafka: &Kafka, drain: &str, seconds: u32) -> Daemon {
    let outboxd = Outboxd::new(database, kafka)
        .set(&format!("agent.drain_timeout = \"{drain}\""))
        .set("jobs.works.schedule = \"@yearly\"")
        .set(&format!("jobs.works.action = {{ kind = \"exec\", command = [\"sleep\", \"{seconds}\"] }}"));
    let producer = outboxd.producer();
    eventually("it is ordered", SOON, async || outboxd.run(&["jobs", "run", "works"]).await.code == 0).await;
    let leased = "select count(*) from outboxd.jobs where name = 'works' and lease is not null";
    eventually("it is under way", SOON, async || database.count(leased).await == 1).await;
    producer
}

#[tokio::test]
async fn an_agent_that_drains_finishes_its_runs_and_names_those_that_outlast_the_drain() {
    let (one, other, kafka) = (database().await, database().await, Kafka::shared().await);
    let (short, long) = tokio::join!(at_work(&one, kafka, "1m", 4), at_work(&other, kafka, "3s", 300));
    short.terminate();
    long.terminate();
    assert_eq!(short.wait_exit().await, Some(0), "{}", short.log());
    let done = "select count(*) from outboxd.job_runs where job = 'works' and result = 'done'";
    assert_eq!(one.count(done).await, 1);
    assert_eq!(long.wait_exit().await, Some(1), "{}", long.log());
    assert!(long.log().contains("jobs under way: works"), "{}", long.log());
    assert_eq!(other.count(done).await, 0);
}

fn take_from_file(outboxd: &Outboxd, start: &str) {
    let text = std::fs::read_to_string(outboxd.config()).unwrap();
    let without: Vec<&str> = text.lines().filter(|line| !line.starts_with(start)).collect();
    std::fs::write(outboxd.config(), without.join("\n") + "\n").unwrap();
}

#[tokio::test]
async fn a_job_that_left_the_file_finishes_its_run_and_is_no_more() {
    let (database, kafka) = (database().await, Kafka::shared().await);
    let outboxd = Outboxd::new(&database, kafka)
        .set("jobs.works.schedule = \"@yearly\"")
        .set("jobs.works.action = { kind = \"exec\", command = [\"sleep\", \"5\"] }");
    let producer = outboxd.producer();
    let run = async || outboxd.run(&["jobs", "run", "works"]).await.code;
    eventually("it is ordered", SOON, async || run().await == 0).await;
    let leased = "select count(*) from outboxd.jobs where name = 'works' and lease is not null";
    eventually("it is under way", SOON, async || database.count(leased).await == 1).await;
    take_from_file(&outboxd, "jobs.works");
    producer.reload();
    producer.wait_for_line("is read again").await;
    let done = "select count(*) from outboxd.job_runs where job = 'works' and result = 'done'";
    eventually("it is finished", SOON, async || database.count(done).await == 1).await;
    let disabled = "select count(*) from outboxd.jobs where name = 'works' and not enabled";
    eventually("nobody would start it", SOON, async || database.count(disabled).await == 1).await;
    assert_eq!(run().await, 2);
}

#[tokio::test]
async fn an_order_and_its_record_are_one_transaction() {
    let (database, kafka) = (database().await, Kafka::shared().await);
    let outboxd = Outboxd::new(&database, kafka)
        .set("jobs.tick.schedule = \"@yearly\"")
        .set("jobs.tick.action = { kind = \"sql\", statement = \"insert into ticks select $1\" }");
    let producer = outboxd.producer();
    eventually("it is ordered", SOON, async || outboxd.run(&["jobs", "pause", "tick"]).await.code == 0).await;
    let crashing = Outboxd::new(&database, kafka).failpoint("order-before-commit");
    let output =
        tokio::process::Command::from(crashing.command(&["jobs", "run", "tick"])).output().await.unwrap();
    assert_eq!(output.status.code(), None, "{output:?}");
    let pending = "select count(*) from outboxd.jobs where name = 'tick' and (started_at is not null or run_requested_at is not null)";
    assert_eq!(database.count(pending).await, 0, "not ordered");
    assert_eq!(database.count("select count(*) from outboxd.operations").await, 1, "and not on record");
    assert_eq!(outboxd.run(&["jobs", "run", "tick"]).await.code, 0);
    eventually("it has run", SOON, async || ticks(&database).await == 1).await;
    assert_eq!(database.count("select count(*) from outboxd.operations where result = 'done'").await, 2);
    producer.terminate();
    assert_eq!(producer.wait_exit().await, Some(0));
}

/// Of the last run: the board and the history say the same, and nothing is under way.
async fn outcome(database: &Database, job: &str) -> Option<(String, String)> {
    let rows = database
        .query(
            "select r.result, r.error from outboxd.job_runs r join outboxd.jobs j on j.name = r.job
               and j.result = r.result and j.error = r.error and j.lease is null
             where r.job = $1 order by r.id desc limit 1",
            &[&job],
        )
        .await;
    rows.first().map(|row| (row.get(0), row.get(1)))
}

#[tokio::test]
async fn a_run_whose_job_left_the_file_is_told_as_cut_or_lost_if_it_was() {
    let (one, other, kafka) = (database().await, database().await, Kafka::shared().await);
    let set = |database: &Database, timeout: &str| {
        Outboxd::new(database, kafka)
            .set("jobs.cleanup.schedule = \"every 1s\"")
            .set("jobs.idle.schedule = \"@yearly\"")
            .set("jobs.idle.action = { kind = \"sql\", statement = \"select 1\" }")
            .set("jobs.works.schedule = \"@yearly\"")
            .set(&format!("jobs.works.timeout = \"{timeout}\""))
            .set("jobs.works.action = { kind = \"exec\", command = [\"sleep\", \"300\"] }")
    };
    let (cut, lost) = (set(&one, "8s"), set(&other, "1h"));
    let daemons = [cut.producer(), lost.producer()];
    let leased = "select count(*) from outboxd.jobs where name = 'works' and lease is not null";
    for (outboxd, database, daemon) in [(&cut, &one, &daemons[0]), (&lost, &other, &daemons[1])] {
        let run = async || outboxd.run(&["jobs", "run", "works"]).await.code;
        eventually("it is ordered", SOON, async || run().await == 0).await;
        eventually("it is under way", SOON, async || database.count(leased).await == 1).await;
        take_from_file(outboxd, "jobs.works");
        take_from_file(outboxd, "jobs.idle");
        daemon.reload();
        daemon.wait_for_line("is read again").await;
        for gone in ["works", "idle"] {
            let refused = async || outboxd.run(&["jobs", "run", gone]).await.code == 2;
            eventually("nobody would start it", SOON, refused).await;
        }
    }
    let [first, second] = daemons;
    let ended = eventually_some("it has ended", SOON, async || outcome(&one, "works").await).await;
    assert_eq!(ended, ("cut".to_owned(), "cut after 8s".to_owned()));
    first.terminate();
    assert_eq!(first.wait_exit().await, Some(0), "{}", first.log());

    second.kill();
    // Its lease would end by itself.
    other.batch("update outboxd.jobs set busy_until = clock_timestamp() where lease is not null").await;
    let _daemon = lost.producer();
    let ended = eventually_some("it is told", SOON, async || outcome(&other, "works").await).await;
    assert_eq!(ended.0, "lost");
    assert_eq!(other.count("select count(*) from outboxd.job_runs where job = 'works'").await, 1);
}

#[tokio::test]
async fn a_consumer_is_paused_before_its_group_has_begun() {
    let (database, kafka) = (database().await, Kafka::shared().await);
    let topic = kafka.topic(1).await;
    kafka.produce(&topic, None, Some(b"x"), &[]).await;
    let job = format!("consume-{topic}");
    // No broker is there.
    let waiting = Outboxd::without_kafka(&database).group(&topic, &topic, "kind = \"log\"");
    let consumer = waiting.consumer(&[&topic]);
    let said = async |command: &str| waiting.run(&["jobs", command, &job]).await;
    eventually("it is on the board", SOON, async || said("resume").await.stdout.contains("was not paused"))
        .await;
    assert!(said("pause").await.stdout.contains("is paused"));
    assert!(said("pause").await.stdout.contains("was paused already"));
    assert!(said("resume").await.stdout.contains("goes on"));
    assert!(said("pause").await.stdout.contains("is paused"));
    consumer.terminate();
    consumer.wait_exit().await;

    let outboxd = Outboxd::new(&database, kafka).group(&topic, &topic, "kind = \"log\"");
    let consumer = outboxd.consumer(&[&topic]);
    consumer.wait_for_line("nothing more is started: paused by").await;
    assert!(said("pause").await.stdout.contains("was paused already"));
    consumer.wait_for_line("\"assigned\"").await;
    let handled = async || database.count("select count(*) from outboxd.handled").await;
    assert_eq!(handled().await, 0);
    assert!(said("resume").await.stdout.contains("goes on"));
    assert!(said("resume").await.stdout.contains("was not paused"));
    eventually("it is handled", SOON, async || handled().await == 1).await;
}
