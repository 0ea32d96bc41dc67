//! The user's jobs: each firing is done as it promises, whatever happens to agents, clocks and the database meanwhile.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::{Database, Kafka, Outboxd, Postgres, eventually, eventually_some};

/// Longer than the claim of a run whose agent has died, and than what waits behind it.
const SOON: Duration = Duration::from_secs(90);

/// A job that notes each of its firings. Where none may be lost, one that falls into a run waits for its end: on a machine
/// that is busy a run may take a second.
fn ticking(outboxd: Outboxd, schedule: &str, misfire: &str) -> Outboxd {
    let overlap = if misfire == "all" { "queue" } else { "skip" };
    outboxd
        .set(&format!("jobs.tick.overlap = \"{overlap}\""))
        .set(&format!("jobs.tick.schedule = \"{schedule}\""))
        .set(&format!("jobs.tick.misfire = \"{misfire}\""))
        .set("jobs.tick.action = { kind = \"sql\", statement = \"insert into ticks (firing) values ($1)\" }")
}

pub async fn database() -> Database {
    let database = Postgres::shared().await.database().await;
    make_ticks(&database).await;
    database
}

async fn make_ticks(database: &Database) {
    database
        .batch(
            "create table ticks (firing timestamptz not null, at timestamptz not null default clock_timestamp());
             grant all on ticks to public",
        )
        .await;
}

pub async fn ticks(database: &Database) -> i64 {
    database.count("select count(*) from ticks").await
}

async fn results(database: &Database, job: &str) -> Vec<String> {
    let rows =
        database.query("select result from outboxd.job_runs where job = $1 order by id", &[&job]).await;
    rows.iter().map(|row| row.get(0)).collect()
}

async fn is_known(database: &Database, job: &str) {
    eventually(&format!("{job} is on the board"), SOON, async || {
        database
            .query_one("select count(*) from outboxd.jobs where name = $1", &[&job])
            .await
            .get::<_, i64>(0)
            == 1
    })
    .await;
}

/// Every second from the first to the last firing is there, once, at the latest when the lease of a claim is over whose
/// agent has died. Some agent is there.
async fn every_firing_has_one_start(database: &Database) {
    let sql =
        "select count(*), count(distinct firing), extract(epoch from max(firing) - min(firing))::bigint + 1,
          (select count(*) from outboxd.job_runs where job = 'tick' and result = 'done')
        from ticks";
    eventually("no firing is missing", SOON, async || {
        let row = database.query_one(sql, &[]).await;
        let (all, distinct, expected, done): (i64, i64, i64, i64) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        assert_eq!(all, distinct, "no firing has two");
        assert_eq!(all, done, "the history agrees");
        all == expected
    })
    .await;
}

#[tokio::test]
async fn three_agents_of_which_one_dies_and_one_freezes_start_every_firing_once() {
    let (database, kafka) = (database().await, Kafka::shared().await);
    let outboxd = ticking(Outboxd::new(&database, kafka), "every 1s", "all");
    let (one, two, three) = (outboxd.producer(), outboxd.producer(), outboxd.producer());
    let reach = async |count: i64| {
        eventually(&format!("{count} ticks"), SOON, async || ticks(&database).await >= count).await;
    };
    reach(2).await;
    one.kill();
    reach(5).await;
    two.pause();
    reach(8).await;
    two.resume();
    let dying = ticking(Outboxd::new(&database, kafka), "every 1s", "all").failpoint("job-before-commit");
    let fourth = dying.producer();
    eventually("it dies in the middle of a firing", SOON, async || !fourth.is_running()).await;
    let now = ticks(&database).await;
    reach(now + 3).await;
    for daemon in [two, three] {
        daemon.terminate();
        assert_eq!(daemon.wait_exit().await, Some(0), "{}", daemon.log());
    }
    let _last = outboxd.producer();
    every_firing_has_one_start(&database).await;
}

#[tokio::test]
async fn a_day_without_an_agent_is_skipped_made_up_for_once_or_hour_by_hour() {
    for (misfire, expected, told) in [("skip", 0, true), ("once", 1, true), ("all", 24, false)] {
        let (database, kafka) = (database().await, Kafka::shared().await);
        // Half an hour from now, each hour: none is on time, and none falls due while this test runs.
        let minute = "select (extract(minute from clock_timestamp())::bigint + 30) % 60";
        let minute = database.count(minute).await;
        let newest = format!(
            "date_trunc('hour', clock_timestamp() - interval '{minute} min') + interval '{minute} min'"
        );
        let outboxd = ticking(Outboxd::new(&database, kafka), &format!("{minute} * * * *"), misfire);
        let before = outboxd.producer();
        is_known(&database, "tick").await;
        before.terminate();
        assert_eq!(before.wait_exit().await, Some(0));
        let a_day_ago = format!(
            "update outboxd.jobs set last_firing = {newest} - interval '24 hours' where name = 'tick'"
        );
        database.batch(&a_day_ago).await;
        let _after = outboxd.producer();
        if told {
            eventually("it is told", SOON, async || {
                results(&database, "tick").await.contains(&"missed".to_owned())
            })
            .await;
        }
        eventually("what is to run has run", SOON, async || ticks(&database).await == expected).await;
        let missed = database.count("select missed from outboxd.jobs where name = 'tick'").await;
        assert_eq!(missed, if misfire == "all" { 0 } else { 24 - expected }, "{misfire}");
        let last =
            format!("select count(*) from outboxd.jobs where name = 'tick' and last_firing = {newest}");
        assert_eq!(database.count(&last).await, 1, "{misfire}");
    }
}

