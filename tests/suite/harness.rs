//! The tests' own tools do what they say: a tool that does not would let every promise pass.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::ledger::{self, Order};
use crate::support::process::Process;
use crate::support::{
    Daemon, Direction, Kafka, Outboxd, PASSWORD, Postgres, Proxy, Record, database, eventually,
    eventually_some,
};

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_database_is_migrated_and_its_people_may_do_what_their_roles_allow() {
    let postgres = Postgres::shared().await;
    let (database, other) = (postgres.database().await, postgres.database().await);
    let app = database.connect_app().await;
    app.execute("insert into outboxd.messages (topic, payload) values ('orders', 'x')", &[]).await.unwrap();
    let refused = app.query("select payload from outboxd.messages", &[]).await.unwrap_err();
    assert_eq!(refused.code().unwrap().code(), "42501", "{refused:?}");
    for url in [database.agent_url(), database.operator_url()] {
        let client = database::connect(&url).await;
        let rows = client.query("select payload from outboxd.messages", &[]).await.unwrap();
        assert_eq!(rows.len(), 1, "{url}");
    }
    let reader = database::connect(&database.reader_url()).await;
    reader.query("select * from outboxd.lane_status", &[]).await.unwrap();
    assert_eq!(database.count("select count(*) from outboxd.messages").await, 1);
    assert_eq!(other.count("select count(*) from outboxd.messages").await, 0, "each test has its own");
}

#[tokio::test]
async fn a_wrong_password_is_refused_and_the_certificate_is_made_out_for_localhost() {
    let postgres = Postgres::shared().await;
    let database = postgres.database().await;
    let refused =
        database::try_connect(&database.agent_url().replace(PASSWORD, "wrong")).await.err().unwrap();
    assert_eq!(refused.code().unwrap().code(), "28P01", "{refused:?}");

    let verify = |host: &str| {
        let mut psql = Command::new("psql");
        psql.env("PGSSLROOTCERT", postgres.root_cert()).env("PGPASSWORD", PASSWORD);
        let (port, name) = (postgres.port(), &database.name);
        psql.arg(format!(
            "host={host} hostaddr=127.0.0.1 port={port} user=agent dbname={name} sslmode=verify-full"
        ));
        psql.args(["-c", "select"]).output().unwrap()
    };
    let trusted = verify("localhost");
    assert!(trusted.status.success(), "{}", String::from_utf8_lossy(&trusted.stderr));
    assert!(!verify("elsewhere").status.success());
}

