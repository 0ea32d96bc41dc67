//! The user's jobs: `[jobs.NAME]` with an `action`. What is done in the database is one transaction with the claim of the
//! firing and the record of the run; programs and servers are called under the claim's lease.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::runner::{Body, Done, Fire, Firing, Job, Outcome, TimedOut, Work};
use crate::config;
use crate::config::job::{ASK_EVERY, Action, Own, TIMEOUT};
use crate::domain::firings::Rules;
use crate::domain::job_text::{fill, time};
use crate::domain::schedule::Schedule;
use crate::outside::SetupError;
use crate::outside::http::{Answer, Poster, Silence};
use crate::outside::process::{self, Ended};
use crate::outside::program::Program;
use crate::outside::words::with_words;
use crate::pg::Connector;
use crate::pg::connect::Connection;
use crate::pg::jobs::firing::fire;

/// A connection is kept for the next firing if that comes so soon.
const SOON: Duration = Duration::from_secs(60);

/// A job of the user's cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("job `{job}`: {source}")]
pub struct NotCallable {
    job: String,
    source: SetupError,
}

/// A job whose program or server has been looked at.
#[derive(Clone)]
pub struct Prepared {
    name: String,
    config: config::Job,
    own: Own,
    call: Call,
}

#[derive(Clone)]
enum Call {
    /// All of it is done in the database.
    Nobody,
    Server(Arc<Poster>, Option<String>),
    Program(Arc<Program>, Option<String>),
}

/// Those of this role that are switched on or off in the file.
pub fn prepare(jobs: &BTreeMap<String, config::Job>, role: &str) -> Result<Vec<Prepared>, NotCallable> {
    let own = jobs.iter().filter_map(|(name, config)| Some((name, config, config.own.as_ref()?)));
    own.filter(|(_, _, own)| own.role.name() == role)
        .map(|(name, config, own)| {
            let call = call(&own.action).map_err(|source| NotCallable { job: name.clone(), source })?;
            Ok(Prepared { name: name.clone(), config: config.clone(), own: own.clone(), call })
        })
        .collect()
}

fn call(action: &Action) -> Result<Call, SetupError> {
    Ok(match action {
        Action::Enqueue(_) | Action::Sql { .. } => Call::Nobody,
        Action::Http { request, body } => Call::Server(Arc::new(Poster::new(request)?), body.clone()),
        Action::Exec { command, input } => Call::Program(Arc::new(Program::new(command)?), input.clone()),
    })
}

impl Prepared {
    pub fn job(&self, connector: &Connector) -> Job {
        let Self { name, config, own, call } = self;
        let timeout = config.timeout.unwrap_or(TIMEOUT);
        let schedule = config.schedule.clone().unwrap_or(Schedule::Every(ASK_EVERY));
        let then = match call.clone() {
            Call::Nobody => None,
            Call::Server(poster, body) => Some(posts(name.clone(), poster, body, timeout)),
            Call::Program(program, input) => Some(runs(name.clone(), program, input, timeout)),
        };
        Job {
            name: name.clone(),
            scope: own.scope,
            role: own.role.name(),
            rules: Rules {
                schedule: schedule.clone(),
                overlap: own.overlap,
                misfire: own.misfire,
                most: own.misfire_cap,
                jitter: config.jitter,
                // A condition that is asked late has lost nothing.
                strict: own.on.is_none(),
            },
            timeout,
            enabled: config.enabled,
            at_start: false,
            keeps_all: true,
            probe: None,
            work: Work::Within {
                fire: fires(name.clone(), connector.clone(), own.clone(), schedule, timeout),
                then,
            },
        }
    }
}

fn fires(name: String, connector: Connector, own: Own, schedule: Schedule, timeout: Duration) -> Fire {
    let shared = Arc::new((name, connector, own, schedule, Mutex::new(None::<Connection>)));
    Box::new(move |firing| {
        let shared = Arc::clone(&shared);
        Box::pin(async move {
            let (name, connector, own, schedule, kept) = &*shared;
            let mut kept = kept.lock().await;
            let mut client = match kept.take() {
                Some(client) => client,
                None => connector.connect().await?,
            };
            let Firing { at, claim } = firing;
            let fired = fire(&mut client, name, at, claim.as_ref(), own, timeout).await?;
            let next = schedule.next_after(at).map(|next| (next - at).to_std().unwrap_or_default());
            if next.is_some_and(|next| next < SOON) {
                *kept = Some(client);
            }
            Ok(fired)
        })
    })
}

fn posts(name: String, poster: Arc<Poster>, body: Option<String>, timeout: Duration) -> Body {
    Box::new(move |firing| {
        let (name, poster, body) = (name.clone(), Arc::clone(&poster), body.clone());
        Box::pin(async move { post(&name, &poster, body.as_deref(), firing, timeout).await })
    })
}

/// The same request for the same firing: whoever is called can tell a repeat.
async fn post(
    name: &str,
    poster: &Poster,
    body: Option<&str>,
    firing: DateTime<Utc>,
    timeout: Duration,
) -> Outcome {
    let body = fill(body.unwrap_or(r#"{"job":"{job}","firing":"{firing}"}"#), name, firing);
    let is_json = serde_json::from_str::<serde_json::Value>(&body).is_ok();
    let describe = |headers: &mut HeaderMap| {
        let mut tell = |name: HeaderName, value: String| {
            // Names of jobs and times are plain ASCII.
            headers.insert(name, HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static("")));
        };
        let kind = if is_json { "application/json" } else { "text/plain; charset=utf-8" };
        tell(CONTENT_TYPE, kind.to_owned());
        tell(USER_AGENT, concat!("outboxd/", env!("CARGO_PKG_VERSION")).to_owned());
        tell(HeaderName::from_static("idempotency-key"), format!("{name}/{}", time(firing)));
        tell(HeaderName::from_static("outboxd-job"), name.to_owned());
        tell(HeaderName::from_static("outboxd-firing"), time(firing));
    };
    match poster.post(Bytes::from(body), describe, Instant::now() + timeout).await {
        Ok(Answer { status, .. }) if status.is_success() => Ok(Done::default()),
        Ok(Answer { status, words, .. }) => Err(with_words(&status.to_string(), &words).into()),
        Err(Silence::TimedOut) => Err(TimedOut(timeout).into()),
        Err(Silence::Failed(why)) => Err(why.into()),
    }
}

fn runs(name: String, program: Arc<Program>, input: Option<String>, timeout: Duration) -> Body {
    Box::new(move |firing| {
        let (name, program, input) = (name.clone(), Arc::clone(&program), input.clone());
        Box::pin(async move { run(&name, &program, input.as_deref(), firing, timeout).await })
    })
}

async fn run(
    name: &str,
    program: &Program,
    input: Option<&str>,
    firing: DateTime<Utc>,
    timeout: Duration,
) -> Outcome {
    let mut command = program.command();
    command.env("OUTBOXD_JOB", name).env("OUTBOXD_FIRING", time(firing));
    let input = fill(input.unwrap_or_default(), name, firing);
    match process::run(command, input.as_bytes(), timeout).await {
        Ok(Ended { status: Some(status), .. }) if status.success() => Ok(Done::default()),
        Ok(Ended { status: Some(status), words }) => Err(with_words(&status.to_string(), &words).into()),
        Ok(Ended { status: None, .. }) => Err(TimedOut(timeout).into()),
        Err(error) => Err(program.explain(&error).into()),
    }
}
