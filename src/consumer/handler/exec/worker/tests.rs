use std::path::Path;
use std::time::Instant as Clock;

use bytes::Bytes;

use super::super::super::example::delivery;
use super::*;

const AMPLE: Duration = Duration::from_secs(60);

fn shell(script: &str, timeout: Duration) -> Workers {
    Workers::new(&["sh", "-c", script].map(String::from), timeout).unwrap()
}

fn id_of() -> &'static str {
    r#"id=${line#*\"id\":\"}; id=${id%%\"*}"#
}

/// A worker in shell whose loop ends each turn with `answer`.
fn answering(answer: &str) -> String {
    format!("while IFS= read -r line; do {}; {answer}; done", id_of())
}

fn done() -> String {
    answering(r#"echo "{\"id\":\"$id\",\"outcome\":\"done\"}""#)
}

async fn reason_of(workers: &Workers) -> String {
    match workers.handle(&delivery()).await {
        Outcome::Retry { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).unwrap_or_default().lines().count()
}

#[tokio::test]
async fn one_process_takes_message_after_message() {
    let folder = tempfile::tempdir().unwrap();
    let starts = folder.path().join("starts");
    let workers = shell(&format!("echo $$ >> {}; {}", starts.display(), done()), AMPLE);
    for _ in 0..20 {
        assert_eq!(workers.handle(&delivery()).await, Outcome::Done);
    }
    assert_eq!(lines(&starts), 1);
}

#[tokio::test]
async fn calls_at_once_have_a_process_each() {
    let folder = tempfile::tempdir().unwrap();
    let starts = folder.path().join("starts");
    // Each answers only when all four are there.
    let wait = format!("while [ $(wc -l < {0}) -lt 4 ]; do sleep 0.01; done", starts.display());
    let script = format!(
        "echo $$ >> {}; {}",
        starts.display(),
        answering(&format!(r#"{wait}; echo "{{\"id\":\"$id\",\"outcome\":\"done\"}}""#))
    );
    let workers = shell(&script, AMPLE);
    let delivery = delivery();
    for _ in 0..2 {
        let outcomes = join_all((0..4).map(|_| workers.handle(&delivery))).await;
        assert_eq!(outcomes, vec![Outcome::Done; 4]);
    }
    assert_eq!(lines(&starts), 4);
}

#[tokio::test]
async fn a_worker_that_misbehaves_fails_its_message_and_says_why() {
    for (script, why) in [
        ("echo broken >&2; exit 3", "the worker ended without an answer (exit status: 3): broken"),
        ("read -r line; kill -KILL $$", "the worker ended without an answer (signal: 9 (SIGKILL))"),
        ("exec >&-; sleep 1000", "the worker closed its input or output"),
        ("read -r line; echo what; sleep 1000", "the worker was ended: its answer is none (expected value"),
        (
            r#"read -r line; echo '{"id":"x","outcome":"done"}'; sleep 1000"#,
            "the worker was ended: it answered for another message: x",
        ),
        ("read -r line; tr '\\0' a < /dev/zero", "the worker was ended: its answer is longer than 64 KiB"),
    ] {
        let reason = reason_of(&shell(script, AMPLE)).await;
        assert!(reason.starts_with(why), "{script}: {reason}");
    }
}

#[tokio::test]
async fn a_worker_that_does_not_read_cannot_answer() {
    let mut delivery = delivery();
    delivery.record.payload = Some(Bytes::from(vec![b'x'; 1_000_000]));
    let script = "echo '{\"id\":\"01910000-0000-7000-8000-00000000002a\",\"outcome\":\"done\"}'; sleep 1000";
    let outcome = shell(script, AMPLE).handle(&delivery).await;
    assert_eq!(outcome, reason::retry("the worker was ended: it answered before it had read its message"));
    let echo = answering(r#"test ${#line} -gt 1000000 && echo "{\"id\":\"$id\",\"outcome\":\"done\"}""#);
    assert_eq!(shell(&echo, AMPLE).handle(&delivery).await, Outcome::Done);
}

#[tokio::test]
async fn a_worker_that_hangs_is_ended_and_the_next_message_has_another() {
    let limit = Duration::from_millis(500);
    let folder = tempfile::tempdir().unwrap();
    let starts = folder.path().join("starts");
    // The first hangs, whatever comes.
    let script = format!("echo >> {0}; test $(wc -l < {0}) = 1 && sleep 1000; {1}", starts.display(), done());
    let workers = shell(&script, limit);
    assert_eq!(reason_of(&workers).await, "timed out after 500ms");
    assert_eq!(workers.handle(&delivery()).await, Outcome::Done);
    assert_eq!(lines(&starts), 2);
}

#[tokio::test]
async fn a_program_that_ends_at_once_is_not_started_without_end() {
    let folder = tempfile::tempdir().unwrap();
    let starts = folder.path().join("starts");
    let workers = shell(&format!("echo >> {}; exit 1", starts.display()), Duration::from_millis(700));
    let delivery = delivery();
    let started = Clock::now();
    let mut calls = 0;
    while started.elapsed() < Duration::from_secs(2) {
        join_all((0..8).map(|_| workers.handle(&delivery))).await;
        calls += 8;
        tokio::task::yield_now().await;
    }
    // The first eight come at once, then 0.1 s and its doubles lie between.
    assert!(calls > 8 && lines(&starts) < 16, "{} starts for {calls} calls", lines(&starts));
}

#[tokio::test]
async fn a_worker_that_ended_while_idle_costs_no_message() {
    let script = format!(
        "read -r line; {}; echo \"{{\\\"id\\\":\\\"$id\\\",\\\"outcome\\\":\\\"done\\\"}}\"",
        id_of()
    );
    let workers = shell(&script, AMPLE);
    for _ in 0..3 {
        assert_eq!(workers.handle(&delivery()).await, Outcome::Done);
        let mut idle = workers.idle().pop().unwrap();
        while idle.is_quiet() {
            tokio::task::yield_now().await;
        }
        workers.idle().push(idle);
    }
}

#[tokio::test]
async fn at_the_end_input_is_closed_and_a_worker_comes_to_its_own_end() {
    let folder = tempfile::tempdir().unwrap();
    let end = folder.path().join("end");
    let workers = shell(&format!("{}; echo > {}", done(), end.display()), AMPLE);
    assert_eq!(workers.handle(&delivery()).await, Outcome::Done);
    workers.close().await;
    assert_eq!(lines(&end), 1);
}

/// A program of the documentation, by the name that stands above it.
fn documented(name: &str, folder: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/handlers.md")).unwrap();
    let program = text.split(&format!("\n`{name}`:\n")).nth(1).unwrap();
    let program = program.split("```").nth(1).unwrap().split_once('\n').unwrap().1;
    let path = folder.join(name);
    std::fs::write(&path, program).unwrap();
    let interpreter = if Path::new(name).extension().unwrap() == "py" { "python3" } else { "sh" };
    let script = format!("ORDERS={} exec {interpreter} {}", folder.display(), path.display());
    ["sh", "-c", &script].map(String::from).into()
}

#[tokio::test]
async fn the_documented_workers_work() {
    let folder = tempfile::tempdir().unwrap();
    let python = Workers::new(&documented("orders-worker.py", folder.path()), AMPLE).unwrap();
    let shell = Workers::new(&documented("orders-worker.sh", folder.path()), AMPLE).unwrap();
    let (order, mut other) = (delivery(), delivery());
    other.record.headers.clear();
    other.record.payload = None;
    for _ in 0..2 {
        assert_eq!(python.handle(&order).await, Outcome::Done);
        assert_eq!(python.handle(&other).await, Outcome::Permanent { reason: "not an order: None".into() });
        assert_eq!(shell.handle(&order).await, Outcome::Done);
        assert_eq!(shell.handle(&other).await, Outcome::Done);
    }
    let kept = folder.path().join(format!("{}.json", order.message_id));
    let told: serde_json::Value = serde_json::from_slice(&std::fs::read(kept).unwrap()).unwrap();
    assert_eq!(told["payload"], serde_json::Value::Null);
}