#[tokio::test]
async fn a_database_that_is_away_at_the_firing_loses_none_that_is_to_be_made_up_for() {
    let (postgres, kafka) = (Postgres::private().await, Kafka::shared().await);
    let database = postgres.database().await;
    make_ticks(&database).await;
    let outboxd = ticking(Outboxd::new(&database, kafka), "every 1s", "all");
    let _daemons = [outboxd.producer(), outboxd.producer()];
    eventually("it ticks", SOON, async || ticks(&database).await >= 2).await;
    postgres.kill();
    postgres.start().await;
    let now = ticks(&database).await;
    eventually("it ticks again", SOON, async || ticks(&database).await >= now + 5).await;
    let twice = "select count(*) - count(distinct firing) from ticks";
    assert_eq!(database.count(twice).await, 0);
    let gaps =
        "select count(*) from (select firing - lag(firing) over (order by firing) as gap from ticks) gaps
        where gap <> interval '1 s'";
    assert_eq!(database.count(gaps).await, 0);
}

#[tokio::test]
async fn an_operator_runs_pauses_and_resumes_a_job_of_the_whole_cluster() {
    let (database, kafka) = (database().await, Kafka::shared().await);
    let outboxd = ticking(Outboxd::new(&database, kafka), "0 0 1 1 *", "once");
    let operator = Outboxd::without_kafka(&database).postgres_url(&database.operator_url());
    assert_eq!(operator.run(&["jobs", "run", "tick"]).await.code, 4, "nobody has it yet");
    let daemon = outboxd.producer();
    is_known(&database, "tick").await;
    for command in [&["jobs", "pause", "tick"][..], &["jobs", "run", "tick"]] {
        let ordered = operator.run(command).await;
        assert_eq!(ordered.code, 0, "{ordered:?}");
    }
    eventually("it runs, though it is paused", SOON, async || ticks(&database).await == 1).await;
    daemon.terminate();
    assert_eq!(daemon.wait_exit().await, Some(0));

    let listed = operator.run(&["jobs", "list", "--json"]).await;
    let listed: Vec<Value> = serde_json::from_str(&listed.stdout).unwrap();
    let tick = listed.iter().find(|job| job["name"] == "tick").unwrap();
    assert_eq!((&tick["state"], &tick["result"]), (&Value::from("paused"), &Value::from("done")), "{tick}");
    // Due for years, if it were not paused.
    database
        .batch("update outboxd.jobs set last_firing = last_firing - interval '3 years' where name = 'tick'")
        .await;
    let daemon = outboxd.producer();
    daemon.ready().await;
    let looks = "select count(*) from outboxd.jobs where name = 'cleanup' and runs > 0";
    operator.run(&["jobs", "run", "cleanup"]).await;
    eventually("its runner is at work", SOON, async || database.count(looks).await == 1).await;
    assert_eq!(ticks(&database).await, 1, "paused, over a restart");

    let resumed = operator.run(&["jobs", "resume", "tick"]).await;
    assert_eq!(resumed.code, 0, "{resumed:?}");
    let listed = operator.run(&["jobs", "list", "--json"]).await;
    let listed: Vec<Value> = serde_json::from_str(&listed.stdout).unwrap();
    let tick = listed.iter().find(|job| job["name"] == "tick").unwrap();
    assert_eq!(tick["next"].as_array().map(Vec::len), Some(5), "{tick}");
    let next = operator.run(&["jobs", "list", "--next"]).await.stdout;
    let next = next.lines().find(|line| line.starts_with("tick ")).unwrap();
    assert_eq!(next.matches("-01-01T00:00:00").count(), 5, "{next}");
    let history = operator.run(&["jobs", "history", "tick", "--json"]).await;
    let history: Vec<Value> = serde_json::from_str(&history.stdout).unwrap();
    assert_eq!(history.len(), 1, "what was due meanwhile is not made up for: {history:?}");
    assert!(history[0]["requested_by"].is_string(), "{history:?}");
    let audit = database.query("select command from outboxd.operations order by id", &[]).await;
    let audit: Vec<String> = audit.iter().map(|row| row.get(0)).collect();
    assert_eq!(audit, ["jobs pause", "jobs run", "jobs run", "jobs resume"]);
}

