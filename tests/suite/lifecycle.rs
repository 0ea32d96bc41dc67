//! From start to end: daemons wait for what is not there yet, drain, abort, and outlive what they stand on.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rdkafka::Offset;
use tempfile::TempDir;

use crate::support::{
    Daemon, Database, Direction, Kafka, Outboxd, Postgres, Proxy, Record, eventually, eventually_some,
};

const SOON: Duration = Duration::from_secs(30);

/// Less than anything lasts that could be waited for: a drain, a lease, a handler.
const AT_ONCE: Duration = Duration::from_secs(10);

/// After a broker or a database was away: clients try again at growing distances.
const RECOVERY: Duration = Duration::from_secs(60);

async fn insert(database: &Database, topic: &str, numbers: std::ops::Range<i64>) {
    let sql = "insert into outboxd.messages (topic, key, payload)
        select $1, 'key-' || n % 7, convert_to(n::text, 'UTF8') from generate_series($2::bigint, $3::bigint - 1) as n";
    database.execute(sql, &[&topic, &numbers.start, &numbers.end]).await;
}

fn numbers(records: &[Record]) -> Vec<i64> {
    records.iter().map(|record| record.payload_text().parse().unwrap()).collect()
}

async fn arrive(kafka: &Kafka, topic: &str, count: i64) -> Vec<i64> {
    eventually_some(&format!("{count} messages arrive"), RECOVERY, async || {
        let found = numbers(&kafka.read_all(topic).await);
        let distinct: HashSet<_> = found.iter().copied().collect();
        (distinct == (0..count).collect()).then_some(found)
    })
    .await
}

/// Per key the first appearances are in order.
fn assert_in_order(records: &[Record]) {
    let mut last: HashMap<String, i64> = HashMap::new();
    let mut seen = HashSet::new();
    for record in records {
        let number = record.payload_text().parse().unwrap();
        if seen.insert(number) {
            let before = last.insert(record.key_text(), number);
            assert!(before.is_none_or(|before| before < number), "{number} after {before:?}");
        }
    }
}

async fn owned(database: &Database) -> i64 {
    database.count("select count(*) from outboxd.lane_status where owned").await
}

async fn handled(database: &Database) -> i64 {
    database.count("select count(*) from outboxd.handled").await
}

fn count_lines(daemon: &Daemon, text: &str) -> usize {
    daemon.log().lines().filter(|line| line.contains(text)).count()
}

/// By its own clock: how soon a signal arrives and a process is gone hangs on the machine.
async fn drained_for(daemon: &Daemon) -> Duration {
    let began = daemon.said_at("draining for at most").await;
    (daemon.said_at("the drain ended with work left").await - began).to_std().unwrap()
}

async fn is_alive_but_waits_for(daemon: &Daemon, what: &str) {
    eventually(&format!("/readyz names {what}"), SOON, async || {
        assert!(daemon.is_running());
        daemon.get("/readyz").await.is_some_and(|(status, body)| status == 503 && body.contains(what))
    })
    .await;
    assert_eq!(daemon.get("/healthz").await.unwrap().0, 200);
}

/// A handler that says when it has begun, and goes on when it may.
struct Gate(TempDir);

impl Gate {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn handler(&self) -> String {
        let (begun, open) = (self.path("begun"), self.path("open"));
        let (begun, open) = (begun.display(), open.display());
        // Where its daemon was killed, it ends with the test.
        let script = format!("touch {begun}; until test -e {open} || ! test -e {begun}; do sleep 0.05; done");
        format!("kind = \"exec\"\ncommand = [\"sh\", \"-c\", \"{script}\"]\ntimeout = \"5m\"")
    }

    async fn begun(&self) {
        eventually("the handler runs", SOON, async || self.path("begun").exists()).await;
    }

    fn open(&self) {
        std::fs::write(self.path("open"), "").unwrap();
    }
}

