//! Once a second the group's agents say how they are, and hear what is ordered: pauses, the breaker, a drain. What the
//! engine finds out for all is told here first, so that no answer from before undoes it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use super::Group;
use crate::domain::breaker::{Change, State};
use crate::domain::health::ErrorRate;
use crate::pg::control::Orders;

const EVERY: Duration = Duration::from_secs(1);

/// Of the last minute.
const BEATS: usize = 60;

/// What of the orders matters to an engine.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    /// Why nothing may start.
    pub(super) closed: Option<String>,
    pub(super) breaker: State,
    pub(super) breaker_reason: Option<String>,
    pub(super) members: i64,
    /// How many changes of this agent's own had arrived before.
    pub(super) changes: u64,
}

impl Default for Heard {
    fn default() -> Self {
        Self { closed: None, breaker: State::Closed, breaker_reason: None, members: 1, changes: 0 }
    }
}

impl Heard {
    fn new(orders: Orders, changes: u64) -> Self {
        let breaker = match orders.breaker {
            None => State::Closed,
            Some(left) if left > 0 => State::Open,
            Some(_) => State::HalfOpen,
        };
        let paused = orders.paused_by.map(|by| format!("paused by {by}"));
        let closed = paused.or_else(|| orders.drain.then(|| "this agent is ordered to drain".to_owned()));
        Self {
            closed,
            breaker,
            breaker_reason: orders.breaker_reason,
            members: orders.members.max(1),
            changes,
        }
    }
}

/// The engine's end.
#[derive(Clone, Debug)]
pub(super) struct Control {
    changes: mpsc::UnboundedSender<(Change, String)>,
    pub(super) heard: watch::Receiver<Heard>,
}

impl Control {
    /// With the reason, for those who look.
    pub(super) fn tell(&self, change: Change, reason: String) {
        // Without anybody who listens the group is at its end.
        let _ = self.changes.send((change, reason));
    }
}

/// The other end.
pub(super) struct Desk {
    changes: mpsc::UnboundedReceiver<(Change, String)>,
    heard: watch::Sender<Heard>,
}

pub(super) fn control() -> (Control, Desk) {
    let (changes, told) = mpsc::unbounded_channel();
    let (orders, heard) = watch::channel(Heard::default());
    (Control { changes, heard }, Desk { changes: told, heard: orders })
}

impl Desk {
    /// Works until it is dropped. A database that does not answer leaves the last orders in force: nothing can be
    /// recorded then anyway.
    pub(super) async fn run(mut self, group: Arc<Group>) {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut rate = ErrorRate::over(BEATS);
        let mut changes = 0;
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                Some((change, reason)) = self.changes.recv() => {
                    if let Err(error) = group.store.change_breaker(change, group.config.breaker.pause, &reason).await {
                        tracing::warn!(group = &*group.name, "the other agents do not hear of the breaker: {error}");
                    }
                    changes += 1;
                }
            }
            let (in_flight, processed, failed) = group.status.counts();
            let error_rate = rate.after(processed, failed);
            match group.store.control(in_flight, error_rate, group.status.takes_retries()).await {
                Ok(Some(orders)) => drop(self.heard.send_replace(Heard::new(orders, changes))),
                Ok(None) => {}
                Err(error) => tracing::debug!(group = &*group.name, "no orders: {error}"),
            }
        }
    }
}
