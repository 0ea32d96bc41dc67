//! What `outboxd doctor` makes of the facts that were gathered: what is not right, and what to do about it.
//!
//! One file for each kind of facts. A judgment is made here and nowhere else, so that what the operator reads can be tested
//! without the services it is about.

pub mod fleet;
pub mod kafka;
pub mod outbox;
pub mod postgres;
pub mod rights;

use std::time::Duration;

use serde::Serialize;

/// Something that is not right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub what: String,
    /// A statement, a command or a setting that makes it right.
    pub fix: String,
}

impl Finding {
    pub fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what: what.into(), fix: fix.into() }
    }
}

/// What came of looking at one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Fine,
    Found(Vec<Finding>),
    /// It could not be looked at, and why. Says nothing against it.
    Skipped(String),
}

/// Whether one thing is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub name: &'static str,
    pub outcome: Outcome,
}

impl Check {
    pub fn of(name: &'static str, findings: Vec<Finding>) -> Self {
        let outcome = if findings.is_empty() { Outcome::Fine } else { Outcome::Found(findings) };
        Self { name, outcome }
    }

    pub fn skipped(name: &'static str, why: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Skipped(why.into()) }
    }

    pub fn has_found(&self) -> bool {
        matches!(self.outcome, Outcome::Found(_))
    }
}

/// `1 message`, `3 messages`, and `10000 or more messages` where counting ended at `limit`.
fn counted(count: i64, limit: i64, one: &str, many: &str) -> String {
    let more = if count >= limit { " or more" } else { "" };
    format!("{count}{more} {}", if count == 1 { one } else { many })
}

/// Whole seconds, as people write them.
fn age(seconds: f64) -> String {
    let whole = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default().as_secs();
    humantime::format_duration(Duration::from_secs(whole)).to_string()
}