#[tokio::test]
async fn an_idle_producer_drains_at_once_and_another_takes_over() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let database = postgres.database().await;
    let topic = kafka.topic(1).await;
    // Only a lane that was given up can be had before this lease ends.
    let outboxd = Outboxd::new(&database, kafka).set("producer.lease = \"1m\"");
    let first = outboxd.producer();
    first.ready().await;
    eventually("it owns the lanes", SOON, async || owned(&database).await == 3).await;
    let standby = outboxd.producer();
    standby.ready().await;

    let asked = Instant::now();
    first.terminate();
    assert_eq!(first.wait_exit().await, Some(0));
    assert!(asked.elapsed() < AT_ONCE, "an idle drain took {:?}", asked.elapsed());
    eventually("the other one owns the lanes", AT_ONCE, async || owned(&database).await == 3).await;
    insert(&database, &topic, 0..1).await;
    arrive(kafka, &topic, 1).await;

    standby.terminate();
    assert_eq!(standby.wait_exit().await, Some(0));
    assert_eq!(owned(&database).await, 0);
    let started = Instant::now();
    let third = outboxd.producer();
    third.wait_for_line("lane acquired").await;
    assert!(started.elapsed() < AT_ONCE, "a new one took {:?}", started.elapsed());
}

#[tokio::test]
async fn a_producer_that_drains_under_load_loses_and_repeats_nothing() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let database = postgres.database().await;
    let topic = kafka.topic(3).await;
    let outboxd = Outboxd::new(&database, kafka).set("producer.lease = \"1m\"");
    let mut daemon = outboxd.producer();
    daemon.ready().await;
    let count = 20_000;
    let load = async {
        let client = database.connect_app().await;
        let sql = "insert into outboxd.messages (topic, key, payload)
            select $1, 'key-' || n % 7, convert_to(n::text, 'UTF8') from generate_series($2::bigint, $2 + 49) as n";
        for begin in (0..count).step_by(50) {
            client.execute(sql, &[&topic, &begin]).await.unwrap();
        }
    };
    let drains = async {
        for round in 1..=3 {
            let sent = async || kafka.read_all(&topic).await.len();
            let before = sent().await;
            eventually("it is at work", SOON, async || sent().await > before || round > 1).await;
            daemon.terminate();
            assert_eq!(daemon.wait_exit().await, Some(0));
            daemon = outboxd.producer();
            daemon.wait_for_line("lane acquired").await;
        }
    };
    tokio::join!(load, drains);
    let found = arrive(kafka, &topic, count).await;
    assert_eq!(found.len(), usize::try_from(count).unwrap(), "a clean drain repeats nothing");
    assert_in_order(&kafka.read_all(&topic).await);
}

#[tokio::test]
async fn a_consumer_finishes_its_message_records_it_and_leaves_the_group() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let database = postgres.database().await;
    let topic = kafka.topic(1).await;
    let gate = Gate::new();
    let outboxd = Outboxd::new(&database, kafka)
        .set(&format!("groups.{topic}.ordering = \"partition\""))
        .set("kafka.consumer.\"session.timeout.ms\" = 300000")
        .group(&topic, &topic, &gate.handler());
    let daemon = outboxd.consumer(&[&topic]);
    daemon.ready().await;
    kafka.produce(&topic, None, Some(b"0"), &[]).await;
    kafka.produce(&topic, None, Some(b"1"), &[]).await;
    gate.begun().await;
    daemon.terminate();
    is_alive_but_waits_for(&daemon, "no new work is taken on").await;
    assert_eq!(handled(&database).await, 0);
    gate.open();
    assert_eq!(daemon.wait_exit().await, Some(0));
    assert_eq!(handled(&database).await, 1, "the running message, and no other, was finished");
    assert_eq!(kafka.committed(&topic, &topic).await.unwrap(), Offset::Offset(1));

    let next = outboxd.consumer(&[&topic]);
    // A member that had not left would be waited for until its session ends.
    eventually("the other message is handled", SOON, async || handled(&database).await == 2).await;
    assert!(next.is_running());
}

#[tokio::test]
async fn a_consumer_whose_handler_hangs_ends_in_time_and_names_what_is_left() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let database = postgres.database().await;
    let topic = kafka.topic(1).await;
    let gate = Gate::new();
    let daemon = Outboxd::new(&database, kafka)
        .group(&topic, &topic, &gate.handler())
        .set("agent.drain_timeout = \"1s\"")
        .consumer(&[&topic]);
    daemon.ready().await;
    kafka.produce(&topic, None, Some(b"x"), &[]).await;
    gate.begun().await;
    daemon.terminate();
    assert_eq!(daemon.wait_exit().await, Some(1));
    let drained = drained_for(&daemon).await;
    assert!((1..4).contains(&drained.as_secs()), "{drained:?}");
    let named = daemon.wait_for_line("the drain ended with work left").await;
    assert!(named.contains(&format!("{topic}[0]: 1 messages unfinished")), "{named}");
    assert_eq!(handled(&database).await, 0);
    let status = "select count(*) from outboxd.agents where status = 'stopped'";
    assert_eq!(database.count(status).await, 1);
}

