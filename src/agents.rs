//! This process as an agent: registered, beating by a task and a connection of its own, also while it drains.

mod census;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

pub use census::Census;

use crate::domain::health::{ErrorRate, WAITING_FOR};
use crate::pg::agents::{self, Registration};
use crate::pg::connect::Connection;
use crate::pg::{Connector, PgError, inspect};

/// After a beat that did not arrive.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What an agent waits for is told by a beat as soon as it is another, found by looking this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A beat that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Active,
    Draining,
    Stopped,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        }
    }
}

/// What a role says of itself at a beat.
pub type Health = Arc<dyn Fn() -> Value + Send + Sync>;

/// A registered agent.
pub struct Member {
    pub id: Uuid,
    /// As registered: another live agent may have had the name that was asked for.
    pub name: String,
    /// An operator has taken it out of service; told by whoever looks for orders.
    pub ordered_out: watch::Sender<bool>,
    status: watch::Sender<Status>,
    pulse: Arc<Pulse>,
    beats: AbortOnDropHandle<()>,
}

/// How the heartbeat stands, for the health report.
#[derive(Debug)]
pub struct Pulse(Mutex<(Instant, Option<String>)>);

impl Pulse {
    fn inner(&self) -> MutexGuard<'_, (Instant, Option<String>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long ago a beat last arrived.
    pub fn age(&self) -> Duration {
        self.inner().0.elapsed()
    }

    /// Why the last one did not arrive, if it did not.
    pub fn trouble(&self) -> Option<String> {
        self.inner().1.clone()
    }

    fn arrived(&self) {
        if std::mem::replace(&mut *self.inner(), (Instant::now(), None)).1.is_some() {
            tracing::info!("the heartbeat arrives again");
        }
    }

    fn missed(&self, why: String) {
        if self.trouble().is_none() {
            tracing::warn!("the heartbeat does not arrive: {why}");
        }
        self.inner().1 = Some(why);
    }
}

/// Enters the agent and begins to beat.
pub async fn join(
    connector: &Connector,
    mut registration: Registration,
    health: Health,
) -> Result<Member, PgError> {
    let mut connection = agents::connect(connector).await?;
    let (started, error_rate) = (Instant::now(), ErrorRate::default());
    let mut document = Document { health, started, error_rate, told: Value::Null };
    let name =
        agents::register(&mut connection, &registration, Status::Active.name(), &document.write()).await?;
    // Should it be removed while it lives, it comes back under the name that it has.
    registration.name.clone_from(&name);
    registration.name_is_chosen = true;
    let (status, watched) = watch::channel(Status::Active);
    let ordered_out = watch::Sender::new(false);
    let pulse = Arc::new(Pulse(Mutex::new((Instant::now(), None))));
    let id = registration.id;
    let beats = Beats {
        connector: connector.clone(),
        connection: Some(connection),
        registration,
        document,
        pulse: Arc::clone(&pulse),
        ordered_out: ordered_out.subscribe(),
    };
    let beats = AbortOnDropHandle::new(tokio::spawn(beats.run(watched)));
    Ok(Member { id, name, ordered_out, status, pulse, beats })
}

impl Member {
    /// Says that no new work is taken on.
    pub fn drain(&self) {
        self.status.send_replace(Status::Draining);
    }

    /// Says goodbye, if the database answers within a few seconds.
    pub async fn leave(self) {
        self.status.send_replace(Status::Stopped);
        let _ = tokio::time::timeout(TRY_AGAIN_AFTER * 3, self.beats).await;
    }

    pub fn pulse(&self) -> Arc<Pulse> {
        Arc::clone(&self.pulse)
    }
}

struct Beats {
    connector: Connector,
    connection: Option<Connection>,
    registration: Registration,
    document: Document,
    pulse: Arc<Pulse>,
    ordered_out: watch::Receiver<bool>,
}

