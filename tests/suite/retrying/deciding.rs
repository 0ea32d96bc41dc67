//! What an operator decides about failures and dead letters.

use axum::http::StatusCode;
use serde_json::Value;
use uuid::Uuid;

use super::{Handler, PATIENCE, Scene};
use crate::support::{Outboxd, eventually};

impl Scene<'_> {
    fn operator(&self) -> Outboxd {
        Outboxd::without_kafka(&self.database).postgres_url(&self.database.operator_url())
    }

    /// A dead letter, after twenty attempts.
    async fn dead(&self, key: &str, error: &str) -> Uuid {
        let id = Uuid::new_v4();
        self.database
            .execute(
                "insert into outboxd.failures (consumer_group, message_id, state, reason, topic, partition, \"offset\", key,
                   payload, header_names, header_values, attempts, type, error)
                 values ($1, $2, 'dead', 'attempts', $3, 0, 0, convert_to($4, 'UTF8'), 'p', '{tenant}', array['x'::bytea], 20,
                   'OrderPlaced', $5)",
                &[&self.group, &id, &self.topic, &key, &error],
            )
            .await;
        id
    }
}

#[tokio::test]
async fn a_replay_reopens_the_failure_for_its_group_with_its_attempts_forgiven() {
    let scene = Scene::new().await;
    let handler = Handler::answering(StatusCode::OK);
    let few = ["retry.max_attempts = 3"];
    let _consumer = scene.consumer("a", &handler, &few).await;
    let _producer = scene.producer(&few);
    scene.takers_are(1).await;
    let (wanted, other) = (scene.dead("k1", "no stock").await, scene.dead("k2", "no card").await);
    let operator = scene.operator();
    let listed = operator.run(&["retry", "list", "--json", "--state", "dead"]).await;
    let listed: Vec<Value> = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!(listed.len(), 2);
    let filters = [
        "--group",
        &scene.group,
        "--topic",
        &scene.topic,
        "--key",
        "k1",
        "--type",
        "OrderPlaced",
        "--error",
        "STOCK",
    ];
    let preview = operator.run(&[&["retry", "run", "--dry-run"][..], &filters].concat()).await;
    assert!(
        preview.stdout.contains(&wanted.to_string()) && !preview.stdout.contains(&other.to_string()),
        "{preview:?}"
    );
    let replayed = operator.run(&[&["retry", "run", "--rate", "50/s", "--yes"][..], &filters].concat()).await;
    assert_eq!(replayed.code, 0, "{replayed:?}");
    eventually("it is done with", PATIENCE, async || scene.failures().await == 1).await;
    assert_eq!(scene.evidence().await, [(wanted, "a".to_owned(), 21)]);
    let recorded = "select count(*) from outboxd.operations where command = 'retry run' and messages = 1 and result = 'done'";
    assert_eq!(scene.database.count(recorded).await, 1);
    let shown = operator.run(&["retry", "show", &other.to_string(), "--json"]).await;
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(
        (&shown["state"], &shown["attempts"], &shown["payload"]),
        (&"dead".into(), &20.into(), &"p".into())
    );
    assert_eq!(shown["headers"][0], serde_json::json!({ "name": "tenant", "value": "x" }));
}

#[tokio::test]
async fn what_several_groups_failed_is_shown_as_one_document() {
    let scene = Scene::new().await;
    let id = scene.dead("k", "no").await;
    let other = "insert into outboxd.failures (consumer_group, message_id, state, reason, topic, partition, \"offset\",
        header_names, header_values) select 'another', message_id, state, reason, topic, partition, \"offset\",
        header_names, header_values from outboxd.failures";
    scene.database.execute(other, &[]).await;
    let shown = scene.operator().run(&["retry", "show", &id.to_string(), "--json"]).await;
    let shown: Vec<Value> = serde_json::from_str(&shown.stdout).unwrap();
    let mut groups: Vec<&str> = shown.iter().map(|story| story["group"].as_str().unwrap()).collect();
    groups.sort_unstable();
    assert_eq!(groups, ["another", &scene.group]);
}

#[tokio::test]
async fn what_is_discarded_lets_its_key_go_and_can_be_replayed() {
    let scene = Scene::new().await;
    let head = scene.dead("k", "no").await;
    let behind = scene.failure(b"behind", None).await;
    scene
        .database
        .execute(
            "update outboxd.failures set state = 'held', next_attempt_at = null where message_id = $1",
            &[&behind],
        )
        .await;
    scene
        .database
        .execute(
            "insert into outboxd.held_keys (consumer_group, topic, key_digest, message_id) values ($1, $2, sha256('k'), $3)",
            &[&scene.group, &scene.topic, &head],
        )
        .await;
    let operator = scene.operator();
    let discarded = operator.run(&["retry", "discard", &head.to_string(), "--yes"]).await;
    assert_eq!(discarded.code, 0, "{discarded:?}");
    let due = "select count(*) from outboxd.failures where state = 'due' and payload = 'behind'";
    assert_eq!(scene.database.count(due).await, 1);
    assert_eq!(operator.run(&["retry", "discard", &head.to_string(), "--yes"]).await.code, 4);
    assert_eq!(operator.run(&["retry", "run", &head.to_string(), "--yes"]).await.code, 0);
    let by_place = scene.database.query("select state from outboxd.failures order by place", &[]).await;
    let states: Vec<String> = by_place.iter().map(|row| row.get(0)).collect();
    assert_eq!((states, scene.heads().await), (words("due held"), vec![head]), "it has its place again");
}

