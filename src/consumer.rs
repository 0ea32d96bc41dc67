//! Consumes topics for named groups: every message of a group is handled once, on evidence.
//!
//! A `session` is a membership in the Kafka group: it polls, and has one `engine` for all of its partitions. The engine
//! looks up what was handled before, claims the operations of messages just before they start, handles them, and records
//! what is finished: evidence, keys and positions in one transaction, with the `sql` handler the effect too. Kafka's
//! offsets follow behind. Whatever the database does not answer is not handled.

mod control;
mod engine;
pub mod handler;
mod inbox;
mod keys;
mod level;
mod places;
mod retry_store;
mod retrying;
mod session;
mod start;
pub mod status;
mod store;
mod wait;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

pub use places::Solitude;
pub use status::{ConsumerStatus, GroupStatus};

use crate::config::{self, Rate};
use crate::domain::backoff::Backoff;
use crate::domain::batch_size::BatchSize;
use crate::domain::rate::{Pace, Turn};
use crate::kafka::KafkaFailure;
use crate::kafka::topics::Topics;
use crate::pg::{Connector, PgError, Pool};
use control::Control;
use handler::Handler;
use places::Places;
use status::Tally;
use store::Store;
use wait::Wait;

/// How long a group may finish nothing while more and more waits: then it is told.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Between two memberships, after one that could not go on.
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(30) };

/// Who waits while this agent is out of service.
const SERVICE: &str = "service";

/// Who waits before the first join.
const SET_UP: &str = "set-up";

/// Who waits while no broker answers.
const KAFKA: &str = "Kafka";

/// A claim outlives its handler's time limit by this much: waiting for its turn and the completion have to fit in.
const CLAIM_MARGIN: Duration = Duration::from_secs(60);

/// Connections that effects leave to look-up, claims and completion.
const SPARED_CONNECTIONS: usize = 3;

/// What a group works with.
pub struct GroupContext {
    pub name: String,
    pub config: Live,
    pub handler: Handler,
    pub connector: Connector,
    pub kafka: config::Kafka,
    pub agent: Uuid,
    pub agent_name: String,
    pub status: Arc<GroupStatus>,
    /// One for all groups of the process.
    pub solitude: Solitude,
    /// `PATIENCE`, for all but tests.
    pub patience: Duration,
}

/// How a group came to its end.
#[derive(Debug)]
pub struct Drained {
    /// What was left unfinished, by partition; another member does it.
    pub left: Vec<String>,
}

/// Why a group cannot be consumed: always something for the operator to change.
#[derive(Debug, thiserror::Error)]
pub enum ConsumerError {
    #[error("group `{group}`: there is no function {function}: create it, or correct `function`")]
    NoFunction { group: String, function: String },
    #[error("{0}")]
    Refused(String),
    #[error(
        "group `{group}`: another agent of the group has joined under this agent's name: with `static_membership` each \
         needs one of its own (`[agent] name`)"
    )]
    Fenced { group: String },
    #[error("group `{group}`: {source}")]
    Kafka { group: String, source: KafkaFailure },
    #[error("group `{group}`: {source}")]
    Postgres { group: String, source: PgError },
}

/// What stands in the way of a start.
#[derive(Debug, thiserror::Error)]
enum SetupError {
    #[error(transparent)]
    Never(#[from] ConsumerError),
    #[error(transparent)]
    Kafka(#[from] KafkaFailure),
    #[error(transparent)]
    Postgres(#[from] PgError),
}

/// Why a membership cannot go on; another one may.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Kafka(#[from] KafkaFailure),
    #[error("Kafka's client gave up: {0}")]
    Fatal(String),
    #[error("another agent of the group has joined under this agent's name")]
    Fenced,
    #[error("the engine has ended")]
    EngineEnded,
}

/// How a group is configured, which may change while it works.
#[derive(Clone, Debug)]
pub struct Live(Arc<RwLock<Arc<config::Group>>>);

impl Live {
    pub fn new(config: config::Group) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(config))))
    }

    pub fn get(&self) -> Arc<config::Group> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What it stands on stays: only limits and policies are taken over.
    pub fn change(&self, new: &config::Group) {
        let changed = self.get().with_live(new);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(changed);
    }
}

