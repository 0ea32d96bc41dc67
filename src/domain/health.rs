//! What a running agent says of itself, and what of that makes it alive and ready.

use std::time::Duration;

use serde_json::Value;

/// A loop that has not turned for this long is stuck. Waiting for the database or for Kafka is turning.
pub const STUCK_AFTER: Duration = Duration::from_secs(60);

/// What every role tells: a relay, and each group of a consumer.
pub trait Vitals: Send + Sync {
    /// The role's part of the health document.
    fn health(&self) -> Value;
    /// How long ago its loop last turned.
    fn since_turn(&self) -> Duration;
    /// What keeps it from working, if anything does.
    fn waiting_for(&self) -> Option<String>;
    /// Work under way that an abort would leave to another, if there is any.
    fn unfinished(&self) -> Option<String>;
}

/// One line of `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub name: &'static str,
    /// `None`: passed.
    pub problem: Option<String>,
}

/// The answers of `/healthz` and `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub checks: Vec<Check>,
    pub alive: bool,
}

impl Report {
    pub fn is_ready(&self) -> bool {
        self.alive && self.checks.iter().all(|check| check.problem.is_none())
    }

    /// The first thing that is not right, for a status line.
    pub fn problem(&self) -> Option<&str> {
        self.checks.iter().find_map(|check| check.problem.as_deref())
    }
}
