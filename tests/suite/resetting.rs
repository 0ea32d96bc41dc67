//! `groups reset`: a group that is stopped goes to another place, what it handled is skipped on evidence unless told
//! otherwise, and nothing is passed over that nobody asked to pass over.

use std::time::Duration;

use crate::support::{Daemon, Database, Kafka, Outboxd, Postgres, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

const EFFECTS: &str = "select count(*) from public.effects";

/// A group of two partitions that has handled ten messages.
async fn ten_handled(database: &Database, kafka: &Kafka) -> (Outboxd, String) {
    let topic = kafka.topic(2).await;
    database
        .batch(
            "create table public.effects (id uuid);
             create function public.note(delivery outboxd.delivery) returns void language sql as
               'insert into public.effects values (delivery.id)';
             grant insert on public.effects to outboxd_agent",
        )
        .await;
    for n in 0..10 {
        let key = format!("operation-{n}");
        kafka.produce(&topic, Some(&format!("k{n}")), Some(b"x"), &[("idempotency-key", &key)]).await;
    }
    let outboxd =
        Outboxd::new(database, kafka).group(&topic, &topic, "kind = \"sql\"\nfunction = \"public.note\"");
    let consumer = outboxd.consumer(&[&topic]);
    effects(database, 10).await;
    stop(consumer).await;
    (outboxd, topic)
}

async fn effects(database: &Database, expected: i64) {
    eventually("the effects are there", PATIENCE, async || database.count(EFFECTS).await == expected).await;
}

async fn stop(consumer: Daemon) {
    consumer.terminate();
    assert_eq!(consumer.wait_exit().await, Some(0));
}

async fn positions(database: &Database) -> i64 {
    database.count("select coalesce(sum(next_offset), 0)::bigint from outboxd.group_positions").await
}

#[tokio::test]
async fn what_was_handled_is_skipped_after_a_reset_and_handled_again_only_if_told_so() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let (outboxd, group) = ten_handled(&database, kafka).await;

    let preview = outboxd.run(&["groups", "reset", &group, "--to", "earliest", "--dry-run"]).await;
    assert_eq!((preview.code, positions(&database).await), (0, 10), "{preview:?}");
    assert!(preview.stdout.contains(&format!("{group}/1")), "{}", preview.stdout);
    let asked = outboxd.run(&["groups", "reset", &group, "--to", "earliest"]).await;
    assert_eq!((asked.code, positions(&database).await), (5, 10), "nobody is there to ask: {asked:?}");
    let moved = outboxd.run(&["groups", "reset", &group, "--to", "earliest", "--yes"]).await;
    assert_eq!((moved.code, positions(&database).await), (0, 0), "{moved:?}");

    let consumer = outboxd.consumer(&[&group]);
    eventually("it reads all of it again", PATIENCE, async || positions(&database).await == 10).await;
    assert_eq!(database.count(EFFECTS).await, 10, "there is evidence");
    let alive = outboxd.run(&["groups", "reset", &group, "--to", "latest", "--yes"]).await;
    assert_eq!(alive.code, 5, "{alive:?}");
    assert!(alive.stderr.contains("stop them first"), "{}", alive.stderr);
    stop(consumer).await;

    let again = outboxd.run(&["groups", "reset", &group, "--to", "0", "--rehandle", "--yes"]).await;
    assert_eq!(again.code, 0, "{again:?}");
    assert!(again.stdout.contains("evidence removed: 10"), "{}", again.stdout);
    let consumer = outboxd.consumer(&[&group]);
    effects(&database, 20).await;
    stop(consumer).await;
}

#[tokio::test]
async fn records_before_the_place_are_passed_over_and_no_other() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let (outboxd, topic) = ten_handled(&database, kafka).await;
    for _ in 0..3 {
        kafka.produce(&topic, Some("k"), Some(b"passed over"), &[]).await;
    }
    let moved = outboxd.run(&["groups", "reset", &topic, "--to", "latest", "--yes"]).await;
    assert_eq!((moved.code, positions(&database).await), (0, 13), "{moved:?}");
    kafka.produce(&topic, Some("k"), Some(b"after"), &[]).await;
    let consumer = outboxd.consumer(&[&topic]);
    effects(&database, 11).await;
    stop(consumer).await;

    // By time, in one partition alone: those that were written before this test have no place in it.
    let arguments =
        ["groups", "reset", &topic, "--to", "2020-01-01T00:00:00Z", "--topic", &topic, "--partition", "0"];
    let moved = outboxd.run(&[&arguments[..], &["--yes"]].concat()).await;
    assert_eq!(moved.code, 0, "{moved:?}");
    let zero = "select count(*) from outboxd.group_positions where next_offset = 0 and partition = 0";
    assert_eq!((database.count(zero).await, positions(&database).await > 0), (1, true));

    for (group, code) in [("nobody", 4), (&*topic, 4)] {
        let unknown =
            outboxd.run(&["groups", "reset", group, "--to", "0", "--topic", "no-such", "--yes"]).await;
        assert_eq!(unknown.code, code, "{unknown:?}");
    }
    assert_eq!(outboxd.run(&["groups", "reset", &topic, "--to", "soon"]).await.code, 2);
}

#[tokio::test]
async fn a_consumer_that_was_killed_is_in_the_way_no_longer_than_an_operator_lets_it_be() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let topic = kafka.topic(1).await;
    let outboxd = Outboxd::new(&database, kafka)
        .group(&topic, &topic, "kind = \"log\"")
        .set("agent.heartbeat = \"3s\"")
        .set("agent.inactive_after = \"1h\"")
        .set("kafka.consumer.\"session.timeout.ms\" = 6000");
    let consumer = outboxd.consumer(&[&topic]);
    kafka.produce(&topic, None, Some(b"x"), &[]).await;
    eventually("it is handled", PATIENCE, async || positions(&database).await == 1).await;
    let agent = database.query_one("select id::text from outboxd.agents", &[]).await;
    let (agent, reset): (String, _) =
        (agent.get(0), ["groups", "reset", &topic, "--to", "earliest", "--yes"]);
    assert_eq!(outboxd.run(&["agents", "prune", &agent, "--yes"]).await.code, 5, "it is alive");
    consumer.kill();
    let advice = format!("outboxd agents prune {agent}");
    eventually("it says what to do", PATIENCE, async || {
        let refused = outboxd.run(&reset).await;
        assert_eq!(refused.code, 5, "{refused:?}");
        refused.stderr.contains(&advice)
    })
    .await;
    // Nobody is left to reap it.
    eventually("it is suspect", PATIENCE, async || {
        outboxd.run(&["agents", "list"]).await.stdout.contains("suspect")
    })
    .await;
    let pruned = outboxd.run(&["agents", "prune", &agent, "--yes"]).await;
    assert!(pruned.code == 0 && pruned.stdout.contains("1 agents removed"), "{pruned:?}");
    eventually("Kafka has given it up too", PATIENCE, async || outboxd.run(&reset).await.code == 0).await;
    assert_eq!(positions(&database).await, 0);
}