#[tokio::test]
async fn a_producer_whose_broker_is_frozen_ends_in_time_and_another_delivers_what_is_left() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::private().await);
    let database = postgres.database().await;
    let topic = kafka.topic(1).await;
    let daemon = Outboxd::new(&database, &kafka).set("agent.drain_timeout = \"1s\"").producer();
    daemon.ready().await;
    insert(&database, &topic, 0..1).await;
    arrive(&kafka, &topic, 1).await;
    kafka.pause();
    insert(&database, &topic, 1..4).await;
    eventually("a window is open", SOON, async || {
        database.count("select count(*) from outboxd.lanes where target is not null").await == 1
    })
    .await;
    daemon.terminate();
    assert_eq!(daemon.wait_exit().await, Some(1));
    let drained = drained_for(&daemon).await;
    assert!((1..4).contains(&drained.as_secs()), "{drained:?}");
    daemon.wait_for_line("the drain ended with work left").await;

    kafka.resume();
    let _next = Outboxd::new(&database, &kafka).producer();
    arrive(&kafka, &topic, 4).await;
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let database = postgres.database().await;
    let proxy = Proxy::to(postgres.port()).await;
    for (code, database_answers) in [(143, true), (130, true), (143, false)] {
        // What is cut short stays a member of its group for a while.
        let topic = kafka.topic(1).await;
        let gate = Gate::new();
        let daemon = Outboxd::new(&database, kafka)
            .postgres_url(&proxy.reroute(&database.agent_url()))
            .group(&topic, &topic, &gate.handler())
            .consumer(&[&topic]);
        daemon.ready().await;
        kafka.produce(&topic, None, Some(b"x"), &[]).await;
        gate.begun().await;
        if !database_answers {
            proxy.swallow(Direction::Answers);
        }
        let signal = || if code == 143 { daemon.terminate() } else { daemon.interrupt() };
        signal();
        daemon.wait_for_line("draining for at most").await;
        let again = Instant::now();
        signal();
        assert_eq!(daemon.wait_exit().await, Some(code));
        assert!(again.elapsed() < AT_ONCE, "{code}: {:?}", again.elapsed());
        assert!(daemon.log().contains(&format!("{topic}[0]: 1 messages unfinished")));
        proxy.heal();
    }
}

#[tokio::test]
async fn a_daemon_that_waits_to_start_is_ended_by_one_signal() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let database = postgres.database().await;
    let proxy = Proxy::to(postgres.port()).await;
    proxy.swallow(Direction::Answers);
    let daemon =
        Outboxd::new(&database, kafka).postgres_url(&proxy.reroute(&database.agent_url())).producer();
    is_alive_but_waits_for(&daemon, "PostgreSQL").await;
    let asked = Instant::now();
    daemon.terminate();
    assert_eq!(daemon.wait_exit().await, Some(0));
    assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
}

#[tokio::test]
async fn a_daemon_waits_for_a_postgres_that_is_not_there_yet() {
    let (postgres, kafka) = (Postgres::private().await, Kafka::shared().await);
    let database = postgres.database().await;
    let topic = kafka.topic(1).await;
    postgres.stop().await;
    let outboxd = Outboxd::new(&database, kafka).group(&topic, &topic, "kind = \"log\"");
    let daemons = [outboxd.producer(), outboxd.consumer(&[&topic])];
    for daemon in &daemons {
        is_alive_but_waits_for(daemon, "PostgreSQL").await;
    }
    // Long enough for several tries.
    let waited = Instant::now();
    eventually("time passes", SOON, async || waited.elapsed() > Duration::from_secs(5)).await;
    for daemon in &daemons {
        let told = count_lines(daemon, "waiting: ");
        assert!((1..=2).contains(&told), "it was told {told} times:\n{}", daemon.log());
    }
    postgres.start().await;
    for daemon in &daemons {
        daemon.ready().await;
    }
    insert(&database, &topic, 0..10).await;
    arrive(kafka, &topic, 10).await;
    eventually("all are handled", SOON, async || handled(&database).await == 10).await;
}

