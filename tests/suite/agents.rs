//! Agents: who is registered, how well it is, and what happens to one that falls silent.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Daemon, Database, Kafka, Outboxd, Postgres, eventually, eventually_some, port};

/// Longer than the claim of a job, which an agent may hold as it dies or freezes: of the one that looks for such agents too.
const SOON: Duration = Duration::from_secs(60);

/// Beats every second; silent for five, it is inactive.
fn outboxd(database: &Database, kafka: &Kafka) -> Outboxd {
    Outboxd::new(database, kafka).set("agent.heartbeat = \"1s\"").set("agent.inactive_after = \"5s\"")
}

async fn list(outboxd: &Outboxd) -> Vec<Value> {
    let output = outboxd.run(&["agents", "list", "--json"]).await;
    assert_eq!(output.code, 0, "{output:?}");
    serde_json::from_str(&output.stdout).unwrap()
}

async fn statuses(database: &Database) -> Vec<(String, String)> {
    let rows = database.query("select name, status from outboxd.agents order by started_at", &[]).await;
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn becomes(database: &Database, name: &str, status: &str) {
    eventually(&format!("{name} is {status}"), SOON, async || {
        statuses(database).await.contains(&(name.to_owned(), status.to_owned()))
    })
    .await;
}

async fn beats(database: &Database) -> i64 {
    database.count("select count(*) from outboxd.agent_heartbeats").await
}

#[tokio::test]
async fn a_producer_tells_its_whole_health_at_every_beat() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let database = postgres.database().await;
    let topic = kafka.topic(1).await;
    let outboxd = outboxd(&database, kafka);
    let producer = outboxd.set("agent.name = \"relay\"");
    let daemon = producer.producer();
    daemon.ready().await;
    database
        .execute(
            "insert into outboxd.messages (topic, payload) select $1, 'x' from generate_series(1, 3)",
            &[&topic],
        )
        .await;
    database.execute("insert into outboxd.messages (topic, payload) values ('missing', 'x')", &[]).await;

    let health = eventually_some("three are processed", SOON, async || {
        let agent = list(&producer).await.pop()?;
        assert_eq!((agent["name"].as_str(), agent["role"].as_str()), (Some("relay"), Some("producer")));
        assert_eq!(agent["http"], format!("http://{}", daemon.listen));
        let is_done = agent["health"]["processed"] == 3 && agent["health"]["lag"] == 0;
        (is_done && agent["state"] == "active").then(|| agent["health"].clone())
    })
    .await;
    assert_eq!(health["owned_lanes"], serde_json::json!(["high", "normal", "low"]));
    assert!(health["uptime_seconds"].is_u64() && health["resident_bytes"].as_u64().unwrap() > 1 << 20);
    assert_eq!((&health["in_flight"], &health["failed"]), (&0.into(), &0.into()));
    assert_eq!(health["recent_error_rate"], 0.0);
    assert_eq!(health["oldest_pending_seconds"], Value::Null, "{health}");
    let shown = producer.run(&["agents", "show", "relay"]).await.stdout;
    assert!(shown.contains("resident_bytes") && shown.contains("active"), "{shown}");
}

#[tokio::test]
async fn a_backlog_that_nobody_can_publish_shows_in_the_health() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::private().await);
    let database = postgres.database().await;
    let topic = kafka.topic(1).await;
    let daemon = outboxd(&database, &kafka).producer();
    daemon.ready().await;
    kafka.pause();
    database.execute("insert into outboxd.messages (topic, payload) values ($1, 'x')", &[&topic]).await;
    let pending = "select coalesce((health ->> 'oldest_pending_seconds')::float8 >= 1
        and (health ->> 'lag')::bigint = 1, false) from outboxd.agents";
    eventually("the oldest is a second old", SOON, async || {
        database.query_one(pending, &[]).await.get::<_, bool>(0)
    })
    .await;
    kafka.resume();
    let gone =
        "select health -> 'oldest_pending_seconds' = 'null' and health -> 'lag' = '0' from outboxd.agents";
    eventually("nothing is pending", SOON, async || database.query_one(gone, &[]).await.get::<_, bool>(0))
        .await;
}

