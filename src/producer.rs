//! The relay: publishes what the outbox holds, lane by lane, in order, without a write per message.
//!
//! `docs/architecture.md` tells the algorithm and its traps. In short: a lane's cursor is a snapshot; what became
//! visible since is a window; a window is durable before its first record is sent, and it is published in order of
//! `seq`; the cursor moves over the acknowledged prefix only, by writes that name lane, owner, epoch and window.

mod aside;
mod confirmed;
mod gate;
mod lane;
mod lease;
mod outlook;
mod poison;
mod session;
pub mod status;
mod trial;
mod work;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use confirmed::Confirmed;
pub use gate::Gate;
pub use status::RelayStatus;

use crate::config;
use crate::domain::backoff::Backoff;
use crate::kafka::KafkaFailure;
use crate::pg::Connector;
use crate::pg::lanes::LaneError;

/// Between sessions that fail.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(200), max: Duration::from_secs(5) };

/// One that is out of service says so again and again: it lives.
const STAY_OUT: Duration = Duration::from_secs(5);

/// What a relay works with.
pub struct Relay {
    /// The agent's name, shown as the owner of its lanes.
    pub agent: String,
    pub connector: Connector,
    pub kafka: config::Kafka,
    pub settings: config::Producer,
    pub topics: config::Topics,
    pub status: Arc<RelayStatus>,
    /// An operator has taken this agent out of service: it owns no lanes then.
    pub ordered_out: watch::Receiver<bool>,
    pub gate: Arc<Gate>,
}

/// Why a session with its lanes ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Lane(#[from] LaneError),
    #[error(transparent)]
    Kafka(#[from] KafkaFailure),
    #[error("PostgreSQL has not answered within {}", humantime::format_duration(*.0))]
    Silent(Duration),
    /// By our own clock, which may run ahead of the database's: we stop before another may start.
    #[error("the lease could not be renewed in time")]
    LeaseEnded,
}

/// An answer of the database, unless it takes too long.
async fn in_time<T>(
    patience: Duration,
    asked: impl Future<Output = Result<T, LaneError>>,
) -> Result<T, SessionError> {
    match tokio::time::timeout(patience, asked).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(SessionError::Silent(patience)),
    }
}

impl Relay {
    /// Publishes until `drain`, then finishes what is under way and gives its lanes up. Lost connections and errors
    /// end a session, never the relay. Dropped before it returns, it leaves everything to the next owner.
    pub async fn run(&self, drain: &CancellationToken) {
        let (confirmed, mut former) = (Confirmed::default(), HashMap::new());
        let mut failures = 0_u32;
        while !drain.is_cancelled() {
            if *self.ordered_out.borrow() {
                self.stay_out(drain).await;
                continue;
            }
            let leave = drain.child_token();
            let (mut ordered_out, ordered) = (self.ordered_out.clone(), leave.clone());
            let _watching = AbortOnDropHandle::new(tokio::spawn(async move {
                if ordered_out.wait_for(|out| *out).await.is_ok() {
                    ordered.cancel();
                }
            }));
            let before = self.status.total();
            let error = match session::work(self, &confirmed, &mut former, &leave).await {
                Ok(()) => continue,
                Err(error) => error,
            };
            failures = if self.status.total() > before { 1 } else { failures + 1 };
            let delay = BACKOFF.delay(failures, fastrand::f64());
            // Told at growing distances while it goes on.
            if failures.is_power_of_two() {
                tracing::warn!(failures, "the relay starts over: {error}");
            }
            self.status.wait_for(error.to_string());
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = drain.cancelled() => {}
            }
        }
    }

    /// Until it is in service again.
    async fn stay_out(&self, drain: &CancellationToken) {
        let mut ordered_out = self.ordered_out.clone();
        let back = ordered_out.wait_for(|out| !*out);
        tokio::pin!(back);
        loop {
            self.status.wait_for("an operator, who has taken this agent out of service".into());
            tokio::select! {
                _ = &mut back => return,
                () = drain.cancelled() => return,
                () = tokio::time::sleep(STAY_OUT) => {}
            }
        }
    }
}
