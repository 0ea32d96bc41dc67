//! A message that kills its process is found and given up, and its neighbours are not blamed.

use axum::http::StatusCode;
use tempfile::TempDir;

use super::{Consumer, PATIENCE, Receiver, evidence, posting, unique};
use crate::support::{Kafka, Outboxd, Postgres, eventually};

/// Kills the daemon that started it at the payload `poison`.
const DEADLY: &str = "kind = \"exec\"\ncommand = [\"sh\", \"-c\", \"if [ \\\"$(cat)\\\" = poison ]; then kill -9 $PPID; sleep 5; fi\"]";

#[tokio::test]
async fn a_message_that_kills_its_process_is_given_up_and_no_other() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let (topic, group) = (kafka.topic(1).await, unique("orders"));
    for n in 0..10 {
        let payload = if n == 5 { "poison".to_owned() } else { format!("m{n}") };
        kafka.produce(&topic, None, Some(payload.as_bytes()), &[]).await;
    }
    let outboxd = Outboxd::new(&database, kafka)
        .set("kafka.consumer.\"session.timeout.ms\" = \"6000\"")
        .set(&format!("groups.{group}.retry.max_starts = 2"))
        .group(&group, &topic, DEADLY);
    let mut deaths = 0;
    loop {
        let daemon = outboxd.consumer(&[&group]);
        let done = "select count(*) from outboxd.failures where state = 'dead'";
        eventually("it dies, or gives up", PATIENCE, async || {
            !daemon.is_running() || database.count(done).await == 1
        })
        .await;
        if daemon.is_running() {
            eventually("all others are handled", PATIENCE, async || evidence(&database).await == 9).await;
            daemon.terminate();
            assert_eq!(daemon.wait_exit().await, Some(0));
            break;
        }
        deaths += 1;
        assert!(deaths < 6, "it is never given up");
    }
    assert_eq!(deaths, 3, "once before it is noted, and twice alone");
    let row =
        database.query_one("select reason, convert_from(payload, 'UTF8') from outboxd.failures", &[]).await;
    assert_eq!((row.get::<_, &str>(0), row.get::<_, &str>(1)), ("starts", "poison"));
    assert_eq!(database.count("select count(*) from outboxd.starts").await, 0, "nothing is left in doubt");
}

/// Each start of the poison finds others' messages under way, and they are under way when their process dies each time.
#[tokio::test]
async fn no_message_is_blamed_for_what_another_group_of_its_process_does() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let (topic, other_topic) = (kafka.topic(1).await, kafka.topic(1).await);
    let (deadly, innocent) = (unique("deadly"), unique("innocent"));
    kafka.produce(&topic, None, Some(b"poison"), &[]).await;
    for n in 0..3 {
        kafka.produce(&other_topic, None, Some(format!("m{n}").as_bytes()), &[]).await;
    }
    // When it kills for the first time, they are under way however slow it all is.
    let gate = TempDir::new().unwrap();
    let (begun, killed) = (gate.path().join("begun"), gate.path().join("killed"));
    let (begun, killed) = (begun.display(), killed.display());
    let slowly = format!("until test -e {begun}; do sleep 0.05; done; sleep 1; touch {killed}; kill -9");
    let slowly = DEADLY.replace("kill -9", &slowly);
    let innocently = format!("touch {begun}; until test -e {killed}; do sleep 0.05; done; sleep 4");
    let innocently = format!("kind = \"exec\"\ncommand = [\"sh\", \"-c\", \"{innocently}\"]");
    let outboxd = Outboxd::new(&database, kafka)
        .set("kafka.consumer.\"session.timeout.ms\" = \"6000\"")
        .set(&format!("groups.{deadly}.retry.max_starts = 2"))
        .set(&format!("groups.{innocent}.retry.max_starts = 2"))
        .group(&deadly, &topic, &slowly)
        .group(&innocent, &other_topic, &innocently);
    let mut deaths = 0;
    loop {
        let daemon = outboxd.consumer(&[&deadly, &innocent]);
        let done = "select count(*) from outboxd.failures where state = 'dead'";
        eventually("it dies, or all is at its end", PATIENCE, async || {
            !daemon.is_running() || database.count(done).await > 0 && evidence(&database).await == 3
        })
        .await;
        if daemon.is_running() {
            daemon.terminate();
            assert_eq!(daemon.wait_exit().await, Some(0));
            break;
        }
        deaths += 1;
        assert!(deaths < 8, "it is never given up");
    }
    let dead = database.query("select consumer_group from outboxd.failures", &[]).await;
    let dead: Vec<String> = dead.iter().map(|row| row.get(0)).collect();
    assert_eq!(dead, [deadly]);
    let attempts = "select count(*) from outboxd.handled where attempt > 1";
    assert!(database.count(attempts).await > 0, "they were under suspicion: {deaths} deaths");
    assert_eq!(database.count("select count(*) from outboxd.starts").await, 0, "nothing is left in doubt");
}

/// Of few keys, whose messages wait for each other.
#[tokio::test]
async fn what_a_process_left_in_doubt_starts_together_and_not_one_by_one() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let (topic, group) = (kafka.topic(1).await, unique("orders"));
    let receiver = Receiver::default();
    let url = receiver.clone().listen().await;
    for n in 0..200 {
        let payload = format!("m{n}");
        receiver.stuck.lock().unwrap().insert(payload.clone());
        kafka.produce(&topic, Some(&format!("k{}", n % 5)), Some(payload.as_bytes()), &[]).await;
    }
    let of_starts = async |starts: i32| {
        database.count(&format!("select count(*) from outboxd.starts where starts = {starts}")).await
    };
    let settings = posting(&[&topic], &url);
    for starts in 0..=1 {
        let consumer = Consumer::start(&database.agent_url(), kafka, &group, &settings);
        eventually("all are in doubt", PATIENCE, async || of_starts(starts).await == 200).await;
        consumer.aborted().await;
    }
    let consumer = Consumer::start(&database.agent_url(), kafka, &group, &settings);
    eventually("fewer start together", PATIENCE, async || of_starts(2).await == 32).await;
    // What is behind one that fails waits for it, and nothing else does.
    receiver.tell("m0", StatusCode::SERVICE_UNAVAILABLE);
    receiver.stuck.lock().unwrap().clear();
    eventually("all others are handled", PATIENCE, async || evidence(&database).await == 160).await;
    receiver.answers.lock().unwrap().clear();
    eventually("all are handled", PATIENCE, async || evidence(&database).await == 200).await;
    eventually("nothing is in doubt", PATIENCE, async || {
        database.count("select count(*) from outboxd.starts").await == 0
    })
    .await;
    assert_eq!(database.count("select count(*) from outboxd.failures").await, 0, "nobody is blamed");
    let second = "select count(*) from outboxd.handled where attempt >= 2";
    assert_eq!(database.count(second).await, 200, "a start that was counted is an attempt");
    consumer.drained().await;
}