#[tokio::test]
async fn what_an_agent_waits_for_is_told_at_once_and_so_is_its_end() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::private().await);
    let database = postgres.database().await;
    let outboxd = Outboxd::new(&database, &kafka)
        .set("agent.heartbeat = \"20m\"")
        .set("agent.inactive_after = \"1h\"")
        .set("agent.name = \"relay\"");
    let daemon = outboxd.producer();
    daemon.ready().await;
    let shown = async || outboxd.run(&["agents", "show", "relay"]).await.stdout;
    let waits = async || {
        let shown = shown().await;
        let line = shown.lines().find(|line| line.starts_with("waiting_for")).map(str::to_owned);
        line.is_some_and(|line| !line.ends_with("null"))
    };
    eventually("it waits for nothing", SOON, async || !waits().await).await;
    kafka.kill();
    eventually("it waits", SOON, waits).await;
    assert!(shown().await.contains("Kafka"), "{}", shown().await);
    kafka.start().await;
    daemon.ready().await;
    eventually("it waits for nothing any more", SOON, async || !waits().await).await;
    let told = beats(&database).await;
    assert!(told <= 12, "only what is new is told between two beats: {told}");
}

#[tokio::test]
async fn a_consumer_tells_its_whole_health_at_every_beat() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let database = postgres.database().await;
    let topic = kafka.topic(2).await;
    let gate = TempDir::new().unwrap();
    let open = gate.path().join("open");
    let command = format!("kind = \"exec\"\ncommand = [\"test\", \"-e\", \"{}\"]", open.display());
    let outboxd = outboxd(&database, kafka)
        .group(&topic, &topic, &command)
        .set(&format!("groups.{topic}.retry = {{ inline_attempts = 1000, max_attempts = 1000, backoff = \"50ms\", max_backoff = \"100ms\" }}"
        ))
        .set(&format!("groups.{topic}.breaker.failures = 100000"));
    let daemon = outboxd.consumer(&[&topic]);
    daemon.ready().await;
    kafka.produce(&topic, Some("k"), Some(b"x"), &[]).await;

    let health = async |what: &str, condition: &dyn Fn(&Value) -> bool| {
        eventually_some(what, SOON, async || {
            let health = list(&outboxd).await.pop()?["health"].clone();
            condition(&health).then_some(health)
        })
        .await
    };
    let failing = health("it fails, and stays pending", &|health| {
        health["failed"].as_u64() > Some(1) && health["oldest_pending_seconds"].as_f64() > Some(1.0)
    })
    .await;
    assert_eq!(failing["assigned_partitions"], 2);
    assert_eq!(failing["groups"][&topic]["assigned_partitions"].as_array().unwrap().len(), 2);
    assert_eq!((failing["processed"].as_u64(), failing["recent_error_rate"].as_f64()), (Some(0), Some(1.0)));
    assert!(failing["uptime_seconds"].is_u64() && failing["resident_bytes"].is_u64());
    health("it lags", &|health| health["lag"] == 1).await;
    eventually("so does its group", SOON, async || {
        let groups = outboxd.run(&["groups", "list", "--json"]).await.stdout;
        serde_json::from_str::<Vec<Value>>(&groups).unwrap()[0]["lag"] == 1
    })
    .await;

    std::fs::write(open, "").unwrap();
    let done = health("it is processed", &|health| health["processed"] == 1 && health["lag"] == 0).await;
    assert_eq!((&done["in_flight"], &done["oldest_pending_seconds"]), (&0.into(), &Value::Null));
    let rate = done["recent_error_rate"].as_f64().unwrap();
    assert!(rate > 0.0 && rate < 1.0, "{rate}");
}

