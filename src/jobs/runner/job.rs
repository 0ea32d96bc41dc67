//! What a job is.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::domain::firings::{Rules, Scope};
use crate::pg::PgError;
use crate::pg::connect::Connection;
use crate::pg::jobs::Claim;
use crate::pg::jobs::firing::Fired;

/// A run that takes longer is cut, if its job does not say otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(60);

pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why a run failed, for people.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// It was ended because its time was over: the run is cut.
#[derive(Debug, thiserror::Error)]
#[error("cut after {}", humantime::format_duration(*.0))]
pub struct TimedOut(pub Duration);

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

/// Asks whether there is anything to do, cheaply: a firing without work leaves no trace.
pub type Probe = Box<dyn for<'a> Fn(&'a Connection) -> Pending<'a, Result<bool, PgError>> + Send + Sync>;

/// Given the nominal time of the firing.
pub type Body = Box<dyn Fn(DateTime<Utc>) -> Pending<'static, Outcome> + Send + Sync>;

/// A firing that is to be claimed, unless each agent runs the job for itself.
#[derive(Clone, Debug)]
pub struct Firing {
    pub at: DateTime<Utc>,
    pub claim: Option<Claim>,
}

/// Claims a firing and does what it does in one transaction.
pub type Fire = Box<dyn Fn(Firing) -> Pending<'static, Result<Fired, PgError>> + Send + Sync>;

/// What a service is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// At every look at the board.
    Paused(bool),
    /// A firing, or an operator's wish.
    Run,
}

pub type Hears = Box<dyn Fn(Order) + Send + Sync>;

/// How a job does its work.
pub enum Work {
    /// After the claim, under its lease. If that ends without a word, the next firing makes up for it.
    Beside(Body),
    /// Nothing is started: something that runs all the time is told of orders and firings.
    Service(Hears),
    /// With the claim. What is left to `then` runs under the lease, and again if that ends without a word.
    Within { fire: Fire, then: Option<Body> },
}

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
    /// Every run is in the history; else those that did something or failed.
    pub keeps_all: bool,
    pub probe: Option<Probe>,
    pub work: Work,
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
            keeps_all: false,
            probe: None,
            work: Work::Beside(Box::new(body)),
        }
    }

    /// Something that runs all the time, or waits for its firings by itself, in every agent.
    pub fn service(name: &str, rules: Rules, hears: impl Fn(Order) + Send + Sync + 'static) -> Self {
        let job = Self::new(name, rules, |_| Box::pin(async { Ok(Done::default()) }));
        Self { scope: Scope::Agent, work: Work::Service(Box::new(hears)), ..job }
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
