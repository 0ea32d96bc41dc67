//! What the runner says of itself, for the agent's health; and what it tells of each run, for who counts.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::domain::health::Vitals;

/// Something to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A run of this agent: "done", "failed", "cut", or "lost" with its lease.
    Ended { job: &'a str, result: &'static str, took: Duration },
    /// Firings that got no start of their own, by "skip", "once", "all" or "overlap".
    Missed { job: &'a str, policy: &'static str, firings: u32 },
}

/// Who counts.
pub type Observer = Arc<dyn Fn(Event<'_>) + Send + Sync>;

/// Written by the runner, read by the heartbeat and the health check.
#[derive(Debug, Default)]
pub struct RunnerStatus(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    turned_at: Option<Instant>,
    running: BTreeSet<String>,
}

impl RunnerStatus {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn turn(&self) {
        self.inner().turned_at = Some(Instant::now());
    }

    /// At its end it does not turn any more, and need not.
    pub(super) fn rest(&self) {
        self.inner().turned_at = None;
    }

    pub(super) fn running<'a>(&self, jobs: impl Iterator<Item = &'a str>) {
        self.inner().running = jobs.map(str::to_owned).collect();
    }
}

impl Vitals for RunnerStatus {
    fn health(&self) -> Value {
        json!({ "jobs_running": self.inner().running })
    }

    fn since_turn(&self) -> Duration {
        self.inner().turned_at.map(|at| at.elapsed()).unwrap_or_default()
    }

    /// That the database is away, the heartbeat tells.
    fn waiting_for(&self) -> Option<String> {
        None
    }

    fn kafka_away(&self) -> Option<String> {
        None
    }

    fn unfinished(&self) -> Option<String> {
        let running: Vec<String> = self.inner().running.iter().cloned().collect();
        (!running.is_empty()).then(|| format!("jobs under way: {}", running.join(", ")))
    }
}
