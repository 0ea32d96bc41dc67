//! A running `outboxd`: its log, its signals, its end.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::process::Process;
use super::{eventually, eventually_some};

const PATIENCE: Duration = Duration::from_secs(60);

/// Killed when dropped; its last words are shown if the test failed.
pub struct Daemon {
    process: Process,
    /// Where it serves HTTP.
    pub listen: SocketAddr,
    /// Of its configuration and its log.
    _directory: Arc<TempDir>,
}

impl Daemon {
    /// Starts a command that serves HTTP on `listen`; `directory` is where its log goes.
    pub fn start(name: &str, command: &mut Command, listen: SocketAddr, directory: Arc<TempDir>) -> Self {
        let log = directory.path().join(format!("{}.log", listen.port()));
        let process = Process::start(name, command, &log, "KILL");
        Self { process, listen, _directory: directory }
    }

    /// All that it has written so far, to standard output and standard error.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Waits for a line that contains the text, and returns it.
    pub async fn wait_for_line(&self, text: &str) -> String {
        let what = format!("a line with {text:?}");
        eventually_some(&what, PATIENCE, async || {
            // Before its log is read: it may say so and end between two looks.
            let has_ended = self.process.exited().is_some();
            let log = self.log();
            let found = log.split_inclusive('\n').find(|line| line.contains(text) && line.ends_with('\n'));
            assert!(found.is_some() || !has_ended, "it ended without {what}");
            found.map(|line| line.trim_end().to_owned())
        })
        .await
    }

    /// When it said that, by its own clock.
    pub async fn said_at(&self, text: &str) -> DateTime<Utc> {
        let line: serde_json::Value = serde_json::from_str(&self.wait_for_line(text).await).unwrap();
        line["timestamp"].as_str().unwrap().parse().unwrap()
    }

    /// SIGKILL; gone when this returns.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// SIGTERM: it is asked to drain and end.
    pub fn terminate(&self) {
        self.process.signal(Signal::TERM);
    }

    /// SIGINT: the same, from a terminal.
    pub fn interrupt(&self) {
        self.process.signal(Signal::INT);
    }

    /// SIGHUP: it is asked to read its configuration again.
    pub fn reload(&self) {
        self.process.signal(Signal::HUP);
    }

    /// SIGSTOP: frozen until `resume`.
    pub fn pause(&self) {
        self.process.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.process.signal(Signal::CONT);
    }

    pub fn is_running(&self) -> bool {
        self.process.exited().is_none()
    }

    /// The most memory that it ever had, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let process = procfs::process::Process::new(self.process.id()).unwrap();
        process.status().unwrap().vmhwm.unwrap() * 1024
    }

    /// Waits for its end; its exit code, nothing if a signal ended it.
    pub async fn wait_exit(&self) -> Option<i32> {
        self.process.ended(PATIENCE).await.code()
    }

    /// Waits until `/readyz` says so.
    pub async fn ready(&self) {
        eventually("it is ready", PATIENCE, async || {
            assert!(self.is_running(), "it ended before it was ready");
            self.get("/readyz").await.is_some_and(|(status, _)| status == 200)
        })
        .await;
    }

    /// Status and body of a GET; nothing if nobody answers.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.listen).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.listen);
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }
}
