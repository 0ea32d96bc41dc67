//! P4: evidence and finished operations are there for as long as `[retention]` says, and go then.

use std::time::Duration;

use crate::support::{Database, Kafka, Outboxd, Postgres, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

const LEAVES: &str = "select count(*) from outboxd.evidence_leaves";

/// Evidence of a message of that age, which was handled so long ago.
async fn handled(database: &Database, message_age: &str, handled_ago: &str) {
    let insert = format!(
        "insert into outboxd.handled (consumer_group, message_id, topic, partition, \"offset\", agent, attempt, handled_at)
         select 'g', outboxd.message_id(now() - interval '{message_age}', nextval('outboxd.claims_seq')), 't', 0, 0, 'a', 1,
           now() - interval '{handled_ago}'"
    );
    database.batch(&insert).await;
}

async fn key(database: &Database, key: &str, done_ago: &str) {
    let insert = format!(
        "insert into outboxd.idempotency_keys (consumer_group, namespace, key, message_id, payload_hash, state, owner, done_at)
         values ('g', 'key', '{key}', gen_random_uuid(), 0, 'done', gen_random_uuid(), now() - interval '{done_ago}')"
    );
    database.batch(&insert).await;
}

fn outboxd(database: &Database, kafka: &Kafka) -> Outboxd {
    Outboxd::new(database, kafka).set("jobs.cleanup.schedule = \"every 1s\"")
}

#[tokio::test]
async fn leaves_are_made_ahead_and_take_over_what_the_default_has() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    handled(&database, "0", "0").await;
    handled(&database, "10 days", "0").await;
    let _producer = outboxd(&database, kafka).producer();
    eventually("leaves reach ahead", PATIENCE, async || {
        let ahead = "select count(*) from outboxd.evidence_leaves where to_time > now() + interval '3 hours'";
        database.count(ahead).await > 0
    })
    .await;
    assert_eq!(database.count("select count(*) from outboxd.handled").await, 2);
    assert_eq!(
        database.count("select count(*) from only outboxd.handled_default").await,
        1,
        "of no leaf's time"
    );
}

#[tokio::test]
async fn what_was_handled_long_ago_goes_and_an_old_message_that_was_handled_lately_stays() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let old_leaf = |from: i32| {
        format!(
            "select outboxd.make_evidence_leaf(date_trunc('hour', now()) - interval '{from} days',
            date_trunc('hour', now()) - interval '{} days')",
            from - 1
        )
    };
    database.batch(&format!("{}; {}", old_leaf(4), old_leaf(3))).await;
    // Three and a half days old: the first was handled then, the second a moment ago, in one leaf; in the other only old.
    handled(&database, "84 hours", "84 hours").await;
    handled(&database, "84 hours", "0").await;
    handled(&database, "60 hours", "60 hours").await;
    handled(&database, "20 days", "20 days").await;
    handled(&database, "20 days", "1 hour").await;
    let _producer = outboxd(&database, kafka).producer();
    eventually("one leaf is gone, and the row without a leaf", PATIENCE, async || {
        database.count("select count(*) from outboxd.evidence_leaves where to_time < now()").await == 1
            && database.count("select count(*) from only outboxd.handled_default").await == 1
    })
    .await;
    assert_eq!(
        database.count("select count(*) from outboxd.handled").await,
        3,
        "a leaf goes as a whole, when its newest is past retention"
    );
    let before = database.count(LEAVES).await;
    database.batch("update outboxd.handled set handled_at = now() - interval '2 days'").await;
    eventually("the rest goes too", PATIENCE, async || {
        database.count("select count(*) from outboxd.handled").await == 0
            && database.count(LEAVES).await == before - 1
    })
    .await;
}

#[tokio::test]
async fn finished_operations_go_unless_a_failure_still_names_them() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    for (name, age) in [("young", "6 days"), ("old", "8 days"), ("named", "8 days")] {
        key(&database, name, age).await;
    }
    database
        .batch(
            "insert into outboxd.failures (consumer_group, message_id, state, topic, partition, \"offset\", header_names,
               header_values, idempotency_key, next_attempt_at)
             values ('g', gen_random_uuid(), 'due', 't', 0, 0, '{}', '{}', 'named', now() + interval '1 day')",
        )
        .await;
    let _producer = outboxd(&database, kafka).producer();
    eventually("the old one goes", PATIENCE, async || {
        database.count("select count(*) from outboxd.idempotency_keys").await == 2
    })
    .await;
    let kept = "select count(*) from outboxd.idempotency_keys where key in ('young', 'named')";
    assert_eq!(database.count(kept).await, 2);
}