impl Scene<'_> {
    /// Of one key, by their offsets in this order, though their ids are in none.
    async fn dead_of_one_key(&self, count: i64) -> Vec<Uuid> {
        let mut ids = Vec::new();
        for n in 0..count {
            let id = self.dead("k", "no").await;
            let numbered = "update outboxd.failures set \"offset\" = $2 where message_id = $1";
            self.database.execute(numbered, &[&id, &n]).await;
            ids.push(id);
        }
        ids
    }

    /// What has become of each, in their order.
    async fn states(&self) -> Vec<String> {
        let rows = self.database.query("select state from outboxd.failures order by \"offset\"", &[]).await;
        rows.iter().map(|row| row.get(0)).collect()
    }

    async fn heads(&self) -> Vec<Uuid> {
        let rows = self.database.query("select message_id from outboxd.held_keys", &[]).await;
        rows.iter().map(|row| row.get(0)).collect()
    }
}

#[tokio::test]
async fn dead_letters_of_one_key_are_handled_in_their_order_whatever_their_ids_say() {
    // More than are decided about in one transaction.
    const COUNT: i64 = 150;
    let scene = Scene::new().await;
    let handlers = [Handler::answering(StatusCode::OK), Handler::answering(StatusCode::OK)];
    let _daemons = scene.two_agents(&handlers).await;
    scene.dead_of_one_key(COUNT).await;
    let replayed = scene.operator().run(&["retry", "run", "--group", &scene.group, "--yes"]).await;
    assert_eq!((replayed.code, replayed.stdout.trim()), (0, "150 messages sent again"), "{replayed:?}");
    scene.all_done().await;
    let done = scene.database.query("select \"offset\" from outboxd.handled order by handled_at", &[]).await;
    let done: Vec<i64> = done.iter().map(|row| row.get(0)).collect();
    assert_eq!(done, (0..COUNT).collect::<Vec<_>>());
    assert_eq!(handlers[0].count() + handlers[1].count(), 150, "each once");
    assert!(scene.heads().await.is_empty(), "the key is free");
}

#[tokio::test]
async fn a_replay_goes_before_later_ones_of_its_key_that_wait_and_behind_one_that_runs() {
    let scene = Scene::new().await;
    let operator = scene.operator();
    let ids = scene.dead_of_one_key(4).await;
    // As the third is due in an hour, and the last waits behind it.
    let failing = "update outboxd.failures set reason = null, state = case \"offset\" when 2 then 'due' else 'held' end,
        next_attempt_at = case \"offset\" when 2 then now() + interval '1 hour' end where \"offset\" in (2, 3)";
    scene.database.execute(failing, &[]).await;
    scene
        .database
        .execute(
            "insert into outboxd.held_keys (consumer_group, topic, key_digest, message_id) values ($1, $2, sha256('k'), $3)",
            &[&scene.group, &scene.topic, &ids[2]],
        )
        .await;
    let replay = async |n: usize| {
        let replayed = operator.run(&["retry", "run", &ids[n].to_string(), "--yes"]).await;
        assert_eq!((replayed.code, replayed.stdout.trim()), (0, "1 message sent again"), "{replayed:?}");
    };
    replay(1).await;
    assert_eq!((scene.states().await, scene.heads().await), (words("dead due held held"), vec![ids[1]]));
    let runs =
        "update outboxd.failures set state = 'running', target = gen_random_uuid(), next_attempt_at = null,
        expires_at = now() + interval '1 hour' where state = 'due'";
    scene.database.execute(runs, &[]).await;
    replay(0).await;
    assert_eq!((scene.states().await, scene.heads().await), (words("held running held held"), vec![ids[1]]));
    scene
        .database
        .execute("update outboxd.failures set expires_at = now() where state = 'running'", &[])
        .await;
    let handler = Handler::answering(StatusCode::OK);
    let _consumer = scene.consumer("a", &handler, &[]).await;
    let _producer = scene.producer(&[]);
    scene.all_done().await;
    let done = scene.database.query("select \"offset\" from outboxd.handled order by handled_at", &[]).await;
    assert_eq!(done.iter().map(|row| row.get(0)).collect::<Vec<i64>>(), [1, 0, 2, 3]);
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(Into::into).collect()
}

#[tokio::test]
async fn where_messages_overtake_a_failed_one_of_their_key_replays_do_not_wait_either() {
    let scene = Scene::new().await;
    let handler = Handler::answering(StatusCode::OK);
    let _consumer = scene.consumer("a", &handler, &["retry.on_failure = \"continue\""]).await;
    let policy = "select count(*) from outboxd.groups where not holds_keys";
    eventually("its policy is known", PATIENCE, async || scene.database.count(policy).await == 1).await;
    scene.dead_of_one_key(3).await;
    let replayed = scene.operator().run(&["retry", "run", "--group", &scene.group, "--yes"]).await;
    assert_eq!(replayed.code, 0, "{replayed:?}");
    assert_eq!((scene.states().await, scene.heads().await), (words("due due due"), vec![]));
}
