//! `outboxd bench`: what it says is sane, what it leaves behind is nothing.

use std::time::Duration;

use outboxd::pg::benching;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rustix::process::Signal;
use serde_json::Value;

use crate::support::process::Process;
use crate::support::{Database, Kafka, Outboxd, Postgres, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

async fn databases(database: &Database) -> i64 {
    database.count(r"select count(*) from pg_database where datname like 'outboxd\_bench\_%'").await
}

async fn topics(kafka: &Kafka) -> usize {
    let consumer: BaseConsumer = kafka.client_config().create().unwrap();
    let all =
        tokio::task::spawn_blocking(move || consumer.fetch_metadata(None, PATIENCE).unwrap()).await.unwrap();
    all.topics().iter().filter(|topic| topic.name().starts_with("outboxd_bench_")).count()
}

async fn nothing_is_left(database: &Database, kafka: &Kafka) {
    assert_eq!(databases(database).await, 0);
    // A broker answers before the last of a topic is gone.
    eventually("the topics are gone", PATIENCE, async || topics(kafka).await == 0).await;
}

fn count(report: &Value, path: &str) -> u64 {
    report.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path} of {report}"))
}

fn number(report: &Value, path: &str) -> f64 {
    report.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path} of {report}"))
}

/// One test: each run would see what the others have not removed yet.
#[tokio::test]
async fn a_benchmark_says_what_it_measured_and_leaves_nothing_behind() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let database = postgres.database().await;
    let outboxd = Outboxd::new(&database, kafka).owner().set("producer.lease = \"1s\"");
    let run = async |arguments: &[&str]| -> Value {
        let output = outboxd.run(&[&["bench"], arguments, &["--json"]].concat()).await;
        assert_eq!(output.code, 0, "{output:?}");
        assert_eq!(output.stderr, "");
        nothing_is_left(&database, kafka).await;
        serde_json::from_str(&output.stdout).unwrap()
    };

    let scenarios = ["--scenario", "held-transaction,held-snapshot,late-commit,large-backlog"];
    let sizes = ["--messages", "5000", "--rounds", "1", "--late", "5000", "--large", "5000"];
    let relay = run(&[&["relay"], &sizes[..], &scenarios[..]].concat()).await;
    for side in ["/relay", "/bound", "/scenarios/0/relay", "/scenarios/1/relay", "/scenarios/2/relay"] {
        assert_eq!(count(&relay, &format!("{side}/records")), 5000, "{side}");
        assert_eq!(count(&relay, &format!("{side}/lost")), 0, "{side}");
        assert!(number(&relay, &format!("{side}/messages_per_second")) > 100.0, "{side}");
        assert!(number(&relay, &format!("{side}/bytes_per_second")) > 30_000.0, "{side}");
    }
    assert!(number(&relay, "/ratio") > 0.0);
    assert!(number(&relay, "/relay/peak_memory_bytes") > 1e6);

    let latency = run(&["latency", "--rate", "50", "--warm-up", "1", "--seconds", "1"]).await;
    assert!((40..=60).contains(&count(&latency, "/messages")), "{latency}");
    assert_eq!(count(&latency, "/lost"), 0);
    let (p50, max) =
        (number(&latency, "/commit_to_arrival_ms/p50"), number(&latency, "/commit_to_arrival_ms/max"));
    assert!(0.0 < p50 && p50 <= max, "{latency}");
    let to = |end: &str| number(&latency, &format!("/send_to_{end}_ms/p50"));
    assert!(0.0 < to("ack") && 0.0 < to("arrival"), "{latency}");

    let insert = run(&["insert", "--rate", "50", "--seconds", "1", "--rounds", "1"]).await;
    assert!(count(&insert, "/published") > 50 && count(&insert, "/lost") == 0, "{insert}");
    assert_eq!(count(&insert, "/outbox/errors") + count(&insert, "/plain/errors"), 0);

    let takeover = run(&["takeover", "--rate", "50", "--rounds", "1"]).await;
    assert_eq!((count(&takeover, "/lost"), count(&takeover, "/out_of_order")), (0, 0), "{takeover}");
    assert!(number(&takeover, "/hand_over_ms/0") > 0.0 && number(&takeover, "/takeover_ms/0") > 0.0);

    let before = ["--handled", "2000", "--operations", "1000"];
    let consume = run(&[&["consume", "--messages", "2000", "--rounds", "1"][..], &before].concat()).await;
    assert!(
        number(&consume, "/whole/handled_per_second") > 100.0 && count(&consume, "/lost") == 0,
        "{consume}"
    );
    assert!(number(&consume, "/beside_defaults/reading_per_second") > 100.0, "{consume}");
    assert_eq!((count(&consume, "/before/handled"), count(&consume, "/before/operations")), (2000, 1000));

    let idle = run(&["idle", "--seconds", "1"]).await;
    assert!(number(&idle, "/cpu_percent") < 100.0);
    assert!(
        number(&idle, "/asking_cpu_percent") < 100.0 && number(&idle, "/asking_session_cpu_percent") < 100.0
    );

    let mut command = outboxd.command(&["bench", "idle"]);
    let log = tempfile::NamedTempFile::new().unwrap();
    let interrupted = Process::start("outboxd bench", &mut command, log.path(), "KILL");
    eventually("it is at work", PATIENCE, async || databases(&database).await > 0).await;
    interrupted.signal(Signal::INT);
    assert_eq!(interrupted.ended(PATIENCE).await.code(), Some(1));
    assert!(interrupted.log().contains("interrupted"));
    nothing_is_left(&database, kafka).await;
}

#[tokio::test]
async fn what_was_done_before_lies_in_the_leaves_of_the_day() {
    let database = Postgres::shared().await.database().await;
    let client = database.connect().await;
    benching::make_day(&client).await.unwrap();
    for (first, last) in [(1, 5_000), (5_001, 12_000)] {
        benching::fill_evidence(&client, first, last, 12_000).await.unwrap();
        benching::fill_operations(&client, first, last).await.unwrap();
    }
    benching::settle_evidence(&client).await.unwrap();
    let leaves = "select count(*) filter (where rows > 900), sum(rows)::bigint
        from (select count(*) as rows from outboxd.handled where tableoid <> 'outboxd.handled_default'::regclass
          group by tableoid) leaves";
    let leaves = database.query_one(leaves, &[]).await;
    assert_eq!(leaves.get::<_, i64>(1), 12_000, "none is of another day");
    assert!(leaves.get::<_, i64>(0) >= 10, "of 22 hours in leaves of two");
    assert_eq!(database.count("select count(*) from outboxd.idempotency_keys").await, 12_000);
}

#[tokio::test]
async fn who_may_make_no_database_is_told_so() {
    let database = Postgres::shared().await.database().await;
    let output = Outboxd::new(&database, Kafka::shared().await).run(&["bench", "idle"]).await;
    assert_eq!(output.code, 1);
    assert!(output.stderr.contains("createdb"), "{}", output.stderr);
}

#[tokio::test]
async fn its_statements_fit_the_schema() {
    let database = Postgres::shared().await.database().await;
    let owner = database.connect().await;
    benching::make_plain_table(&owner).await.unwrap();
    for (name, sql) in benching::SQL {
        if let Err(error) = owner.prepare(sql).await {
            panic!("{name}: {error:?}");
        }
    }
}