/// A group at work.
struct Group {
    name: Arc<str>,
    live: Live,
    kafka: config::Kafka,
    handler: Handler,
    topics: Topics,
    store: Store,
    status: Arc<GroupStatus>,
    control: Control,
    places: Places,
    /// Of fresh messages and of retries, if there is a rate.
    pace: Mutex<Option<Pace>>,
    /// How many messages go in one call of a function that takes many.
    batch_size: Mutex<BatchSize>,
    patience: Duration,
}

impl Group {
    /// As it is now.
    fn config(&self) -> Arc<config::Group> {
        self.live.get()
    }

    fn kafka_group(&self) -> String {
        self.config().kafka_group.clone().unwrap_or_else(|| self.name.to_string())
    }

    /// The group's rate as it is now, shared among so many agents.
    fn keep_pace(&self, members: i64) {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Rate(rate)) = self.config().rate else {
            *pace = None;
            return;
        };
        #[allow(clippy::cast_precision_loss, reason = "a number of agents")]
        let share = rate / members as f64;
        pace.get_or_insert_with(|| Pace::new(share, Instant::now())).set(share, Instant::now());
    }

    fn has_pace(&self) -> bool {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Lets one start, or says when it may.
    fn in_pace(&self, turn: &mut Option<Turn>) -> Result<(), Instant> {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(pace) = &mut *pace else { return Ok(()) };
        let now = Instant::now();
        pace.take(turn, now).map_err(|wait| now + wait)
    }

    fn batch_size(&self) -> MutexGuard<'_, BatchSize> {
        self.batch_size.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over how many handlers there may be now.
    fn resize(&self) {
        self.places.resize(count_places(&self.handler, &self.config(), &self.store.pool));
    }

    /// How long a claim holds if nobody completes it.
    fn claim_time(&self) -> Duration {
        self.handler.timeout() + CLAIM_MARGIN
    }

    fn client_id(&self) -> String {
        client_id(&self.store.agent_name)
    }
}

fn count_places(handler: &Handler, config: &config::Group, pool: &Pool) -> usize {
    match handler {
        Handler::Outside(_) => config.concurrency,
        // Each has a connection while it runs.
        Handler::Sql(_) => config.concurrency.min(pool.max_size().saturating_sub(SPARED_CONNECTIONS).max(1)),
    }
}

/// As people read it, to the millisecond.
fn in_words(delay: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_millis(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)))
}

fn client_id(agent_name: &str) -> String {
    format!("outboxd-{agent_name}")
}

/// Consumes until `drain`, then finishes what is under way, records it and leaves the group; on `abort` it stops where
/// it is. Postgres and Kafka are waited for, and connections that are lost made anew.
pub async fn run(
    context: GroupContext,
    drain: CancellationToken,
    abort: CancellationToken,
) -> Result<Drained, ConsumerError> {
    let status = Arc::clone(&context.status);
    tokio::select! {
        biased;
        () = abort.cancelled() => Ok(Drained { left: status.left() }),
        done = work(context, &drain) => done.map(|()| Drained { left: Vec::new() }),
    }
}

async fn work(context: GroupContext, drain: &CancellationToken) -> Result<(), ConsumerError> {
    let (control, desk) = control::control(&context.name, context.config.get().breaker);
    let group = tokio::select! {
        group = set_up(context, control) => Arc::new(group?),
        () = drain.cancelled() => return Ok(()),
    };
    let mut heard = group.control.heard.clone();
    let desk = AbortOnDropHandle::new(tokio::spawn(desk.run(Arc::clone(&group))));
    // It may be paused.
    tokio::select! {
        _ = heard.changed() => {}
        () = drain.cancelled() => {}
    }
    let retries = AbortOnDropHandle::new(tokio::spawn(retrying::work(Arc::clone(&group), drain.clone())));
    let ended = be_member(&group, drain).await;
    if ended.is_ok() {
        retries.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    }
    group.handler.close().await;
    // It would say that this agent is at work.
    drop(desk);
    match group.store.leave().await {
        Ok(handed_back) => retrying::tell_handed_back(&group, handed_back),
        Err(error) => tracing::debug!(group = &*group.name, "no goodbye: {error}"),
    }
    ended
}