#[tokio::test]
async fn a_message_is_enqueued_with_its_firing_if_the_condition_is_true() {
    let (database, kafka) = (database().await, Kafka::shared().await);
    let topic = kafka.topic(1).await;
    let outboxd = Outboxd::new(&database, kafka)
        .set("jobs.month-end.schedule = \"@monthly\"")
        .set("jobs.month-end.when = \"select count(*) > 0 from ticks\"")
        .set(&format!(
            "jobs.month-end.action = {{ kind = \"enqueue\", topic = \"{topic}\", key = \"{{job}}\", \
             payload = '{{\"run\":\"{{job}}\",\"at\":\"{{firing}}\"}}' }}"
        ));
    let _daemon = outboxd.producer();
    is_known(&database, "month-end").await;
    outboxd.run(&["jobs", "run", "month-end"]).await;
    eventually("it is skipped", SOON, async || results(&database, "month-end").await == ["skipped"]).await;
    database.batch("insert into ticks values (now())").await;
    outboxd.run(&["jobs", "run", "month-end"]).await;
    eventually("it runs", SOON, async || results(&database, "month-end").await == ["skipped", "done"]).await;
    let records = eventually_some("it is published", SOON, async || {
        let records = kafka.read_all(&topic).await;
        (!records.is_empty()).then_some(records)
    })
    .await;
    let payload: Value = serde_json::from_slice(records[0].payload.as_deref().unwrap()).unwrap();
    let run = database
        .query_one("select firing from outboxd.job_runs where job = 'month-end' and result = 'done'", &[])
        .await;
    let firing: chrono::DateTime<chrono::Utc> = run.get(0);
    assert_eq!(payload["run"], "month-end");
    assert_eq!(payload["at"].as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>().unwrap(), firing);
}

#[tokio::test]
async fn a_job_runs_once_for_each_time_that_its_condition_becomes_true() {
    let (database, kafka) = (database().await, Kafka::shared().await);
    database
        .batch(
            "create table stock (amount integer); insert into stock values (5); grant all on stock to public",
        )
        .await;
    let outboxd = Outboxd::new(&database, kafka)
        .set("jobs.low.on = \"select amount < 3 from stock\"")
        .set("jobs.low.schedule = \"every 1s\"")
        .set("jobs.low.action = { kind = \"sql\", statement = \"insert into ticks (firing) values ($1)\" }");
    let _daemons = [outboxd.producer(), outboxd.producer()];
    is_known(&database, "low").await;
    let looked = async |times: i64| {
        let last = "select extract(epoch from last_firing)::bigint from outboxd.jobs where name = 'low'";
        let before = database.count(last).await;
        eventually("it is asked", SOON, async || database.count(last).await >= before + times).await;
    };
    looked(2).await;
    assert_eq!(ticks(&database).await, 0);
    database.batch("update stock set amount = 2").await;
    eventually("it runs", SOON, async || ticks(&database).await == 1).await;
    looked(3).await;
    assert_eq!(ticks(&database).await, 1, "it was true before");
    database.batch("update stock set amount = 9").await;
    looked(2).await;
    database.batch("update stock set amount = 1").await;
    eventually("it runs again", SOON, async || ticks(&database).await == 2).await;
    assert_eq!(results(&database, "low").await, ["done", "done"], "asking leaves no trace");
}