#[tokio::test]
async fn a_killed_agent_is_suspect_and_then_inactive_by_the_reaper_of_any_other() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let database = postgres.database().await;
    let topic = kafka.topic(1).await;
    let outboxd = |name: &str| {
        Outboxd::new(&database, kafka)
            .set("agent.heartbeat = \"1s\"")
            .set("agent.inactive_after = \"10m\"")
            .set(&format!("agent.name = \"{name}\""))
    };
    let dying = outboxd("dying").producer();
    dying.ready().await;
    let alive = outboxd("alive").group(&topic, &topic, "kind = \"log\"").consumer(&[&topic]);
    alive.ready().await;
    dying.kill();
    becomes(&database, "dying", "suspect").await;
    let silent = "select extract(epoch from clock_timestamp() - last_heartbeat_at)::float8
        from outboxd.agents where name = 'dying'";
    let after: f64 = database.query_one(silent, &[]).await.get(0);
    assert!(after >= 2.0, "suspect after {after} s");
    let almost =
        "update outboxd.agents set last_heartbeat_at = clock_timestamp() - interval '10 min' + interval '3 s'
        where name = 'dying'";
    assert_eq!(database.execute(almost, &[]).await, 1);
    becomes(&database, "dying", "inactive").await;
    let after: f64 = database.query_one(silent, &[]).await.get(0);
    assert!(after >= 600.0, "inactive after {after} s");
    alive.wait_for_line("dying is inactive").await;
    becomes(&database, "alive", "active").await;
}

#[tokio::test]
async fn a_frozen_agent_that_goes_on_is_active_again() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let database = postgres.database().await;
    let frozen = outboxd(&database, kafka).set("agent.name = \"frozen\"").producer();
    let other = outboxd(&database, kafka).set("agent.name = \"other\"").producer();
    frozen.ready().await;
    other.ready().await;
    frozen.pause();
    becomes(&database, "frozen", "inactive").await;
    frozen.resume();
    becomes(&database, "frozen", "active").await;
    frozen.ready().await;
    assert_eq!(statuses(&database).await.len(), 2, "it is the same agent");
}

#[tokio::test]
async fn an_agent_whose_row_is_removed_registers_anew() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let database = postgres.database().await;
    let outboxd = outboxd(&database, kafka);
    let daemon = outboxd.producer();
    daemon.ready().await;
    let before = list(&outboxd).await.pop().unwrap();
    database.execute("delete from outboxd.agents", &[]).await;
    let after = eventually_some("it is back", SOON, async || list(&outboxd).await.pop()).await;
    for field in ["id", "name", "role", "http", "pid", "host"] {
        assert_eq!(before[field], after[field], "{field}");
    }
}

#[tokio::test]
async fn it_says_that_it_drains_and_beats_on_until_it_says_goodbye() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let database = postgres.database().await;
    let topic = kafka.topic(1).await;
    let gate = TempDir::new().unwrap();
    let (begun, open) = (gate.path().join("begun"), gate.path().join("open"));
    let script = format!("touch {}; until test -e {}; do sleep 0.05; done", begun.display(), open.display());
    let daemon = outboxd(&database, kafka)
        .set("agent.name = \"busy\"")
        .group(&topic, &topic, &format!("kind = \"exec\"\ncommand = [\"sh\", \"-c\", \"{script}\"]"))
        .consumer(&[&topic]);
    daemon.ready().await;
    kafka.produce(&topic, None, Some(b"x"), &[]).await;
    eventually("the handler runs", SOON, async || begun.exists()).await;
    daemon.terminate();
    becomes(&database, "busy", "draining").await;
    assert_eq!(daemon.get("/healthz").await.unwrap().0, 200);
    let (status, body) = daemon.get("/readyz").await.unwrap();
    assert!(status == 503 && body.contains("no new work is taken on"), "{body}");
    let so_far = beats(&database).await;
    eventually("three more beats", SOON, async || beats(&database).await >= so_far + 3).await;
    assert!(statuses(&database).await.contains(&("busy".into(), "draining".into())));
    std::fs::write(open, "").unwrap();
    assert_eq!(daemon.wait_exit().await, Some(0));
    assert_eq!(statuses(&database).await, [("busy".to_owned(), "stopped".to_owned())]);
}

/// With the listener that it finds by itself.
fn start_without_listener(outboxd: &Outboxd) -> Daemon {
    let log = SocketAddr::from((Ipv4Addr::LOCALHOST, port::free()));
    let directory = Arc::new(TempDir::new().unwrap());
    Daemon::start("outboxd producer", &mut outboxd.command(&["producer"]), log, directory)
}