#[tokio::test]
async fn a_database_is_gone_when_its_test_is_over() {
    let postgres = Postgres::shared().await;
    let watcher = postgres.empty_database().await;
    let gone = postgres.database().await;
    let name = gone.name.clone();
    drop(gone);
    eventually("it is gone", SOON, async || {
        watcher.query("select from pg_database where datname = $1", &[&name]).await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_killed_postgres_comes_back_with_what_was_committed() {
    let postgres = Postgres::private().await;
    let database = postgres.database().await;
    database.batch("create table kept (n integer); insert into kept values (1)").await;
    let session = database.connect().await;
    postgres.kill();
    eventually("the session ends", SOON, async || session.query("select", &[]).await.is_err()).await;
    postgres.start().await;
    assert_eq!(database.count("select count(*) from kept").await, 1);

    postgres.pause();
    let waits = database::try_connect(&database.url);
    assert!(
        tokio::time::timeout(Duration::from_millis(300), waits).await.is_err(),
        "a frozen server answers nobody"
    );
    postgres.resume();
    assert_eq!(database.execute("insert into kept values (2)", &[]).await, 1);

    postgres.stop().await;
    assert!(database::try_connect(&database.url).await.is_err());
    postgres.start().await;
    assert_eq!(database.count("select count(*) from kept").await, 2);
}

/// Set in the second process of the next test.
const DOOMED: &str = "HARNESS_DOOMED";

#[tokio::test]
async fn what_the_tests_started_is_gone_when_they_are_killed() {
    if std::env::var_os(DOOMED).is_some() {
        let postgres = Postgres::private().await;
        println!("data: {}", postgres.root_cert().parent().unwrap().display());
        return std::future::pending().await;
    }
    let me = "suite::harness::what_the_tests_started_is_gone_when_they_are_killed";
    let directory = TempDir::new().unwrap();
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", me, "--nocapture"]).env(DOOMED, "yes");
    let doomed = Process::start("the tests", &mut again, &directory.path().join("log"), "KILL");
    let data = eventually_some("its Postgres runs", SOON, async || {
        let log = doomed.log();
        log.lines().find_map(|line| line.split_once("data: ")).map(|(_, path)| PathBuf::from(path))
    })
    .await;
    let server = std::fs::read_to_string(data.join("postmaster.pid")).unwrap();
    let server = Path::new("/proc").join(server.lines().next().unwrap());
    assert!(server.exists());
    doomed.kill();
    eventually("the server has ended", SOON, async || !server.exists()).await;
    eventually("its data are gone", SOON, async || !data.exists()).await;
}

#[tokio::test]
async fn a_topic_gives_back_what_was_written_to_it() {
    let kafka = Kafka::shared().await;
    let topic = kafka.topic(2).await;
    let mut written = Vec::new();
    for n in 0..10 {
        let key = format!("key-{n}");
        written
            .push(kafka.produce(&topic, Some(&key), Some(b"value"), &[("id", &key), ("type", "made")]).await);
    }
    kafka.produce(&topic, None, None, &[]).await;
    let records = kafka.read_all(&topic).await;
    assert_eq!(records.len(), 11);
    assert!(records.is_sorted_by_key(|record| (record.partition, record.offset)));
    for (n, place) in written.iter().enumerate() {
        let record = records.iter().find(|record| (record.partition, record.offset) == *place).unwrap();
        assert_eq!((record.key_text(), record.payload_text()), (format!("key-{n}"), "value".to_owned()));
        assert_eq!(record.header("id"), Some(format!("key-{n}")));
        assert!(record.timestamp.is_some());
    }
    let tombstone = records.iter().find(|record| record.key.is_none()).unwrap();
    assert_eq!((&tombstone.payload, tombstone.headers.len()), (&None, 0));

    kafka.delete_topic(&topic).await;
    kafka.create_topic(&topic, 1, &[("max.message.bytes", "1000")]).await;
    assert_eq!(kafka.read_all(&topic).await, []);
}

#[tokio::test]
async fn a_topic_can_be_forbidden_and_allowed_again() {
    let kafka = Kafka::shared().await;
    let topic = kafka.topic(1).await;
    let may_write = async || {
        let mut config = rdkafka::ClientConfig::new();
        config.set("bootstrap.servers", kafka.guarded_brokers()).set("message.timeout.ms", "30000");
        config.extend(Kafka::guarded_client().map(|(name, value)| (name.to_owned(), value.to_owned())));
        let producer: rdkafka::producer::FutureProducer = config.create().unwrap();
        let record = rdkafka::producer::FutureRecord::<str, str>::to(&topic).payload("x");
        producer.send(record, SOON).await.map_err(|(error, _)| error)
    };
    may_write().await.unwrap();
    kafka.forbid(&topic).await;
    assert_eq!(
        may_write().await.unwrap_err().rdkafka_error_code(),
        Some(rdkafka::types::RDKafkaErrorCode::TopicAuthorizationFailed)
    );
    kafka.allow(&topic).await;
    may_write().await.unwrap();
}

#[tokio::test]
async fn a_killed_kafka_comes_back_with_what_was_acknowledged() {
    let kafka = Kafka::private().await;
    let topic = kafka.topic(1).await;
    kafka.produce(&topic, Some("k"), Some(b"before"), &[]).await;
    kafka.kill();
    kafka.start().await;
    kafka.produce(&topic, Some("k"), Some(b"after"), &[]).await;
    let payloads = async || kafka.read_all(&topic).await.iter().map(Record::payload_text).collect::<Vec<_>>();
    assert_eq!(payloads().await, ["before", "after"]);

    kafka.pause();
    {
        let waits = kafka.produce(&topic, None, Some(b"frozen"), &[]);
        assert!(tokio::time::timeout(Duration::from_millis(300), waits).await.is_err());
    }
    kafka.resume();
    kafka.stop().await;
    kafka.start().await;
    assert_eq!(payloads().await[..2], ["before", "after"]);
}

#[tokio::test]
async fn the_proxy_cuts_refuses_and_swallows() {
    let database = Postgres::shared().await.database().await;
    let proxy = Proxy::to(Postgres::shared().await.port()).await;
    let url = proxy.reroute(&database.url);
    let client = database::connect(&url).await;
    client.batch_execute("create table t (n integer)").await.unwrap();

    proxy.swallow(Direction::Answers);
    let insert = client.batch_execute("insert into t values (1)");
    let seen = eventually("it is done all the same", SOON, async || {
        database.count("select count(*) from t").await == 1
    });
    tokio::select! {
        answer = insert => panic!("nothing may come back: {answer:?}"),
        () = seen => {}
    }
    proxy.heal();
    client.batch_execute("insert into t values (2)").await.unwrap();

    proxy.swallow(Direction::Requests);
    let waits = client.batch_execute("insert into t values (3)");
    assert!(tokio::time::timeout(Duration::from_millis(300), waits).await.is_err());
    assert_eq!(database.count("select count(*) from t").await, 2);

    proxy.cut();
    proxy.heal();
    assert!(client.batch_execute("select").await.is_err());
    assert!(database::try_connect(&url).await.is_ok());
    assert_eq!(
        database.count("select count(*) from t").await,
        2,
        "what was swallowed when it was cut is lost"
    );

    proxy.refuse();
    assert!(database::try_connect(&url).await.is_err());
    proxy.heal();
    assert!(database::try_connect(&url).await.is_ok());
}

#[tokio::test]
async fn the_proxy_loses_the_answer_to_a_commit_that_happened() {
    let database = Postgres::shared().await.database().await;
    database.batch("create table t (n integer)").await;
    let proxy = Proxy::to(Postgres::shared().await.port()).await;
    let mut client = database::connect(&proxy.reroute(&database.url)).await;
    let lost = proxy.lose_answer_to("COMMIT");
    let transaction = client.transaction().await.unwrap();
    transaction.execute("insert into t values (1)", &[]).await.unwrap();
    assert!(transaction.commit().await.is_err(), "the client cannot know");
    lost.await;
    assert_eq!(database.count("select count(*) from t").await, 1);
}

#[tokio::test]
async fn a_daemon_is_heard_frozen_and_ended() {
    let directory = Arc::new(TempDir::new().unwrap());
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let listen = server.local_addr().unwrap();
    let start = |script: &str| {
        // A shell traps no signal that was ignored when it began, as `nohup` has them ignore this one.
        let mut shell = Command::new("env");
        let args = ["--default-signal=HUP", "sh", "-c", script];
        Daemon::start("a stand-in", shell.args(args), listen, Arc::clone(&directory))
    };
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = server.accept().await {
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nready").await;
        }
    });

    let polite = start(
        "trap 'echo reloaded' HUP; trap 'echo drained >&2; exit 7' TERM; echo up; while :; do sleep 0.05; done",
    );
    assert_eq!(polite.wait_for_line("up").await, "up");
    polite.ready().await;
    assert_eq!(polite.get("/readyz").await, Some((200, "ready".to_owned())));
    polite.reload();
    polite.wait_for_line("reloaded").await;
    polite.pause();
    polite.terminate();
    assert!(polite.is_running() && !polite.log().contains("drained"));
    polite.resume();
    assert_eq!(polite.wait_exit().await, Some(7));
    polite.wait_for_line("drained").await;

    let stubborn = start("trap '' TERM; echo holding; while :; do sleep 0.05; done");
    stubborn.wait_for_line("holding").await;
    stubborn.kill();
    assert_eq!(stubborn.wait_exit().await, None);
}

#[tokio::test]
async fn the_program_is_run_with_the_configuration_that_it_was_given() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let database = postgres.database().await;
    let outboxd = || Outboxd::new(&database, kafka).set("producer.lease = \"2s\"");
    let read = |outboxd: &Outboxd| std::fs::read_to_string(outboxd.config()).unwrap();

    let least = read(&outboxd());
    assert!(
        least.contains(&database.agent_url()) && least.contains(&kafka.brokers()) && least.contains("lease")
    );
    let grouped = outboxd().group("orders", "orders-topic", "kind = \"exec\"\ncommand = [\"true\"]");
    let parsed: toml::Table = read(&grouped).parse().unwrap();
    assert_eq!(parsed["groups"]["orders"]["topics"][0].as_str(), Some("orders-topic"));
    assert_eq!(parsed["groups"]["orders"]["handler"]["command"][0].as_str(), Some("true"));
    let guarded: toml::Table = read(&outboxd().guarded(kafka)).parse().unwrap();
    assert_eq!(guarded["kafka"]["brokers"].as_str(), Some(kafka.guarded_brokers().as_str()));
    assert_eq!(guarded["kafka"]["client"]["sasl.username"].as_str(), Some("app"));
    assert!(read(&outboxd().owner()).contains(&database.url));
    let elsewhere = read(&outboxd().postgres_url("postgres://there/x").brokers("there:1"));
    assert!(elsewhere.contains("postgres://there/x") && elsewhere.contains("there:1"));

    let pointed = outboxd().failpoint("after-window:3").command(&["producer"]);
    assert!(
        pointed
            .get_envs()
            .any(|(name, value)| name == "OUTBOXD_FAILPOINT" && value == Some("after-window:3".as_ref()))
    );

    for daemon in [grouped.producer(), grouped.consumer(&["orders"])] {
        assert_ne!(daemon.listen, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        daemon.kill();
        assert!(!daemon.is_running());
    }
    let bad = Outboxd::with_config("nonsense");
    let output = bad.run_with_input(&["--version"], b"ignored").await;
    assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{output:?}");
    assert!(bad.run(&["--version"]).await.stdout.starts_with(&output.stdout));
}

#[test]
fn the_ledger_tells_a_repeated_tail_from_an_inversion() {
    let order = |records: &[usize]| ledger::order(4, records);
    let whole = Order::default();
    assert_eq!(order(&[0, 1, 2, 3]), whole);
    assert_eq!(order(&[0, 1, 2, 1, 2, 3]), Order { repeats: 2, ..whole });
    assert_eq!(order(&[0, 1, 2, 3, 0, 1, 2, 3]), Order { repeats: 4, ..whole });
    // Never B, A or B, A, B.
    assert_eq!(order(&[1, 0, 2, 3]), Order { inverted: 1, ..whole });
    assert_eq!(order(&[0, 2, 1, 2, 3]), Order { inverted: 1, repeats: 1, ..whole });
    // A tail that leaves something out.
    assert_eq!(order(&[0, 1, 2, 0, 2, 3]), Order { repeats: 2, skips: 1, ..whole });
    assert_eq!(order(&[0, 1, 3]), Order { missing: 1, ..whole });
    assert_eq!(order(&[]), Order { missing: 4, ..whole });
}
