//! Keys that are held: their messages go on in their order, and none is forgotten.

use std::time::Duration;

use axum::http::StatusCode;
use tokio_postgres::Client;
use uuid::Uuid;

use super::{Handler, PATIENCE, Scene};
use crate::support::eventually;

const INSERT: &str = "
    insert into outboxd.failures (consumer_group, message_id, state, topic, partition, \"offset\", key, payload, header_names,
      header_values, attempts, next_attempt_at)
    values ($1, $2, $3, $4, 0, 0, 'k', $5, '{}', '{}', 0, case $3 when 'due' then clock_timestamp() end)";

/// As the consumer does it: behind the head if the key is held, and as its head if it is not.
async fn copy(client: &mut Client, scene: &Scene<'_>, payload: &[u8]) {
    let id = Uuid::new_v4();
    loop {
        let transaction = client.transaction().await.unwrap();
        let held = transaction
            .query_opt(
                "select from outboxd.held_keys where consumer_group = $1 and topic = $2 and key_digest = sha256('k') for share",
                &[&scene.group, &scene.topic],
            )
            .await
            .unwrap();
        let state = if held.is_some() { "held" } else { "due" };
        if held.is_none() {
            let taken = transaction
                .execute(
                    "insert into outboxd.held_keys (consumer_group, topic, key_digest, message_id)
                     values ($1, $2, sha256('k'), $3) on conflict do nothing",
                    &[&scene.group, &scene.topic, &id],
                )
                .await
                .unwrap();
            if taken == 0 {
                continue;
            }
        }
        transaction.execute(INSERT, &[&scene.group, &id, &state, &scene.topic, &payload]).await.unwrap();
        transaction.commit().await.unwrap();
        return;
    }
}

impl Scene<'_> {
    async fn held_keys(&self) -> i64 {
        self.database.count("select count(*) from outboxd.held_keys").await
    }
}

#[tokio::test]
async fn messages_of_a_held_key_go_on_in_order_while_others_join_and_none_is_left() {
    let scene = Scene::new().await;
    let handlers = [Handler::answering(StatusCode::OK), Handler::answering(StatusCode::OK)];
    let _daemons = scene.two_agents(&handlers).await;
    let mut client = scene.database.connect().await;
    for n in 0..300_u32 {
        copy(&mut client, &scene, &n.to_be_bytes()).await;
        // Now and then the key comes free in between.
        if n % 60 == 59 {
            eventually("the key is free", PATIENCE, async || scene.held_keys().await == 0).await;
        }
    }
    scene.all_done().await;
    assert_eq!(scene.held_keys().await, 0);
    assert_eq!(scene.evidence().await.len(), 300);
    let mut seen = Vec::new();
    for handler in &handlers {
        let own: Vec<Vec<u8>> = handler.calls().into_iter().map(|call| call.payload).collect();
        assert!(own.is_sorted(), "one after the other at each agent");
        seen.extend(own);
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 300);
}

#[tokio::test]
async fn a_key_waits_behind_its_dead_head_or_goes_on_as_the_group_says() {
    for (on_dead, left) in [("release", 1), ("hold", 3)] {
        let scene = Scene::new().await;
        let refuses = Handler::answering(StatusCode::BAD_REQUEST);
        let settings = [format!("retry.on_dead = \"{on_dead}\"")];
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let _consumer = scene.consumer("a", &refuses, &settings).await;
        let _producer = scene.producer(&settings);
        scene.takers_are(1).await;
        let mut client = scene.database.connect().await;
        for n in 0..3_u32 {
            copy(&mut client, &scene, &n.to_be_bytes()).await;
        }
        let dead = "select count(*) from outboxd.dead_letters";
        let expected = 4 - left;
        eventually("they are given up", PATIENCE, async || scene.database.count(dead).await == expected)
            .await;
        let held = "select count(*) from outboxd.failures where state = 'held'";
        assert_eq!(scene.database.count(held).await, 3 - expected);
        assert_eq!(scene.held_keys().await, i64::from(on_dead == "hold"));
    }
}

#[tokio::test]
async fn a_key_whose_head_is_gone_is_let_go() {
    let scene = Scene::new().await;
    let handler = Handler::taking(Duration::ZERO);
    let _consumer = scene.consumer("a", &handler, &[]).await;
    scene.takers_are(1).await;
    let mut client = scene.database.connect().await;
    for n in 0..3_u32 {
        copy(&mut client, &scene, &n.to_be_bytes()).await;
    }
    scene.database.execute("delete from outboxd.failures where state = 'due'", &[]).await;
    scene.database.execute("update outboxd.held_keys set held_at = now() - interval '5 minutes'", &[]).await;
    let _producer = scene.producer(&[]);
    scene.all_done().await;
    assert_eq!((handler.count(), scene.held_keys().await), (2, 0));
}
