//! A retry that kills its process, and who runs beside it.

use super::{PATIENCE, Scene};
use crate::support::eventually;

const FRESH: i64 = 5;

/// Of the retry: the first is behind it.
const ATTEMPTS: i32 = 5;

/// It kills the process again and again while fresh messages are under way, which are under suspicion then. Each of these is
/// tried alone at last, and the retry waits meanwhile.
#[tokio::test]
async fn a_retry_that_kills_its_process_is_given_up_and_no_suspect_is_blamed_for_it() {
    let scene = Scene::new().await;
    let directory = tempfile::tempdir().unwrap();
    let (go, begun) = (directory.path().join("go"), directory.path().join("begun"));
    let script = format!(
        "if [ $(cat) = poison ]; then kill -9 $PPID; sleep 5; fi; echo >> {begun}; \
         for n in $(seq 300); do if [ -e {go} ]; then exit; fi; sleep 0.1; done",
        begun = begun.display(),
        go = go.display()
    );
    let handler = format!("kind = \"exec\"\ncommand = [\"sh\", \"-c\", \"{script}\"]\ntimeout = \"60s\"");
    let attempts = format!("retry.max_attempts = {ATTEMPTS}");
    let settings = [
        &*attempts,
        "retry.max_starts = 2",
        "retry.backoff = \"10ms\"",
        "retry.max_backoff = \"10ms\"",
        // So that it is not left with an agent that has died.
        "retry.deadline = \"2s\"",
    ];
    // It is known again at once when it comes back.
    let again = format!("groups.{}.static_membership = true", scene.group);
    let outboxd = scene.outboxd().set("agent.name = \"dies\"").set(&again);
    let outboxd = scene.with(outboxd, &handler, &settings);
    let _producer = scene.producer(&settings);
    let count = async |sql: &str| scene.database.count(sql).await;
    scene.kafka.produce_many(&scene.topic, 0, "fresh", usize::try_from(FRESH).unwrap()).await;
    let mut daemon = outboxd.consumer(&[&scene.group]);
    let are_begun = async || {
        let lines = std::fs::read_to_string(&begun).unwrap_or_default().lines().count();
        i64::try_from(lines).unwrap() == FRESH
    };
    eventually("the others are under way", PATIENCE, are_begun).await;
    scene.failure(b"poison", None).await;
    let mut deaths = 0;
    let suspected = "select count(*) from outboxd.starts where starts > 0";
    loop {
        eventually("it is killed", PATIENCE, async || !daemon.is_running()).await;
        deaths += 1;
        scene.expire().await;
        let is_enough = count(suspected).await > 0;
        daemon = outboxd.consumer(&[&scene.group]);
        if is_enough {
            break;
        }
    }
    let alone = "select count(*) from outboxd.starts where alone";
    eventually("a suspect is alone", PATIENCE, async || count(alone).await == 1).await;
    let dispatches = "select dispatch from outboxd.failures";
    let before = count(dispatches).await;
    eventually("the retry is given out, and waits", PATIENCE, async || count(dispatches).await > before + 2)
        .await;
    assert!(daemon.is_running());
    std::fs::write(&go, "").unwrap();
    let dead = "select count(*) from outboxd.failures where state = 'dead'";
    let evidence = "select count(*) from outboxd.handled";
    let is_over = async || count(dead).await == 1 && count(evidence).await == FRESH;
    loop {
        eventually("it dies, or all is at its end", PATIENCE, async || {
            !daemon.is_running() || is_over().await
        })
        .await;
        scene.expire().await;
        if is_over().await {
            break;
        }
        if !daemon.is_running() {
            deaths += 1;
            assert!(deaths < ATTEMPTS, "it is never given up");
            daemon = outboxd.consumer(&[&scene.group]);
        }
    }
    let row = scene
        .database
        .query_one("select convert_from(payload, 'UTF8'), reason, attempts from outboxd.failures", &[])
        .await;
    assert_eq!((row.get(0), row.get(1), row.get(2)), ("poison", "attempts", ATTEMPTS));
    let blamed = "select count(*) from outboxd.handled where attempt > 1";
    assert!(count(blamed).await > 0, "they were under suspicion");
    eventually("nothing is in doubt", PATIENCE, async || {
        count("select count(*) from outboxd.starts").await == 0
    })
    .await;
}
