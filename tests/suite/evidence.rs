//! P4: evidence and finished operations are there for as long as `[retention]` says, and go then.

use std::collections::HashMap;
use std::time::Duration;

use outboxd::pg::completing::{self, LookedFor, Standing};
use outboxd::pg::pool::Lent;
use uuid::Uuid;

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

/// Of every leaf and of none, at their very ends, many times in one batch, in any order; and what another group did is its
/// own.
#[tokio::test]
async fn what_a_group_knows_of_a_batch_is_found_wherever_it_is_kept() {
    let database = Postgres::shared().await.database().await;
    database
        .batch(
            "select outboxd.make_evidence_leaf(day + h * interval '2 hours', day + (h + 1) * interval '2 hours')
             from date_trunc('day', now()) as day, generate_series(0, 3) h",
        )
        .await;
    let ids = database
        .query(
            "select outboxd.message_id(date_trunc('day', now()) + h * interval '1 hour' + ms * interval '1 ms', h * 10 + ms)
             from generate_series(-1, 9) h, generate_series(-1, 1) ms
             union all select gen_random_uuid() from generate_series(1, 40)",
            &[],
        )
        .await;
    let mut ids: Vec<Uuid> = ids.iter().map(|row| row.get(0)).collect();
    fastrand::shuffle(&mut ids);
    let third = ids.len() / 3;
    let (handled, failed, new) = (&ids[..third], &ids[third..2 * third], &ids[2 * third..]);
    let evidence = "insert into outboxd.handled (consumer_group, message_id, topic, partition, \"offset\", agent, attempt)
        select $1, id, 't', 0, 0, 'a', 1 from unnest($2::uuid[]) id";
    database.execute(evidence, &[&"g", &handled]).await;
    database.execute(evidence, &[&"other", &ids]).await;
    let failures = "insert into outboxd.failures
          (consumer_group, message_id, state, reason, topic, partition, \"offset\", header_names, header_values)
        select 'g', id, 'dead', 'attempts', 't', 0, 0, '{}', '{}' from unnest($1::uuid[]) id";
    database.execute(failures, &[&failed]).await;
    database
        .execute(
            "insert into outboxd.held_keys (consumer_group, topic, key_digest, message_id) values ('g', 't', sha256('held'), $1)",
            &[&failed[0]],
        )
        .await;
    let known: HashMap<Uuid, Standing> =
        [(handled, Standing::Known), (failed, Standing::Known), (new, Standing::New)]
            .into_iter()
            .flat_map(|(ids, standing)| ids.iter().map(move |id| (*id, standing)))
            .collect();
    let pool = database.agent_pool();
    for batch in [0, 1, 2, 500] {
        let messages: Vec<LookedFor<'_>> = (0..batch)
            .map(|_| LookedFor {
                id: ids[fastrand::usize(..ids.len())],
                topic: ["t", "another"][fastrand::usize(..2)],
                key: [None, Some("held"), Some("free")][fastrand::usize(..3)].map(str::as_bytes),
            })
            .collect();
        let expected: Vec<Standing> = messages
            .iter()
            .map(|message| {
                let is_held = message.key == Some(b"held") && message.topic == "t";
                if is_held && known[&message.id] == Standing::New {
                    Standing::Held
                } else {
                    known[&message.id]
                }
            })
            .collect();
        let found =
            pool.ask(PATIENCE, async |client: &mut Lent| completing::look_up(client, "g", &messages).await);
        assert_eq!(found.await.unwrap(), expected, "{messages:?}");
    }
}