#[tokio::test]
async fn idle_daemons_notice_that_postgres_went_away_and_came_back() {
    let (postgres, kafka) = (Postgres::private().await, Kafka::shared().await);
    let database = postgres.database().await;
    let topic = kafka.topic(1).await;
    // No heartbeat tells them: the next one comes when this test is over.
    let outboxd = Outboxd::new(&database, kafka)
        .set("agent.heartbeat = \"10m\"")
        .set("agent.inactive_after = \"1h\"")
        .group(&topic, &topic, "kind = \"log\"");
    let daemons = [outboxd.producer(), outboxd.consumer(&[&topic])];
    for daemon in &daemons {
        daemon.ready().await;
    }
    postgres.stop().await;
    for daemon in &daemons {
        is_alive_but_waits_for(daemon, "PostgreSQL at").await;
    }
    postgres.start().await;
    for daemon in &daemons {
        daemon.ready().await;
    }
}

#[tokio::test]
async fn a_daemon_waits_for_its_schema_and_names_the_command() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let database = postgres.empty_database().await;
    let topic = kafka.topic(1).await;
    let outboxd = Outboxd::new(&database, kafka);
    let daemon = outboxd.producer();
    is_alive_but_waits_for(&daemon, "outboxd migrate").await;
    let migrated = Outboxd::new(&database, kafka).owner().run(&["migrate"]).await;
    assert_eq!(migrated.code, 0, "{migrated:?}");
    daemon.ready().await;
    // It may have looked in the middle of the migration too.
    assert_eq!(count_lines(&daemon, "at version 0 of"), 1, "{}", daemon.log());
    insert(&database, &topic, 0..10).await;
    arrive(kafka, &topic, 10).await;
}

#[tokio::test]
async fn a_daemon_waits_for_a_kafka_that_is_not_there_yet() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::private().await);
    let database = postgres.database().await;
    let topic = kafka.topic(1).await;
    kafka.stop().await;
    insert(&database, &topic, 0..10).await;
    let outboxd = Outboxd::new(&database, &kafka).group(&topic, &topic, "kind = \"log\"");
    let daemons = [outboxd.producer(), outboxd.consumer(&[&topic])];
    for daemon in &daemons {
        is_alive_but_waits_for(daemon, "Kafka").await;
    }
    let waited = Instant::now();
    eventually("time passes", SOON, async || waited.elapsed() > Duration::from_secs(15)).await;
    for daemon in &daemons {
        let told = count_lines(daemon, "\"WARN\"") + count_lines(daemon, "\"ERROR\"");
        assert!((1..=6).contains(&told), "it was told {told} times:\n{}", daemon.log());
    }
    kafka.start().await;
    arrive(&kafka, &topic, 10).await;
    eventually("all are handled", RECOVERY, async || handled(&database).await == 10).await;
    for daemon in &daemons {
        daemon.ready().await;
    }
}

