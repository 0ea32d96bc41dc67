//! How retries end: with evidence, or as a dead letter; and what of a record comes through.

use std::time::Duration;

use axum::http::StatusCode;
use bytes::Bytes;
use outboxd::domain::delivery::Record;
use outboxd::pg::pool::Lent;
use outboxd::pg::retrying::{self, Fence, Named};
use uuid::Uuid;

use super::{Handler, PATIENCE, Scene};
use crate::support::eventually;

#[tokio::test]
async fn every_failed_attempt_is_kept_and_the_last_one_leaves_a_dead_letter() {
    let scene = Scene::new().await;
    let refuses = Handler::answering(StatusCode::SERVICE_UNAVAILABLE);
    let few = ["retry.max_attempts = 3", "retry.backoff = \"10ms\""];
    let _consumer = scene.consumer("a", &refuses, &few).await;
    let _producer = scene.producer(&few);
    scene.takers_are(1).await;
    let id = scene.failure(b"m", None).await;
    let dead = "select count(*) from outboxd.dead_letters where attempts = 3 and reason = 'attempts'";
    eventually("it is given up", PATIENCE, async || scene.database.count(dead).await == 1).await;
    let attempts = scene
        .database
        .query("select attempt, agent from outboxd.attempts where message_id = $1 order by attempt", &[&id])
        .await;
    let attempts: Vec<(i32, String)> = attempts.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(attempts, [(2, "a".to_owned()), (3, "a".to_owned())]);
    assert_eq!(refuses.count(), 2);
}

#[tokio::test]
async fn an_answer_that_is_final_ends_it_at_once_and_evidence_that_was_there_before_calls_nobody() {
    let scene = Scene::new().await;
    let refuses = Handler::answering(StatusCode::BAD_REQUEST);
    let _consumer = scene.consumer("a", &refuses, &[]).await;
    scene.takers_are(1).await;
    let known = scene.failure(b"known", None).await;
    scene
        .database
        .execute(
            "insert into outboxd.handled (consumer_group, message_id, topic, partition, \"offset\", agent, attempt)
             values ($1, $2, 't', 0, 0, 'b', 1)",
            &[&scene.group, &known],
        )
        .await;
    let hopeless = scene.failure(b"hopeless", None).await;
    let _producer = scene.producer(&[]);
    let dead = "select count(*) from outboxd.dead_letters where attempts = 2 and reason = 'permanent'";
    eventually("it is given up", PATIENCE, async || scene.database.count(dead).await == 1).await;
    eventually("the other is closed", PATIENCE, async || scene.failures().await == 1).await;
    let called: Vec<String> = refuses.calls().into_iter().map(|call| call.id).collect();
    assert_eq!(called, [hopeless.to_string()]);
}

#[tokio::test]
async fn the_effect_of_a_retry_and_its_evidence_are_one_transaction() {
    let scene = Scene::new().await;
    scene
        .database
        .batch(
            "create table public.effects (id uuid); grant insert on public.effects to public;
             create function public.on_retry(d outboxd.delivery) returns void language plpgsql as $$
             begin
               insert into public.effects values (d.id);
               if d.attempt < 4 then raise 'not yet'; end if;
             end $$",
        )
        .await;
    let quick = ["retry.backoff = \"10ms\""];
    let outboxd = scene.outboxd().set("agent.name = \"a\"");
    let handler = "kind = \"sql\"\nfunction = \"public.on_retry\"";
    let _consumer = scene.with(outboxd, handler, &quick).consumer(&[&scene.group]);
    let _producer = scene.producer(&quick);
    scene.takers_are(1).await;
    let id = scene.failure(b"m", None).await;
    scene.all_done().await;
    assert_eq!(scene.evidence().await, [(id, "a".to_owned(), 4)]);
    assert_eq!(scene.database.count("select count(*) from public.effects").await, 1);
    assert_eq!(scene.database.count("select count(*) from outboxd.attempts").await, 2);
}

#[tokio::test]
async fn an_operation_that_another_message_has_done_is_not_done_again_and_one_that_it_is_at_is_waited_for() {
    let scene = Scene::new().await;
    let handler = Handler::answering(StatusCode::OK);
    let _consumer = scene.consumer("a", &handler, &[]).await;
    let _producer = scene.producer(&[]);
    scene.takers_are(1).await;
    let (other, id) = (Uuid::new_v4(), Uuid::new_v4());
    scene
        .database
        .execute(
            "insert into outboxd.idempotency_keys (consumer_group, namespace, key, message_id, payload_hash, state, owner,
               expires_at) values ($1, 'key', 'order-1', $2, 0, 'claimed', $2, now() + interval '1 hour')",
            &[&scene.group, &other],
        )
        .await;
    scene
        .database
        .execute(
            "insert into outboxd.failures (consumer_group, message_id, state, topic, partition, \"offset\", header_names,
               header_values, idempotency_key, attempts, next_attempt_at)
             values ($1, $2, 'due', $3, 0, 0, '{idempotency-key}', array['order-1'::bytea], 'order-1', 1, now())",
            &[&scene.group, &id, &scene.topic],
        )
        .await;
    let again = "select count(*) from outboxd.failures where dispatch >= 2 and attempts = 1";
    eventually("it is handed back, uncounted", PATIENCE, async || scene.database.count(again).await == 1)
        .await;
    scene
        .database
        .execute(
            "update outboxd.idempotency_keys set state = 'done', expires_at = null, done_at = now()",
            &[],
        )
        .await;
    scene.all_done().await;
    assert_eq!(handler.count(), 0);
    let duplicate = "select count(*) from outboxd.handled where duplicate_of is not null";
    assert_eq!(scene.database.count(duplicate).await, 1);
    let dispatches = scene.kafka.read_all(&outboxd::domain::dispatch::topic(&scene.group)).await;
    let inherits =
        |record: &crate::support::Record| record.header("idempotency-key").as_deref() == Some("order-1");
    assert!(dispatches.len() >= 2 && dispatches.iter().all(inherits), "{dispatches:?}");
}

