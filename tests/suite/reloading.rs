//! SIGHUP: the configuration is read again, and nothing under way is dropped for it.

use std::time::Duration;

use crate::support::{Kafka, Outboxd, Postgres, eventually};

const SOON: Duration = Duration::from_secs(40);

fn add(outboxd: &Outboxd, lines: &str) {
    let text = std::fs::read_to_string(outboxd.config()).unwrap();
    std::fs::write(outboxd.config(), format!("{text}{lines}\n")).unwrap();
}

fn replace(outboxd: &Outboxd, old: &str, new: &str) {
    let text = std::fs::read_to_string(outboxd.config()).unwrap();
    assert!(text.contains(old), "{text}");
    std::fs::write(outboxd.config(), text.replace(old, new)).unwrap();
}

#[tokio::test]
async fn jobs_change_under_way_a_wrong_file_changes_nothing_and_what_needs_a_restart_is_named() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    database.batch("create table ticks (firing timestamptz); grant all on ticks to public").await;
    let ticks = async || database.count("select count(*) from ticks").await;
    let outboxd = Outboxd::new(&database, kafka);
    let producer = outboxd.producer();
    producer.ready().await;
    let action = "jobs.tick.action = { kind = \"sql\", statement = \"insert into ticks values ($1)\" }";
    add(&outboxd, &format!("jobs.tick.schedule = \"every 1s\"\n{action}"));
    producer.reload();
    eventually("the new job runs", SOON, async || ticks().await >= 2).await;

    add(&outboxd, "producer.leese = \"20s\"");
    producer.reload();
    let told = producer.wait_for_line("stays as it was").await;
    assert!(told.contains("outboxd.toml:") && told.contains("`leese`") && told.contains('^'), "{told}");
    let now = ticks().await;
    eventually("the job goes on", SOON, async || ticks().await >= now + 2).await;

    replace(&outboxd, "producer.leese", "producer.lease");
    replace(&outboxd, "\"every 1s\"", "\"@yearly\"");
    producer.reload();
    let told = producer.wait_for_line("after a restart only").await;
    assert!(told.contains("producer.lease") && !told.contains("jobs.tick"), "{told}");
    let known = "select count(*) from outboxd.jobs where name = 'tick' and schedule = '@yearly'";
    eventually("the board has the new schedule", SOON, async || database.count(known).await == 1).await;
    outboxd.run(&["jobs", "run", "tick"]).await;
    let asked = "select count(*) from outboxd.job_runs where job = 'tick' and requested_by is not null and result = 'done'";
    eventually("it runs if it is asked", SOON, async || database.count(asked).await == 1).await;
    producer.terminate();
    assert_eq!(producer.wait_exit().await, Some(0));
}

#[tokio::test]
async fn a_group_gets_more_handlers_while_it_works() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = kafka.topic(1).await;
    for key in 0..12 {
        kafka.produce(&topic, Some(&key.to_string()), Some(b"x"), &[]).await;
    }
    let outboxd = Outboxd::new(&database, kafka)
        .group(&topic, &topic, "kind = \"exec\"\ncommand = [\"sleep\", \"5\"]")
        .set(&format!("groups.{topic}.concurrency = 1"));
    let consumer = outboxd.consumer(&[&topic]);
    let in_flight =
        async || database.count("select coalesce(max(in_flight), 0)::bigint from outboxd.members").await;
    let handled = async || database.count("select count(*) from outboxd.handled").await;
    eventually("the first is handled, alone", SOON, async || handled().await >= 1).await;
    assert!(in_flight().await <= 1);
    replace(&outboxd, "concurrency = 1", "concurrency = 6");
    consumer.reload();
    eventually("several run", SOON, async || in_flight().await >= 4).await;
    eventually("all are handled", SOON, async || handled().await == 12).await;
    consumer.terminate();
    assert_eq!(consumer.wait_exit().await, Some(0));
}

#[tokio::test]
async fn the_level_of_the_log_changes_unless_the_command_line_has_said_it() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let outboxd = Outboxd::new(&database, kafka).set("log.level = \"warn\"");
    let quiet = outboxd.producer();
    quiet.ready().await;
    assert!(!quiet.log().contains("\"INFO\"") && !quiet.log().contains("\"DEBUG\""), "{}", quiet.log());
    replace(&outboxd, "\"warn\"", "\"loud\"");
    quiet.reload();
    let told = quiet.wait_for_line("stays as it was").await;
    assert!(told.contains("`level`") && told.contains('^'), "{told}");
    replace(&outboxd, "\"loud\"", "\"debug\"");
    quiet.reload();
    quiet.wait_for_line("\"DEBUG\"").await;

    let ordered = outboxd.daemon(&["producer", "--log", "info"]);
    ordered.ready().await;
    replace(&outboxd, "\"debug\"", "\"trace\"");
    ordered.reload();
    ordered.wait_for_line("gives way to --log").await;
    assert!(!ordered.log().contains("\"DEBUG\""), "{}", ordered.log());
}