#[tokio::test]
async fn everything_is_delivered_through_a_restart_of_postgres_and_a_crash_of_kafka() {
    let (postgres, kafka) = (Postgres::private().await, Kafka::private().await);
    let database = postgres.database().await;
    let topic = kafka.topic(3).await;
    let outboxd = Outboxd::new(&database, &kafka).set("producer.lease = \"2s\"").group(
        &topic,
        &topic,
        "kind = \"log\"",
    );
    let daemons = [outboxd.producer(), outboxd.consumer(&[&topic])];
    for daemon in &daemons {
        daemon.ready().await;
    }
    let over = tokio_util::sync::CancellationToken::new();
    let load = async {
        let mut next = 0;
        while !over.is_cancelled() {
            // Only what the application knows to be committed counts: it asks again what failed.
            let sql = "insert into outboxd.messages (topic, key, payload)
                select $1, 'key-' || n % 7, convert_to(n::text, 'UTF8')
                from generate_series($2::bigint, $2 + 9) as n
                where not exists (select from outboxd.messages where payload = convert_to($2::text, 'UTF8'))";
            let inserted = async {
                let client = crate::support::database::try_connect(&database.url).await?;
                client.execute(sql, &[&topic, &next]).await
            };
            match inserted.await {
                Ok(_) => next += 10,
                // The database is away: an application that tries again, until it is back.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        next
    };
    let faults = async {
        let grows = async |what: &str| {
            let before = handled(&database).await;
            eventually(what, RECOVERY, async || handled(&database).await > before + 50).await;
        };
        grows("messages are handled").await;
        postgres.stop().await;
        for daemon in &daemons {
            is_alive_but_waits_for(daemon, "PostgreSQL").await;
        }
        postgres.start().await;
        grows("messages are handled after the restart of Postgres").await;
        kafka.kill();
        for daemon in &daemons {
            is_alive_but_waits_for(daemon, "Kafka").await;
        }
        kafka.start().await;
        grows("messages are handled after the crash of Kafka").await;
        postgres.kill();
        postgres.start().await;
        grows("messages are handled after the crash of Postgres").await;
        over.cancel();
    };
    let (count, ()) = tokio::join!(load, faults);
    arrive(&kafka, &topic, count).await;
    assert_in_order(&kafka.read_all(&topic).await);
    eventually("all are handled", RECOVERY, async || handled(&database).await == count).await;
    for daemon in &daemons {
        daemon.ready().await;
        assert!(daemon.is_running());
    }
    assert_eq!(database.count("select count(*) from outboxd.agents").await, 2, "no process was restarted");
}

#[tokio::test]
async fn frozen_daemons_go_on_when_they_are_woken() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let database = postgres.database().await;
    let topic = kafka.topic(1).await;
    let outboxd =
        Outboxd::new(&database, kafka).set("producer.lease = \"1s\"").group(&topic, &topic, "kind = \"log\"");
    let daemons = [outboxd.producer(), outboxd.consumer(&[&topic])];
    for daemon in &daemons {
        daemon.ready().await;
    }
    insert(&database, &topic, 0..100).await;
    eventually("all are handled", SOON, async || handled(&database).await == 100).await;
    for daemon in &daemons {
        daemon.pause();
    }
    insert(&database, &topic, 100..200).await;
    eventually("the lease ends", SOON, async || owned(&database).await == 0).await;
    for daemon in &daemons {
        daemon.resume();
    }
    arrive(kafka, &topic, 200).await;
    eventually("all are handled", RECOVERY, async || handled(&database).await == 200).await;
    for daemon in &daemons {
        daemon.ready().await;
    }
}

#[tokio::test]
async fn health_answers_while_the_database_is_silent() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let database = postgres.database().await;
    let proxy = Proxy::to(postgres.port()).await;
    let daemon = Outboxd::new(&database, kafka)
        .postgres_url(&proxy.reroute(&database.agent_url()))
        .set("agent.heartbeat = \"1s\"")
        .producer();
    daemon.ready().await;
    let (status, lines) = daemon.get("/readyz?verbose").await.unwrap();
    assert_eq!(status, 200);
    for check in ["database", "schema", "heartbeat", "draining", "loop", "kafka", "lanes", "work"] {
        assert!(lines.lines().any(|line| line == format!("[+] {check} ok")), "{lines}");
    }
    let (status, body) = daemon.get("/readyz").await.unwrap();
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &body["status"], &body["checks"]["database"]), (200, &"ready".into(), &"ok".into()));
    assert_eq!(daemon.get("/nothing").await.unwrap().0, 404);
    assert_eq!(daemon.get("/healthz/more").await.unwrap().0, 404);

    proxy.swallow(Direction::Answers);
    let not_ready = eventually_some("it is not ready", SOON, async || {
        let asked = Instant::now();
        assert_eq!(daemon.get("/healthz").await.unwrap().0, 200);
        let (status, lines) = daemon.get("/readyz?verbose").await.unwrap();
        // Who asks the database waits for five seconds.
        assert!(asked.elapsed() < Duration::from_secs(4), "it asked the database: {:?}", asked.elapsed());
        (status == 503 && lines.contains("[-] database: ")).then_some(lines)
    })
    .await;
    assert!(not_ready.contains("[-] heartbeat: the last one arrived"), "{not_ready}");
    proxy.heal();
    daemon.ready().await;
}

#[tokio::test]
async fn a_log_that_nobody_reads_any_more_does_not_keep_it_from_draining() {
    let database = Postgres::shared().await.database().await;
    let outboxd = Outboxd::new(&database, Kafka::shared().await);
    let mut command = tokio::process::Command::from(outboxd.command(&["producer", "--log", "debug"]));
    let mut daemon = command.stderr(std::process::Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    eventually("it has joined", SOON, async || {
        database.count("select count(*) from outboxd.agents where status = 'active'").await == 1
    })
    .await;
    drop(daemon.stderr.take());
    let pid = rustix::process::Pid::from_raw(i32::try_from(daemon.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended = tokio::time::timeout(SOON, daemon.wait()).await.expect("it ends").unwrap();
    assert_eq!(ended.code(), Some(0));
}