/// One membership after the other. Whoever is fenced does not join again: it would fence the other, which would fence it.
async fn be_member(group: &Arc<Group>, drain: &CancellationToken) -> Result<(), ConsumerError> {
    let mut failures = 0;
    while !drain.is_cancelled() {
        if group.control.heard.borrow().ordered_out {
            stay_out(group, drain).await;
            continue;
        }
        let leave = drain.child_token();
        let (mut heard, ordered) = (group.control.heard.clone(), leave.clone());
        let _watching = AbortOnDropHandle::new(tokio::spawn(async move {
            if heard.wait_for(|heard| heard.ordered_out).await.is_ok() {
                ordered.cancel();
            }
        }));
        let started = tokio::time::Instant::now();
        let Err(error) = session::work(group, &leave).await else { continue };
        if matches!(error, SessionError::Fenced) {
            return Err(ConsumerError::Fenced { group: group.name.to_string() });
        }
        failures = if started.elapsed() > BACKOFF.max { 1 } else { failures + 1 };
        tracing::error!(group = &*group.name, failures, "the group joins again: {error}");
        group.status.wait_for("membership", &error.to_string());
        tokio::select! {
            () = tokio::time::sleep(BACKOFF.delay(failures, fastrand::f64())) => {}
            () = drain.cancelled() => {}
        }
    }
    Ok(())
}

/// Until it is in service again: its partitions are others' meanwhile.
async fn stay_out(group: &Group, drain: &CancellationToken) {
    tracing::info!(group = &*group.name, "out of service by an operator's order: it has left the group");
    let mut heard = group.control.heard.clone();
    loop {
        group.status.wait_for(SERVICE, "an operator has taken this agent out of service");
        tokio::select! {
            changed = heard.changed() => if changed.is_err() || !heard.borrow().ordered_out { break },
            () = drain.cancelled() => break,
        }
    }
    group.status.go_on(SERVICE);
}

/// Everything before the first join. What only the operator can mend is an error, the rest is waited for.
async fn set_up(context: GroupContext, control: Control) -> Result<Group, ConsumerError> {
    let GroupContext {
        name,
        config: live,
        handler,
        connector,
        kafka,
        agent,
        agent_name,
        status,
        solitude,
        patience,
    } = context;
    let config = live.get();
    let kafka_group = config.kafka_group.as_deref().unwrap_or(&name);
    let topics = Topics::of_group(&kafka, &client_id(&agent_name), kafka_group)
        .map_err(|source| ConsumerError::Kafka { group: name.clone(), source })?;
    let pool =
        Pool::new(&connector).map_err(|source| ConsumerError::Postgres { group: name.clone(), source })?;
    let mut wait = Wait::new(&name, &status, SET_UP);
    let cluster_id = loop {
        match topics.cluster_id().await {
            Ok(id) => break id,
            Err(error) => wait.pause(&error.to_string()).await,
        }
    };
    wait.end();
    let name: Arc<str> = name.into();
    let store = Store { pool, group: Arc::clone(&name), cluster_id, agent, agent_name };
    let places = Places::new(count_places(&handler, &config, &store.pool), solitude);
    let pace = Mutex::new(config.rate.map(|Rate(rate)| Pace::new(rate, Instant::now())));
    let batch_size = Mutex::default();
    let group = Group {
        name,
        live,
        kafka,
        handler,
        topics,
        store,
        status,
        control,
        places,
        pace,
        batch_size,
        patience,
    };
    let mut wait = Wait::new(&group.name, &group.status, SET_UP);
    loop {
        match enter(&group).await {
            Ok(()) => break,
            Err(SetupError::Never(error)) => return Err(error),
            Err(error) => wait.pause(&error.to_string()).await,
        }
    }
    wait.end();
    group.status.go_on(SET_UP);
    Ok(group)
}

async fn enter(group: &Group) -> Result<(), SetupError> {
    if let Handler::Sql(handler) = &group.handler
        && let function = handler.signature()
        && !group.store.function_exists(&function).await?
    {
        let group = group.name.to_string();
        return Err(ConsumerError::NoFunction { group, function }.into());
    }
    start::declare(group).await
}
