//! What is measured: this very program, as a process of its own.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;

use super::usage::{self, Usage};

/// For a drain, which has nothing left to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lines of its log that are told when it fails.
const LAST_WORDS: usize = 20;

/// Killed when dropped.
pub struct Child {
    process: tokio::process::Child,
    pid: Pid,
    what: String,
    log: PathBuf,
    /// CPU that does not count: it was used before the measurement began.
    used_before: f64,
}

impl Child {
    /// Starts `outboxd` with that configuration and nothing of our environment that would change it.
    pub fn start(arguments: &[&str], config: &Path, log: &Path) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("this program does not know where it is")?;
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("OUTBOXD") || name == "RUST_LOG" {
                command.env_remove(name);
            }
        }
        let output = std::fs::File::options().create(true).append(true).open(log)?;
        command.args(arguments).arg("--config").arg(config).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let process = command.spawn().context("the program to be measured cannot be started")?;
        let pid = process.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let what = arguments.join(" ");
        let pid = pid.with_context(|| format!("`outboxd {what}` ended at once"))?;
        Ok(Self { process, pid, what, log: log.to_owned(), used_before: 0.0 })
    }

    /// What it has used since it was started, or `begin_counting` was called; nothing where `/proc` does not show it.
    pub fn usage(&self) -> Option<Usage> {
        let usage = usage::of_process(self.pid.as_raw_pid())?;
        Some(Usage { cpu_seconds: usage.cpu_seconds - self.used_before, ..usage })
    }

    /// What it has used so far does not count.
    pub fn begin_counting(&mut self) {
        self.used_before += self.usage().map_or(0.0, |usage| usage.cpu_seconds);
    }

    /// An error with its last words if it has ended.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.process.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("`outboxd {}` ended ({status}):\n{}", self.what, self.last_words()),
        }
    }

    /// Asks it to drain, and waits for its end.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.check()?;
        kill_process(self.pid, Signal::TERM)?;
        let ended = tokio::time::timeout(PATIENCE, self.process.wait()).await;
        let status = ended.with_context(|| format!("`outboxd {}` does not end", self.what))??;
        if !status.success() {
            bail!("`outboxd {}` did not drain ({status}):\n{}", self.what, self.last_words());
        }
        Ok(())
    }

    /// Ends it as a crash would.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        self.check()?;
        Ok(self.process.kill().await?)
    }

    pub fn pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n")
    }
}
