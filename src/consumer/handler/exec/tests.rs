use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use rustix::process::{Pid, test_kill_process};

use super::super::example::delivery;
use super::*;

const AMPLE: Duration = Duration::from_secs(60);

/// Long enough for a shell to write its pid.
const LIMIT: Duration = Duration::from_secs(1);

fn shell(script: &str, timeout: Duration) -> ExecHandler {
    ExecHandler::new(&["sh", "-c", script].map(String::from), timeout).unwrap()
}

async fn outcome(script: &str) -> Outcome {
    shell(script, AMPLE).handle(&delivery()).await
}

fn permanent(reason: &str) -> Outcome {
    Outcome::Permanent { reason: reason.into() }
}

/// True once the process is gone, or only its entry is left for whoever reaps it.
fn is_gone(pid: i32) -> bool {
    let zombie =
        || procfs::process::Process::new(pid).and_then(|p| p.stat()).is_ok_and(|stat| stat.state == 'Z');
    test_kill_process(Pid::from_raw(pid).unwrap()).is_err() || zombie()
}

async fn until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + AMPLE;
    while !condition() {
        assert!(Instant::now() < deadline, "never happened");
        tokio::task::yield_now().await;
    }
}

/// The pids that a script has written, one a line.
fn pids(path: &Path, count: usize) -> Option<Vec<i32>> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let pids: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    (pids.len() == count && text.ends_with('\n')).then_some(pids)
}

#[tokio::test]
async fn the_exit_status_is_the_outcome() {
    assert_eq!(outcome("exit 0").await, Outcome::Done);
    assert_eq!(outcome("exit 75").await, reason::retry("exit status: 75"));
    assert_eq!(outcome("echo busy >&2; exit 1").await, reason::retry("exit status: 1: busy"));
    assert_eq!(outcome("echo bad >&2; exit 65").await, permanent("exit status: 65: bad"));
    assert_eq!(outcome("echo loud >&2; exit 0").await, Outcome::Done);
}

#[tokio::test]
async fn a_crash_names_its_signal() {
    assert_eq!(outcome("echo ouch >&2; kill -KILL $$").await, reason::retry("signal: 9 (SIGKILL): ouch"));
    let Outcome::Retry { reason, .. } = outcome("ulimit -c 0; kill -SEGV $$").await else { panic!() };
    assert!(reason.starts_with("signal: 11 (SIGSEGV)"), "{reason}");
}

#[tokio::test]
async fn a_program_gets_payload_and_facts_and_no_shell_reads_them() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let script = r#"{ cat; echo; echo "$OUTBOXD_TYPE|$OUTBOXD_KEY|$OUTBOXD_ATTEMPT|${OUTBOXD_TOMBSTONE-none}|$2"; } > "$1""#;
    let command = ["sh", "-c", script, "sh", out.to_str().unwrap(), "$(exit 3)"].map(String::from);
    let handler = ExecHandler::new(&command, AMPLE).unwrap();
    assert_eq!(handler.handle(&delivery()).await, Outcome::Done);
    assert_eq!(fs::read_to_string(&out).unwrap(), "{\"id\":42}\nOrderPlaced|customer 7|3|none|$(exit 3)\n");
    let mut tombstone = delivery();
    tombstone.record.payload = None;
    assert_eq!(handler.handle(&tombstone).await, Outcome::Done);
    assert_eq!(fs::read_to_string(&out).unwrap(), "\nOrderPlaced|customer 7|3|1|$(exit 3)\n");
}

#[tokio::test]
async fn what_overrides_the_configuration_is_withheld() {
    let mut handler = shell("test -z \"${CARGO_PKG_NAME-}\"", AMPLE);
    handler.program.withheld = vec!["CARGO_PKG_NAME".into()];
    assert!(std::env::var_os("CARGO_PKG_NAME").is_some());
    assert_eq!(handler.handle(&delivery()).await, Outcome::Done);
}

#[tokio::test]
async fn a_program_may_leave_its_input_unread() {
    let mut delivery = delivery();
    delivery.record.payload = Some(Bytes::from(vec![b'x'; 5_000_000]));
    assert_eq!(shell("exit 0", AMPLE).handle(&delivery).await, Outcome::Done);
    assert_eq!(shell("exec 0<&-; exit 75", AMPLE).handle(&delivery).await, reason::retry("exit status: 75"));
    let reads_all = shell("test $(wc -c) = 5000000", AMPLE);
    assert_eq!(reads_all.handle(&delivery).await, Outcome::Done);
}

#[tokio::test]
async fn a_chatty_program_neither_blocks_nor_fills_memory() {
    let script = "head -c 10000000 /dev/zero | tr '\\0' a; head -c 10000000 /dev/zero | tr '\\0' b >&2; echo end >&2; exit 1";
    let Outcome::Retry { reason, .. } = outcome(script).await else { panic!() };
    assert!(reason.starts_with("exit status: 1: bbbb") && reason.ends_with("bend"), "{reason}");
    assert!(reason.len() <= reason::LIMIT + 20, "{}", reason.len());
}

