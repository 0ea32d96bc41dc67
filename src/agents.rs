//! This process as an agent: registered, beating by a task and a connection of its own, also while it drains.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::pg::agents::{self, Registration};
use crate::pg::{Connector, PgError, inspect};

/// After a beat that did not arrive.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(1);

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
    status: watch::Sender<Status>,
    last_beat: Arc<Mutex<Instant>>,
    beats: AbortOnDropHandle<()>,
}

/// Enters the agent and begins to beat.
pub async fn join(
    connector: &Connector,
    mut registration: Registration,
    health: Health,
) -> Result<Member, PgError> {
    let started = Instant::now();
    let mut connection = connector.connect().await?;
    let document = document(&health, started);
    let name = agents::register(&mut connection, &registration, Status::Active.name(), &document).await?;
    // Should it be removed while it lives, it comes back under the name that it has.
    registration.name.clone_from(&name);
    registration.name_is_chosen = true;
    let (status, watched) = watch::channel(Status::Active);
    let last_beat = Arc::new(Mutex::new(Instant::now()));
    let id = registration.id;
    let beats = Beats {
        connector: connector.clone(),
        registration,
        health,
        started,
        last_beat: Arc::clone(&last_beat),
    };
    let beats = AbortOnDropHandle::new(tokio::spawn(beats.run(watched)));
    Ok(Member { id, name, status, last_beat, beats })
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

    /// For the health report: how long ago a beat last arrived.
    pub fn beat_age(&self) -> impl Fn() -> Duration + Send + Sync + 'static {
        let last_beat = Arc::clone(&self.last_beat);
        move || last_beat.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

struct Beats {
    connector: Connector,
    registration: Registration,
    health: Health,
    started: Instant,
    last_beat: Arc<Mutex<Instant>>,
}

impl Beats {
    async fn run(self, mut status: watch::Receiver<Status>) {
        let mut connection = None;
        let mut told = false;
        let mut pause = self.registration.heartbeat;
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = status.changed() => if changed.is_err() { return },
            }
            let now = *status.borrow_and_update();
            let beat = tokio::time::timeout(PATIENCE, self.beat(&mut connection, now)).await;
            match beat {
                Ok(Ok(())) => {
                    *self.last_beat.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                    pause = self.registration.heartbeat;
                    told = false;
                    if now == Status::Stopped {
                        return;
                    }
                }
                outcome => {
                    connection = None;
                    pause = TRY_AGAIN_AFTER;
                    if !told {
                        let error = match outcome {
                            Ok(Err(error)) => error.to_string(),
                            _ => format!("no answer within {}", humantime::format_duration(PATIENCE)),
                        };
                        tracing::warn!("the heartbeat does not arrive: {error}");
                        told = true;
                    }
                }
            }
        }
    }

    async fn beat(
        &self,
        connection: &mut Option<crate::pg::connect::Connection>,
        status: Status,
    ) -> Result<(), PgError> {
        let client = match connection {
            Some(client) => client,
            None => connection.insert(self.connector.connect().await?),
        };
        let mut document = document(&self.health, self.started);
        if self.registration.role == "producer" {
            let oldest =
                inspect::lanes(client).await?.into_iter().filter_map(|lane| lane.oldest_pending_seconds);
            document["oldest_pending_seconds"] = json!(oldest.fold(0.0, f64::max));
        }
        if !agents::beat(client, self.registration.id, status.name(), &document).await? {
            agents::register(client, &self.registration, status.name(), &document).await?;
        }
        Ok(())
    }
}

fn document(health: &Health, started: Instant) -> Value {
    let mut document = health();
    document["uptime_seconds"] = json!(started.elapsed().as_secs());
    document["resident_bytes"] = json!(resident_bytes());
    document
}

/// This process's resident memory; `None` where the system does not tell.
fn resident_bytes() -> Option<u64> {
    let pages = procfs::process::Process::myself().and_then(|process| process.statm()).ok()?.resident;
    Some(pages * procfs::page_size())
}
