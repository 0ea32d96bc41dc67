//! A process that tests start, signal and wait for; its output goes to a file.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::{eventually_some, watchdog};

const TAIL_LINES: usize = 40;

pub struct Process {
    name: String,
    child: Mutex<Child>,
    pid: Pid,
    log: PathBuf,
}

impl Process {
    /// Starts it, its output appended to `log`. `last_signal` ends it, should this process end first.
    pub fn start(name: &str, command: &mut Command, log: &Path, last_signal: &str) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(log).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        let child = command.spawn().unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
        watchdog::end(child.id(), last_signal);
        let pid = Pid::from_child(&child);
        Self { name: name.to_owned(), child: Mutex::new(child), pid, log: log.to_owned() }
    }

    pub fn id(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    /// Does nothing if the process has ended. One that is stopped stands still when this returns, and not only soon: a signal
    /// that comes after would overtake the stop.
    pub fn signal(&self, signal: Signal) {
        // Under the lock of whoever reaps it, so that the number is still its own.
        let mut child = self.child.lock().unwrap();
        if child.try_wait().unwrap().is_none() {
            kill_process(self.pid, signal).unwrap();
            if signal == Signal::STOP {
                let stopped = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
                waitid(WaitId::Pid(self.pid), stopped).unwrap();
            }
        }
    }

    pub fn exited(&self) -> Option<ExitStatus> {
        let status = self.child.lock().unwrap().try_wait().unwrap();
        if status.is_some() {
            watchdog::forget(self.pid.as_raw_pid());
        }
        status
    }

    /// Waits for its end; panics with its last words after `timeout`.
    pub async fn ended(&self, timeout: Duration) -> ExitStatus {
        eventually_some(&format!("{} ends", self.name), timeout, async || self.exited()).await
    }

    /// Ends it now, and waits until it is gone.
    pub fn kill(&self) {
        let mut child = self.child.lock().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        watchdog::forget(self.pid.as_raw_pid());
    }

    /// All it has said so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The last lines it has said.
    pub fn last_words(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
        format!("the last words of {} ({}):\n{}", self.name, self.log.display(), tail.join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.last_words());
        }
        self.kill();
    }
}