#[tokio::test]
async fn what_a_statement_may_not_do_or_say_fails_the_run_and_uses_the_firing_up() {
    let (database, kafka) = (database().await, Kafka::shared().await);
    database.batch("create table secret (x integer)").await;
    let job = |outboxd: Outboxd, name: &str, keys: &[&str]| {
        keys.iter().fold(outboxd.set(&format!("jobs.{name}.schedule = \"@yearly\"")), |outboxd, key| {
            outboxd.set(&format!("jobs.{name}.{key}"))
        })
    };
    let sql = |statement: &str| format!("action = {{ kind = \"sql\", statement = \"{statement}\" }}");
    let outboxd = Outboxd::new(&database, kafka);
    let outboxd = job(outboxd, "forbidden", &[&sql("delete from secret")]);
    // Not a wait: a statement that its time limit ends.
    let outboxd = job(outboxd, "slow", &[&sql("select pg_sleep(20)"), "statement_timeout = \"100ms\""]);
    let outboxd = job(outboxd, "vague", &[&sql("select 1"), "when = \"select * from (values (1, 2)) v\""]);
    let outboxd = job(outboxd, "as-nobody", &[&sql("select 1"), "run_as = \"nobody-here\""]);
    let outboxd = job(
        outboxd,
        "half",
        &[&sql("insert into ticks select now() from generate_series(-1, 1) n where 1 / n > -9")],
    );
    let daemon = outboxd.producer();
    let jobs = ["forbidden", "slow", "vague", "as-nobody", "half"];
    for name in jobs {
        is_known(&database, name).await;
        assert_eq!(outboxd.run(&["jobs", "run", name]).await.code, 0);
    }
    for name in jobs {
        let expected = if name == "slow" { "cut" } else { "failed" };
        eventually(&format!("{name} is over"), SOON, async || results(&database, name).await == [expected])
            .await;
    }
    for words in
        ["permission denied", "statement timeout", "must give one boolean", "nobody-here", "division by zero"]
    {
        let found = "select count(*) from outboxd.job_runs where error like '%' || $1 || '%'";
        assert_eq!(database.query_one(found, &[&words]).await.get::<_, i64>(0), 1, "{words}");
        daemon.wait_for_line(words).await;
    }
    assert_eq!(ticks(&database).await, 0, "what fails leaves nothing behind");
    let (_, metrics) = daemon.get("/metrics").await.unwrap();
    for counted in [
        "outboxd_job_runs_total{job=\"half\",result=\"failed\"} 1",
        "outboxd_job_runs_total{job=\"slow\",result=\"cut\"} 1",
    ] {
        assert!(metrics.contains(counted), "{metrics}");
    }
}

#[tokio::test]
async fn a_program_is_run_again_if_its_agent_dies_and_a_server_is_told_the_firing() {
    let (database, kafka) = (database().await, Kafka::shared().await);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/report", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = String::new();
        while !request.contains('}') {
            let mut chunk = [0; 4096];
            let read = stream.read(&mut chunk).await.unwrap();
            request.push_str(&String::from_utf8_lossy(&chunk[..read]));
        }
        stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await.unwrap();
        // What the client still sends would break the connection before it has read the answer.
        stream.shutdown().await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
        request
    });
    let folder = tempfile::tempdir().unwrap();
    let told = folder.path().join("told");
    let set = |outboxd: Outboxd| {
        outboxd
            .set("jobs.call.schedule = \"@yearly\"")
            .set(&format!("jobs.call.action = {{ kind = \"http\", url = \"{url}\" }}"))
            .set("jobs.note.schedule = \"@yearly\"")
            .set(&format!(
                "jobs.note.action = {{ kind = \"exec\", command = [\"sh\", \"-c\", \"echo $OUTBOXD_JOB $OUTBOXD_FIRING >> {}\"] }}",
                told.display()
            ))
    };
    let outboxd = set(Outboxd::new(&database, kafka));
    let dying = set(Outboxd::new(&database, kafka)).failpoint("job-after-claim").producer();
    is_known(&database, "note").await;
    // What is built in may be what it dies of.
    eventually("it dies with a claim", SOON, async || {
        outboxd.run(&["jobs", "run", "note"]).await;
        !dying.is_running()
    })
    .await;
    // Its leases would end by themselves.
    database.batch("update outboxd.jobs set busy_until = clock_timestamp() where lease is not null").await;
    let _daemon = outboxd.producer();
    // Its shell makes the file before it writes.
    let line = async || std::fs::read_to_string(&told).ok().filter(|text| text.ends_with('\n'));
    let note = eventually_some("it is noted", SOON, line).await;
    assert!(note.starts_with("note 20"), "{note}");
    outboxd.run(&["jobs", "run", "call"]).await;
    let request = server.await.unwrap().to_lowercase();
    for header in [
        "outboxd-job: call\r\n",
        "outboxd-firing: 20",
        "idempotency-key: call/20",
        "content-type: application/json",
    ] {
        assert!(request.contains(header), "{request}");
    }
    let ended = async || Some(results(&database, "call").await).filter(|results| !results.is_empty());
    assert_eq!(eventually_some("it has ended", SOON, ended).await, ["done"]);
}

#[tokio::test]
async fn a_job_of_each_agent_runs_on_each() {
    let (database, kafka) = (database().await, Kafka::shared().await);
    let outboxd =
        ticking(Outboxd::new(&database, kafka), "@yearly", "once").set("jobs.tick.scope = \"agent\"");
    let daemons = [outboxd.producer(), outboxd.producer(), outboxd.producer()];
    for daemon in &daemons {
        daemon.ready().await;
    }
    is_known(&database, "tick").await;
    eventually("each has looked at the board, and runs it", SOON, async || {
        outboxd.run(&["jobs", "run", "tick"]).await;
        let agents =
            "select count(distinct agent) from outboxd.job_runs where job = 'tick' and result = 'done'";
        database.count(agents).await == 3
    })
    .await;
}
