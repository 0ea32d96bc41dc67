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
    let now = ticks().await;
    outboxd.run(&["jobs", "run", "tick"]).await;
    eventually("it runs if it is asked", SOON, async || ticks().await == now + 1).await;
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
        .group("g", &topic, "kind = \"exec\"\ncommand = [\"sleep\", \"5\"]")
        .set("groups.g.concurrency = 1");
    let consumer = outboxd.consumer(&["g"]);
    let in_flight =
        async || database.count("select coalesce(max(in_flight), 0)::bigint from outboxd.members").await;
    let handled = async || database.count("select count(*) from outboxd.handled").await;
    eventually("the first is handled, alone", SOON, async || handled().await == 1).await;
    assert!(in_flight().await <= 1);
    replace(&outboxd, "concurrency = 1", "concurrency = 6");
    consumer.reload();
    eventually("several run", SOON, async || in_flight().await >= 4).await;
    eventually("all are handled", SOON, async || handled().await == 12).await;
    consumer.terminate();
    assert_eq!(consumer.wait_exit().await, Some(0));
}