#[tokio::test]
async fn daemons_of_one_role_on_one_host_do_not_collide() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let database = postgres.database().await;
    // A name is free again after two missed beats.
    let outboxd = Outboxd::new(&database, kafka).set("agent.heartbeat = \"1m\"");
    let daemons: Vec<Daemon> = (0..3).map(|_| start_without_listener(&outboxd)).collect();
    let agents = eventually_some("all are registered", SOON, async || {
        Some(list(&outboxd).await).filter(|agents| agents.len() == daemons.len())
    })
    .await;
    let distinct = |field: &str| {
        let values: std::collections::BTreeSet<&str> =
            agents.iter().map(|agent| agent[field].as_str().unwrap()).collect();
        assert_eq!(values.len(), daemons.len(), "{field}: {values:?}");
        values
    };
    let names = distinct("name");
    let shortest = names.iter().min_by_key(|name| name.len()).unwrap();
    assert!(shortest.ends_with("-producer"), "{shortest}");
    assert!(
        names.contains(format!("{shortest}-2").as_str()) && names.contains(format!("{shortest}-3").as_str())
    );
    for http in distinct("http") {
        let listen: SocketAddr = http.strip_prefix("http://").unwrap().parse().unwrap();
        assert!(listen.ip().is_loopback());
        tokio::net::TcpStream::connect(listen).await.unwrap();
    }
    let table = outboxd.run(&["agents", "list"]).await.stdout;
    assert!(names.iter().all(|name| table.contains(name)), "{table}");
}

#[tokio::test]
async fn a_name_that_was_chosen_is_taken_as_it_is() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let database = postgres.database().await;
    let outboxd = outboxd(&database, kafka).set("agent.name = \"from-the-file\"");
    let daemons = [outboxd.producer(), outboxd.producer(), outboxd.daemon(&["producer", "--name", "said"])];
    for daemon in &daemons {
        daemon.ready().await;
    }
    let mut names: Vec<String> = statuses(&database).await.into_iter().map(|(name, _)| name).collect();
    names.sort();
    assert_eq!(names, ["from-the-file", "from-the-file", "said"]);
    let sessions = "select count(*) from pg_stat_activity
        where datname = current_database() and application_name = 'outboxd/producer/said'";
    assert!(database.count(sessions).await > 0);
}

#[tokio::test]
async fn beats_are_kept_for_a_day() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let database = postgres.database().await;
    let old = |age: &str| {
        format!(
            "insert into outboxd.agent_heartbeats (agent_id, at, status, health)
             values (gen_random_uuid(), clock_timestamp() - interval '{age}', 'active', '{{}}')"
        )
    };
    database.batch(&[old("25 hours"), old("23 hours")].join(";")).await;
    let daemon = outboxd(&database, kafka).producer();
    daemon.ready().await;
    let older = async |age: &str| {
        let sql = "select count(*) from outboxd.agent_heartbeats where at < clock_timestamp()";
        database.count(&format!("{sql} - interval '{age}'")).await
    };
    eventually("what is older is gone", SOON, async || older("24 hours").await == 0).await;
    assert_eq!(older("22 hours").await, 1);
    eventually("new beats are kept", SOON, async || beats(&database).await >= 3).await;
}

/// Drains one, waits until it says so, and puts it back.
async fn in_and_out(
    database: &Database,
    outboxd: &Outboxd,
    name: &str,
    obeyed: impl AsyncFn() -> bool,
    back: impl AsyncFn() -> bool,
) {
    let operator = Outboxd::without_kafka(database).postgres_url(&database.operator_url());
    let order = async |order: &str| operator.run(&["agents", order, name]).await;
    assert_eq!(order("drain").await.code, 0);
    becomes(database, name, "draining").await;
    eventually("others have its work", SOON, async || obeyed().await).await;
    assert!(order("drain").await.stdout.contains("already"));
    eventually("it is listed so", SOON, async || {
        list(outboxd).await.iter().any(|agent| agent["name"] == name && agent["state"] == "draining")
    })
    .await;
    assert_eq!(order("resume").await.code, 0);
    becomes(database, name, "active").await;
    eventually("it takes part again", SOON, async || back().await).await;
    assert_eq!(operator.run(&["agents", "drain", "nobody"]).await.code, 4);
    let recorded = "select array_agg(command || ': ' || result order by id) from outboxd.operations";
    let recorded: Vec<String> = database.query_one(recorded, &[]).await.get(0);
    assert_eq!(recorded, ["agents drain: done", "agents drain: nothing to do", "agents resume: done"]);
}