impl Beats {
    async fn run(mut self, mut status: watch::Receiver<Status>) {
        let mut due = tokio::time::Instant::now() + self.registration.heartbeat;
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                _ = look.tick(), if self.connection.is_some() => if !self.document.has_news() { continue },
                changed = status.changed() => if changed.is_err() { return },
                // The next beat finds out whether the database is there, soon.
                () = closed(&mut self.connection) => {
                    self.connection = None;
                    due = due.min(tokio::time::Instant::now() + TRY_AGAIN_AFTER);
                    continue;
                }
                // Told by a beat at once.
                is_out = order(&mut self.ordered_out) => {
                    let what = if is_out { "out of service" } else { "in service again" };
                    tracing::info!("this agent is {what}, by an operator's order");
                }
            }
            let now = *status.borrow_and_update();
            let trouble = match tokio::time::timeout(PATIENCE, self.beat(now)).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!("no answer within {}", humantime::format_duration(PATIENCE))),
            };
            if let Some(trouble) = trouble {
                self.connection = None;
                self.pulse.missed(trouble);
                due = tokio::time::Instant::now() + TRY_AGAIN_AFTER;
                continue;
            }
            self.pulse.arrived();
            due = tokio::time::Instant::now() + self.registration.heartbeat;
            if now == Status::Stopped {
                return;
            }
        }
    }

    async fn beat(&mut self, status: Status) -> Result<(), PgError> {
        let status =
            if status == Status::Active && *self.ordered_out.borrow() { Status::Draining } else { status };
        let client = match &mut self.connection {
            Some(client) => client,
            none => none.insert(agents::connect(&self.connector).await?),
        };
        let mut document = self.document.write();
        if self.registration.role == "producer" {
            add_backlog(&mut document, client, &self.registration.name).await?;
        }
        if !agents::beat(client, self.registration.id, status.name(), &document).await? {
            agents::register(client, &self.registration, status.name(), &document).await?;
        }
        Ok(())
    }
}

/// The next one; none comes once nobody looks any more.
async fn order(ordered_out: &mut watch::Receiver<bool>) -> bool {
    if ordered_out.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
    *ordered_out.borrow_and_update()
}

async fn closed(connection: &mut Option<Connection>) {
    match connection {
        Some(connection) => connection.closed().await,
        None => std::future::pending().await,
    }
}

/// What waits in the lanes that the agent owns. A database that is too slow to say so gets its beat all the same.
async fn add_backlog(document: &mut Value, client: &Connection, agent: &str) -> Result<(), PgError> {
    let lanes = match inspect::lanes(client).await {
        Ok(lanes) => lanes,
        Err(error) if error.is_connection() => return Err(error),
        Err(error) => {
            tracing::debug!("the backlog is not known: {error}");
            return Ok(());
        }
    };
    let mine = || lanes.iter().filter(|lane| lane.state == "owned" && lane.agent.as_deref() == Some(agent));
    document["lag"] = json!(mine().map(|lane| lane.pending).sum::<i64>());
    let oldest = mine().filter_map(|lane| lane.oldest_pending_seconds).reduce(f64::max);
    document["oldest_pending_seconds"] = json!(oldest);
    Ok(())
}

/// Writes the health document.
struct Document {
    health: Health,
    started: Instant,
    error_rate: ErrorRate,
    /// What was waited for by the last.
    told: Value,
}

impl Document {
    fn has_news(&self) -> bool {
        (self.health)()[WAITING_FOR] != self.told
    }

    fn write(&mut self) -> Value {
        let mut document = (self.health)();
        self.told = document[WAITING_FOR].clone();
        let count = |name: &str| document[name].as_u64().unwrap_or_default();
        let recent_error_rate = self.error_rate.after(count("processed"), count("failed"));
        document["recent_error_rate"] = json!(recent_error_rate);
        document["uptime_seconds"] = json!(self.started.elapsed().as_secs());
        document["resident_bytes"] = json!(resident_bytes());
        document
    }
}

/// This process's resident memory; `None` where the system does not tell.
fn resident_bytes() -> Option<u64> {
    let pages = procfs::process::Process::myself().and_then(|process| process.statm()).ok()?.resident;
    Some(pages * procfs::page_size())
}