#[tokio::test]
async fn an_agent_that_has_read_its_file_again_is_as_one_that_starts_with_it() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let outboxd =
        Outboxd::new(&database, kafka).set("agent.heartbeat = \"1s\"").group("g", "t", "kind = \"log\"");
    let files = async || {
        let sql = "select count(distinct health->>'config') from outboxd.agents";
        (database.count("select count(*) from outboxd.agents").await, database.count(sql).await)
    };
    let former = outboxd.producer();
    eventually("the first has joined", SOON, async || files().await == (1, 1)).await;
    add(&outboxd, "groups.g.retry.max_attempts = 3\nretention.runs = \"2days\"");
    let later = outboxd.producer();
    eventually("their files differ", SOON, async || files().await == (2, 2)).await;
    former.reload();
    eventually("they are the same again", SOON, async || files().await == (2, 1)).await;
    // What waits for a restart makes no difference before.
    add(&outboxd, "groups.g.topics = [\"t\", \"u\"]");
    replace(&outboxd, "groups.g.topics = [\"t\"]\n", "");
    later.reload();
    later.wait_for_line("after a restart only").await;
    let now = database.query_one("select clock_timestamp()", &[]).await;
    let now: chrono::DateTime<chrono::Utc> = now.get(0);
    let beats = "select count(*) from outboxd.agents where last_heartbeat_at > $1";
    eventually("both have beaten since", SOON, async || {
        database.query_one(beats, &[&now]).await.get::<_, i64>(0) == 2
    })
    .await;
    assert_eq!(files().await, (2, 1));
}

#[tokio::test]
async fn a_daemon_that_waits_for_its_database_reads_its_file_again_too() {
    let (postgres, kafka) = (Postgres::private().await, Kafka::shared().await);
    let database = postgres.database().await;
    postgres.kill();
    let outboxd = Outboxd::new(&database, kafka).set("agent.heartbeat = \"1s\"");
    let producer = outboxd.producer();
    producer.wait_for_line("waiting:").await;
    add(&outboxd, "jobs.reap-agents.schedule = \"every 7s\"");
    producer.reload();
    producer.wait_for_line("is read again").await;
    postgres.start().await;
    producer.ready().await;
    let known = "select count(*) from outboxd.jobs where name = 'reap-agents' and schedule = 'every 7s'";
    eventually("it starts with the new one", SOON, async || database.count(known).await == 1).await;
}

#[tokio::test]
async fn rate_and_policy_of_a_group_change_while_it_works() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let (topic, failing) = (kafka.topic(1).await, kafka.topic(1).await);
    let produce = async |topic: &str, count: usize| {
        for key in 0..count {
            kafka.produce(topic, Some(&key.to_string()), Some(b"x"), &[]).await;
        }
    };
    produce(&topic, 40).await;
    produce(&failing, 1).await;
    let outboxd = Outboxd::new(&database, kafka)
        .group(&topic, &topic, "kind = \"log\"")
        .set(&format!("groups.{topic}.rate = \"1/h\""))
        .group(&failing, &failing, "kind = \"exec\"\ncommand = [\"false\"]")
        .set(&format!("groups.{failing}.retry.on_failure = \"continue\""))
        .set(&format!("groups.{failing}.retry.max_attempts = 2"));
    let consumer = outboxd.consumer(&[&topic, &failing]);
    let handled = async || database.count("select count(*) from outboxd.handled").await;
    let dead = async || database.count("select count(*) from outboxd.dead_letters").await;
    let failed = "select count(*) from outboxd.failures";
    eventually("the first is to be retried", SOON, async || database.count(failed).await == 1).await;
    eventually("both are assigned", SOON, async || consumer.log().matches("\"assigned\"").count() == 2).await;
    // The first need not wait for an hour.
    assert!(handled().await <= 1 && dead().await == 0);

    replace(&outboxd, &format!("groups.{topic}.rate = \"1/h\"\n"), "");
    replace(&outboxd, "max_attempts = 2", "max_attempts = 1");
    consumer.reload();
    eventually("the others are not held back any more", SOON, async || handled().await == 40).await;
    produce(&failing, 1).await;
    eventually("the second is given up at once", SOON, async || dead().await == 1).await;
}

#[tokio::test]
async fn a_group_makes_larger_batches_while_it_works() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = kafka.topic(1).await;
    database
        .batch(
            "create table calls (messages integer);
             create function on_orders(all_of_them outboxd.delivery[]) returns void language sql security definer as
               'insert into public.calls values (cardinality(all_of_them))'",
        )
        .await;
    let produce = async |count: usize| {
        for _ in 0..count {
            kafka.produce(&topic, None, Some(b"x"), &[]).await;
        }
    };
    let largest = async || database.count("select coalesce(max(messages), 0)::bigint from calls").await;
    let handled = async || database.count("select count(*) from outboxd.handled").await;
    produce(40).await;
    let outboxd = Outboxd::new(&database, kafka)
        .group(&topic, &topic, "kind = \"sql\"\nfunction = \"on_orders\"\nmode = \"batch\"")
        .set(&format!("groups.{topic}.batch = 2"));
    let consumer = outboxd.consumer(&[&topic]);
    eventually("all are handled", SOON, async || handled().await == 40).await;
    assert!((1..=2).contains(&largest().await), "{}", largest().await);

    replace(&outboxd, "batch = 2", "batch = 500");
    consumer.reload();
    consumer.wait_for_line("is read again").await;
    // What came together is taken together.
    assert_eq!(outboxd.run(&["groups", "pause", &topic]).await.code, 0);
    consumer.wait_for_line("nothing more is started").await;
    produce(40).await;
    assert_eq!(outboxd.run(&["groups", "resume", &topic]).await.code, 0);
    eventually("the rest is handled", SOON, async || handled().await == 80).await;
    assert!(largest().await > 2, "{}", largest().await);
}
