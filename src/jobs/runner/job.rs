//! What a job is.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::domain::firings::Rules;
use crate::pg::PgError;
use crate::pg::connect::Connection;

/// A run that takes longer is cut, if its job does not say otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(60);

pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why a run failed, for people.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How a run went.
pub type Outcome = Result<Done, Failure>;

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    pub rows: i64,
    /// A line for the log and the history, if there is something to tell.
    pub words: Option<String>,
}

impl Done {
    /// Of what was done how often; what was not done is left out.
    pub fn counted<'a>(counts: impl IntoIterator<Item = (i64, &'a str)>) -> Self {
        let done: Vec<(i64, &str)> = counts.into_iter().filter(|(count, _)| *count > 0).collect();
        let words: Vec<String> = done.iter().map(|(count, what)| format!("{count} {what}")).collect();
        Self {
            rows: done.iter().map(|(count, _)| count).sum(),
            words: (!words.is_empty()).then(|| words.join(", ")),
        }
    }

    pub fn told(rows: usize, words: Option<String>) -> Self {
        Self { rows: i64::try_from(rows).unwrap_or(i64::MAX), words }
    }
}

/// Who runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every agent, for itself.
    Agent,
    /// One of them at a time, and each firing once.
    Cluster,
}

impl Scope {
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Cluster => "cluster",
        }
    }
}

/// Asks whether there is anything to do, cheaply: a firing without work leaves no trace.
pub type Probe = Box<dyn for<'a> Fn(&'a Connection) -> Pending<'a, Result<bool, PgError>> + Send + Sync>;

/// Given the nominal time of the firing.
pub type Body = Box<dyn Fn(DateTime<Utc>) -> Pending<'static, Outcome> + Send + Sync>;

/// Something that the runner starts by schedule, or by an operator's order.
pub struct Job {
    pub name: String,
    pub scope: Scope,
    /// The role of the agents that have it; "any" for both.
    pub role: &'static str,
    pub rules: Rules,
    pub timeout: Duration,
    pub enabled: bool,
    /// Runs once when an agent starts as well.
    pub at_start: bool,
    pub probe: Option<Probe>,
    pub body: Body,
}

impl Job {
    /// Of the whole cluster, built in.
    pub fn new(
        name: &str,
        rules: Rules,
        body: impl Fn(DateTime<Utc>) -> Pending<'static, Outcome> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.to_owned(),
            scope: Scope::Cluster,
            role: "producer",
            rules,
            timeout: TIMEOUT,
            enabled: true,
            at_start: false,
            probe: None,
            body: Box::new(body),
        }
    }

    #[must_use]
    pub fn role(self, role: &'static str) -> Self {
        Self { role, ..self }
    }

    #[must_use]
    pub fn at_start(self) -> Self {
        Self { at_start: true, ..self }
    }

    #[must_use]
    pub fn probe(
        self,
        probe: impl for<'a> Fn(&'a Connection) -> Pending<'a, Result<bool, PgError>> + Send + Sync + 'static,
    ) -> Self {
        Self { probe: Some(Box::new(probe)), ..self }
    }
}