#[tokio::test]
async fn a_record_comes_through_byte_for_byte() {
    let scene = Scene::new().await;
    let header = |name: &str, value: Option<&'static [u8]>| (name.to_owned(), value.map(Bytes::from_static));
    let record = Record {
        topic: scene.topic.as_str().into(),
        partition: 3,
        offset: 77,
        timestamp: chrono::DateTime::from_timestamp_millis(1_790_000_000_123),
        key: Some(Bytes::from_static(&[0, 0xff, b'k'])),
        payload: Some(Bytes::from((0..1_000_000_u32).map(|n| (n % 251) as u8).collect::<Vec<u8>>())),
        headers: vec![
            header("trace", Some(&[0xff, 0xfe, 0])),
            header("tenant", Some(b"first")),
            header("tenant", Some(b"second")),
            header("none", None),
            header("empty", Some(b"")),
        ],
    };
    let (id, agent) = (Uuid::new_v4(), Uuid::new_v4());
    let names: Vec<&str> = record.headers.iter().map(|(name, _)| name.as_str()).collect();
    let values: Vec<Option<&[u8]>> = record.headers.iter().map(|(_, value)| value.as_deref()).collect();
    scene
        .database
        .execute(
            "insert into outboxd.failures (consumer_group, message_id, state, topic, partition, \"offset\", recorded_at, key,
               payload, header_names, header_values, dispatch, target)
             values ($1, $2, 'retrying', $3, 3, 77, $4, $5, $6, $7, $8, 1, $9)",
            &[
                &scene.group,
                &id,
                &scene.topic,
                &record.timestamp,
                &record.key.as_deref(),
                &record.payload.as_deref(),
                &names,
                &values,
                &agent,
            ],
        )
        .await;
    let pool = scene.database.agent_pool();
    let fence = Fence { group: &scene.group, agent };
    let open = async |dispatch| {
        let this = Named { message_id: id, dispatch };
        pool.ask(PATIENCE, async |client: &mut Lent| retrying::open(&*client, fence, &[this]).await)
            .await
            .unwrap()
            .pop()
    };
    let start = async |dispatch| {
        let this = Named { message_id: id, dispatch };
        let lease = Duration::from_secs(9);
        let started = pool.ask(PATIENCE, async |client: &mut Lent| {
            retrying::start(&*client, fence, &[(this, 0)], lease).await
        });
        started.await.unwrap().contains(&id)
    };
    assert_eq!(open(1).await.unwrap().record, record);
    assert!(!start(2).await, "it is not the dispatch that counts");
    assert!(start(1).await);
    assert!(start(1).await, "its answer may be lost");
    assert!(open(1).await.is_none(), "it is under way");
}

#[tokio::test]
async fn every_attempt_tells_its_reason_and_a_dead_letter_is_an_error_once() {
    let settings = ["retry.max_attempts = 3", "retry.backoff = \"100ms\""];
    let telling = |log: &str, level: &str, words: &[&str]| {
        let level = format!("\"level\":\"{level}\"");
        log.lines()
            .filter(|line| line.contains(&level) && words.iter().all(|word| line.contains(word)))
            .count()
    };
    for (status, reason, again) in
        [(StatusCode::SERVICE_UNAVAILABLE, "attempts", 2), (StatusCode::BAD_REQUEST, "permanent", 0)]
    {
        let (scene, handler) = (Scene::new().await, Handler::answering(status));
        let consumer = scene.consumer("a", &handler, &settings).await;
        let _producer = scene.producer(&settings);
        scene.takers_are(1).await;
        scene.kafka.produce(&scene.topic, None, Some(b"x"), &[]).await;
        consumer.wait_for_line("a dead letter").await;
        let (log, code) = (consumer.log(), status.as_str());
        let dead = format!("a dead letter ({reason})");
        assert_eq!(telling(&log, "ERROR", &["dead letter"]), 1, "{log}");
        assert_eq!(telling(&log, "ERROR", &[&dead, code]), 1, "{log}");
        assert_eq!(telling(&log, "WARN", &["tried again in", code]), again, "{log}");
    }
}