#[tokio::test]
async fn a_producer_out_of_service_owns_no_lane_and_takes_part_again() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let outboxd = outboxd(&database, kafka).set("producer.lease = \"10m\"");
    let named = |name: &str| outboxd.daemon(&["producer", "--name", name]);
    let first = named("first");
    let owned = async |name: &str| {
        database
            .query_one("select count(*) from outboxd.lanes where agent = $1", &[&name])
            .await
            .get::<_, i64>(0)
    };
    eventually("it owns all", SOON, async || owned("first").await == 3).await;
    let _second = named("second");
    eventually("they share", SOON, async || owned("second").await == 1).await;
    let out = async || owned("first").await == 0 && owned("second").await == 3;
    in_and_out(&database, &outboxd, "first", out, async || owned("first").await > 0).await;
    assert!(first.is_running());
}

#[tokio::test]
async fn a_consumer_out_of_service_gives_its_partitions_to_others_and_takes_part_again() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let (topic, group) = (kafka.topic(2).await, format!("service-{:08x}", fastrand::u32(..)));
    let outboxd = outboxd(&database, kafka).group(&group, &topic, "kind = \"log\"");
    let named = |name: &str| outboxd.daemon(&["consumer", "--group", &group, "--name", name]);
    let (first, _second) = (named("first"), named("second"));
    let assigned = async |name: &str| {
        let agents = list(&outboxd).await;
        let agent = agents.into_iter().find(|agent| agent["name"] == name);
        agent.and_then(|agent| agent["health"]["assigned_partitions"].as_u64())
    };
    let shared = async || assigned("first").await == Some(1) && assigned("second").await == Some(1);
    eventually("they share", SOON, shared).await;
    let out = async || assigned("first").await == Some(0) && assigned("second").await == Some(2);
    in_and_out(&database, &outboxd, "first", out, async || assigned("first").await == Some(1)).await;
    assert!(first.is_running());
}

#[tokio::test]
async fn the_dead_are_removed_after_a_look_and_the_living_stay() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let database = postgres.database().await;
    let outboxd = Outboxd::new(&database, kafka).set("agent.heartbeat = \"1s\"");
    let lives = outboxd.set("agent.name = \"lives\"");
    let daemon = lives.producer();
    daemon.ready().await;
    database
        .batch(
            "insert into outboxd.agents (id, name, role, host, pid, version, status, heartbeat)
             select gen_random_uuid(), status, 'consumer', 'h', 7, '1', status, interval '1 h'
             from unnest(array['stopped', 'inactive', 'suspect', 'draining']) as status",
        )
        .await;
    let shown = lives.run(&["agents", "prune", "--dry-run"]).await;
    assert_eq!(shown.code, 0, "{shown:?}");
    assert!(shown.stdout.contains("stopped") && shown.stdout.contains("inactive"), "{shown:?}");
    assert!(!shown.stdout.contains("lives") && !shown.stdout.contains("draining"), "{shown:?}");
    let unasked = lives.run(&["agents", "prune"]).await;
    assert_eq!(unasked.code, 5, "without anybody to ask it is refused: {unasked:?}");
    assert_eq!(statuses(&database).await.len(), 5);
    let pruned = lives.run(&["agents", "prune", "--yes"]).await;
    assert!(pruned.code == 0 && pruned.stdout.contains("2 agents removed"), "{pruned:?}");
    let mut left: Vec<String> = statuses(&database).await.into_iter().map(|(name, _)| name).collect();
    left.sort();
    assert_eq!(left, ["draining", "lives", "suspect"]);
    // One that was taken for dead and lives is back with its next beat.
    database.batch("delete from outboxd.agents where name = 'lives'").await;
    becomes(&database, "lives", "active").await;
}