#[tokio::test]
async fn a_time_out_ends_the_program_and_its_children() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pids");
    let script = format!("sleep 1000 & echo $! >> {0}; echo $$ >> {0}; wait", path.display());
    let started = Instant::now();
    let outcome = shell(&script, LIMIT).handle(&delivery()).await;
    assert_eq!(outcome, reason::retry("timed out after 1s"));
    assert!(started.elapsed() < LIMIT + GRACE, "asked to end, it ends at once");
    for pid in pids(&path, 2).unwrap() {
        until(|| is_gone(pid)).await;
    }
}

#[tokio::test]
async fn a_program_that_will_not_end_is_ended() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pids");
    // Both ignore the request; only the child would outlive the shell.
    let script = format!(
        "trap '' TERM; sh -c 'echo $$ >> {0}; while :; do sleep 1; done' & echo $$ >> {0}; wait",
        path.display()
    );
    let outcome = shell(&script, LIMIT).handle(&delivery()).await;
    assert_eq!(outcome, reason::retry("timed out after 1s"));
    for pid in pids(&path, 2).unwrap() {
        until(|| is_gone(pid)).await;
    }
}

#[tokio::test]
async fn a_child_that_ignores_the_request_does_not_outlive_a_parent_that_obeys() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pids");
    let script =
        format!("(trap '' TERM; sh -c 'echo $$ >> {}; while :; do sleep 1; done') & wait", path.display());
    let outcome = shell(&script, LIMIT).handle(&delivery()).await;
    assert_eq!(outcome, reason::retry("timed out after 1s"));
    let pid = pids(&path, 1).unwrap()[0];
    until(|| is_gone(pid)).await;
}

#[tokio::test]
async fn a_forgotten_attempt_takes_its_processes_along() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pids");
    let handler = shell(&format!("sleep 1000 & echo $! >> {0}; echo $$ >> {0}; wait", path.display()), AMPLE);
    let delivery = delivery();
    tokio::select! {
        outcome = handler.handle(&delivery) => panic!("{outcome:?}"),
        () = until(|| pids(&path, 2).is_some()) => {}
    }
    for pid in pids(&path, 2).unwrap() {
        until(|| is_gone(pid)).await;
    }
}

#[tokio::test]
async fn what_a_program_leaves_in_the_background_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pids");
    let script = format!("sleep 1000 & echo $! > {}; echo early >&2; exit 1", path.display());
    let started = Instant::now();
    assert_eq!(outcome(&script).await, reason::retry("exit status: 1: early"));
    assert!(started.elapsed() < AMPLE / 2);
    let pid = pids(&path, 1).unwrap()[0];
    assert!(!is_gone(pid), "it was left running on purpose");
    rustix::process::kill_process(Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn an_environment_too_large_is_the_messages_fault() {
    let mut delivery = delivery();
    delivery.record.headers = vec![("big".into(), Some(Bytes::from(vec![b'x'; 500_000])))];
    let outcome = shell("exit 0", AMPLE).handle(&delivery).await;
    assert_eq!(outcome, permanent("its key or headers are too large for the environment of a program"));
}

#[tokio::test]
async fn a_program_that_went_missing_is_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("handle");
    std::os::unix::fs::symlink("/bin/true", &program).unwrap();
    let handler = ExecHandler::new(&[program.to_str().unwrap().to_owned()], AMPLE).unwrap();
    assert_eq!(handler.handle(&delivery()).await, Outcome::Done);
    fs::remove_file(&program).unwrap();
    let Outcome::Retry { reason, .. } = handler.handle(&delivery()).await else { panic!() };
    assert!(reason.contains("could not be run: No such file") && reason.contains("still there"), "{reason}");
}

fn script(folder: &Path, name: &str, mode: u32) -> String {
    let path = folder.join(name);
    fs::write(&path, "#!/bin/sh\nexit 0\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_program_that_cannot_run_is_found_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |program: &str| ExecHandler::new(&[program.to_owned()], AMPLE).err().unwrap().to_string();
    let says = |program: &str, problem: &str| {
        assert_eq!(
            refused(program),
            format!("program `{program}` {problem}: correct `command`, or install it")
        );
    };
    says("outboxd-no-such-program", "is not in PATH");
    says("./outboxd-no-such-program", "does not exist");
    says(folder.path().to_str().unwrap(), "is not a file");
    says(&script(folder.path(), "plain", 0o644), "is not executable by the daemon's user");
    for empty in [vec![], vec![String::new(), "argument".into()]] {
        assert!(matches!(ExecHandler::new(&empty, AMPLE), Err(SetupError::NoCommand)));
    }
    assert!(ExecHandler::new(&[script(folder.path(), "good", 0o755)], AMPLE).is_ok());
}
