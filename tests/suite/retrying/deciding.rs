//! What an operator decides about failures and dead letters.

use axum::http::StatusCode;
use serde_json::Value;
use uuid::Uuid;

use super::{Handler, PATIENCE, Scene};
use crate::support::{Outboxd, eventually};

impl Scene {
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
    assert_eq!(scene.database.count("select count(*) from outboxd.failures where state = 'due'").await, 2);
}
