//! Ends what the tests started, however they end: a shell that outlives this process by a moment.
//!
//! It reads what to end from a pipe. The pipe closes when this process is gone, also after a SIGKILL.

use std::fmt::Display;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{LazyLock, Mutex};

const SCRIPT: &str = r#"
trap '' HUP INT TERM
pids=" "
while read -r word rest; do
  case $word in
    end) pids="$pids$rest " ;;
    forget) pids=$(printf '%s' "$pids" | sed "s/ [A-Z]*:$rest / /") ;;
    remove) set -- "$@" "$rest" ;;
  esac
done
for entry in $pids; do kill -s "${entry%%:*}" "${entry#*:}"; kill -s CONT "${entry#*:}"; done
for entry in $pids; do
  left=50
  while kill -0 "${entry#*:}" && [ $left -gt 0 ]; do sleep 0.1; left=$((left - 1)); done
  kill -s KILL "${entry#*:}"
done
for directory in "$@"; do rm -rf "$directory"; done
"#;

#[expect(clippy::zombie_processes, reason = "it ends after this process")]
static PIPE: LazyLock<Mutex<ChildStdin>> = LazyLock::new(|| {
    let mut shell = Command::new("sh");
    // A group of its own, so that a Ctrl-C at the terminal is not for it.
    shell.args(["-c", SCRIPT, "watchdog"]).process_group(0);
    let mut child = shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    Mutex::new(child.stdin.take().unwrap())
});

/// When this process ends, end that one by `signal` ("KILL"), at the latest after a few seconds.
pub fn end(pid: impl Display, signal: &str) {
    tell(format_args!("end {signal}:{pid}"));
}

/// That process has ended: its number may belong to another one now.
pub fn forget(pid: impl Display) {
    tell(format_args!("forget {pid}"));
}

/// When this process ends, remove that directory, after the processes.
pub fn remove(directory: &Path) {
    tell(format_args!("remove {}", directory.display()));
}

fn tell(line: std::fmt::Arguments<'_>) {
    writeln!(PIPE.lock().unwrap(), "{line}").expect("the watchdog runs");
}
