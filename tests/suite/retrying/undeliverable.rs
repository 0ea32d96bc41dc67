//! Dispatches that come to nothing: an order keeps them from starting, or nobody starts them at all.

use axum::http::StatusCode;

use super::{Handler, PATIENCE, Scene};
use crate::support::eventually;

#[tokio::test]
async fn a_pause_hands_back_what_has_not_started_and_costs_no_attempt() {
    let scene = Scene::new().await;
    let slow = Handler::stuck();
    let one = ["concurrency = 1"];
    let consumer = scene.consumer("a", &slow, &one).await;
    let _producer = scene.producer(&one);
    scene.takers_are(1).await;
    for _ in 0..3 {
        scene.failure(b"m", None).await;
    }
    let of = async |states: &str| {
        scene
            .database
            .count(&format!(
                "select count(*) from outboxd.failures where state in ({states}) and attempts = 1"
            ))
            .await
    };
    eventually("one runs", PATIENCE, async || slow.count() == 1).await;
    eventually("one waits at the agent", PATIENCE, async || of("'retrying'").await == 1).await;
    let pause = "update outboxd.groups set paused_at = now(), paused_by = 'ann'";
    scene.database.execute(pause, &[]).await;
    consumer.wait_for_line("nothing more is started").await;
    slow.let_go();
    eventually("what runs comes to its end", PATIENCE, async || scene.evidence().await.len() == 1).await;
    eventually("the others are handed back", PATIENCE, async || of("'due'").await == 2).await;
    assert_eq!(slow.count(), 1, "nothing more was started");
    scene.database.execute("update outboxd.groups set paused_at = null", &[]).await;
    scene.all_done().await;
    assert!(scene.evidence().await.iter().all(|(_, _, attempt)| *attempt == 2));
}

#[tokio::test]
async fn what_an_agent_reads_and_never_starts_is_a_dead_letter_at_last_and_no_endless_round() {
    let scene = Scene::new().await;
    let handler = Handler::answering(StatusCode::OK);
    let consumer = scene.consumer("a", &handler, &[]).await;
    scene.takers_are(1).await;
    consumer.terminate();
    assert_eq!(consumer.wait_exit().await, Some(0));
    // It says that it reads and takes retries, and starts none.
    scene
        .database
        .execute(
            "insert into outboxd.members (consumer_group, agent_id, agent, seen_at, takes_retries)
             values ($1, gen_random_uuid(), 'deaf', now() + interval '1 h', true)",
            &[&scene.group],
        )
        .await;
    let _producer = scene.producer(&[]);
    scene.failure(b"m", None).await;
    for dispatch in 1..=3_i64 {
        // Its deadline begins; then time is made to have passed.
        let passed = "update outboxd.failures set published_at = now() - interval '20 s', expires_at = now()
            where state = 'retrying' and dispatch = $1 and expires_at is not null";
        eventually("it is published", PATIENCE, async || {
            scene.database.execute(passed, &[&dispatch]).await == 1
        })
        .await;
    }
    let dead = "select count(*) from outboxd.failures where state = 'dead' and reason = 'undeliverable' and attempts = 1";
    eventually("it is given up", PATIENCE, async || scene.database.count(dead).await == 1).await;
    let error = scene.database.query_one("select error from outboxd.failures", &[]).await;
    assert!(error.get::<_, String>(0).contains("deaf"));
    assert_eq!(handler.count(), 0);
}
