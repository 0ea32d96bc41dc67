//! `/readyz` names what keeps a daemon from its work, and only that, and is green again when it is over.

use std::time::Duration;

use serde_json::Value;

use crate::support::{Daemon, Database, Kafka, Outboxd, Postgres, eventually};

const SOON: Duration = Duration::from_secs(30);

/// Waits until that check says this, and everything but the others named is fine.
async fn turns_red(daemon: &Daemon, check: &str, says: &str, with: &[&str]) {
    eventually(&format!("{check} is red: {says}"), SOON, async || {
        let Some((status, body)) = daemon.get("/readyz").await else { return false };
        let body: Value = serde_json::from_str(&body).unwrap();
        let red: Vec<&str> = body["checks"]
            .as_object()
            .unwrap()
            .iter()
            .filter(|(_, problem)| *problem != "ok")
            .map(|(name, _)| name.as_str())
            .collect();
        let alone = red.iter().all(|name| *name == check || with.contains(name));
        status == 503 && alone && body["checks"][check].as_str().unwrap().contains(says)
    })
    .await;
    assert_eq!(daemon.get("/healthz").await.unwrap().0, 200);
}

/// A message that was pending long before anybody looked.
async fn old_message(database: &Database, topic: &str) {
    let sql = "insert into outboxd.messages (topic, payload, created_at) values ($1, 'x', clock_timestamp() - interval '5 min')";
    database.execute(sql, &[&topic]).await;
}

#[tokio::test]
async fn a_daemon_waits_for_its_schema_and_for_kafka_by_name() {
    let (database, kafka) = (Postgres::shared().await.empty_database().await, Kafka::shared().await);
    let proxy = kafka.proxy().await;
    let outboxd = Outboxd::new(&database, kafka).brokers(&kafka.proxied_brokers());
    let topic = kafka.topic(1).await;
    let outboxd = outboxd.group("orders", &topic, "kind = \"log\"");
    let daemons = [outboxd.producer(), outboxd.consumer(&["orders"])];
    for daemon in &daemons {
        turns_red(daemon, "schema", "run `outboxd migrate`", &["kafka", "work"]).await;
    }
    let migrated = Outboxd::new(&database, kafka).owner().run(&["migrate"]).await;
    assert_eq!(migrated.code, 0, "{migrated:?}");
    for daemon in &daemons {
        daemon.ready().await;
        let (_, lines) = daemon.get("/readyz?verbose").await.unwrap();
        assert!(lines.contains("[+] schema ok\n") && lines.contains("[+] kafka ok\n"), "{lines}");
    }
    proxy.refuse();
    proxy.cut();
    for daemon in &daemons {
        turns_red(daemon, "kafka", "", &["work"]).await;
    }
    proxy.heal();
    for daemon in &daemons {
        daemon.ready().await;
    }
}

#[tokio::test]
async fn a_heartbeat_that_cannot_be_written_is_told() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let producer = Outboxd::new(&database, kafka).set("agent.heartbeat = \"1s\"").producer();
    producer.ready().await;
    let client = database.connect().await;
    client.batch_execute("begin; lock table outboxd.agents in share mode").await.unwrap();
    turns_red(&producer, "heartbeat", "ago", &["database", "work"]).await;
    client.batch_execute("rollback").await.unwrap();
    producer.ready().await;
}

#[tokio::test]
async fn it_is_told_that_messages_are_pending_and_nobody_moves_a_cursor() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = kafka.topic(1).await;
    let outboxd = Outboxd::new(&database, kafka).set("agent.name = \"relay\"");
    let producer = outboxd.producer();
    producer.ready().await;

    for (stop, go_on, why) in [
        (["jobs", "pause", "process-pending"], ["jobs", "resume", "process-pending"], "is paused"),
        (["agents", "drain", "relay"], ["agents", "resume", "relay"], "nobody owns it"),
    ] {
        assert_eq!(outboxd.run(&stop).await.code, 0);
        // Until it has heard of the order it publishes what comes.
        eventually("a message waits, and is told of", SOON, async || {
            if database.in_state(&topic, "pending").await == 0 {
                old_message(&database, &topic).await;
            }
            producer.get("/readyz").await.is_some_and(|(_, body)| body.contains("pending for"))
        })
        .await;
        turns_red(&producer, "lanes", why, &["work"]).await;
        let (_, lines) = producer.get("/readyz?verbose").await.unwrap();
        assert!(lines.contains("messages of lane normal are pending for 5m"), "{lines}");
        assert_eq!(outboxd.run(&go_on).await.code, 0);
        producer.ready().await;
        database.reach(&topic, "pending", 0).await;
    }
}

#[tokio::test]
async fn a_consumer_tells_that_retries_are_due_and_no_producer_runs() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = kafka.topic(1).await;
    let handler = "kind = \"exec\"\ncommand = [\"false\"]";
    let outboxd = Outboxd::new(&database, kafka).group("orders", &topic, handler);
    let consumer = outboxd.consumer(&["orders"]);
    consumer.ready().await;
    kafka.produce(&topic, None, Some(b"x"), &[]).await;
    eventually("it has failed", SOON, async || {
        let due = "update outboxd.failures set next_attempt_at = clock_timestamp() - interval '1 min' where state = 'due'";
        database.execute(due, &[]).await == 1
    })
    .await;
    turns_red(&consumer, "retries", "nobody owns a lane", &[]).await;
    let _producer = outboxd.producer();
    consumer.ready().await;
}
