//! Once a second the group's agents say how they are, and hear what is ordered: pauses, the breaker, a drain. What this
//! agent finds out for all is told here first, so that no answer from before undoes it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use super::Group;
use crate::config::{self, OnFailure};
use crate::domain::breaker::{Breaker, Change, State};
use crate::domain::health::{ErrorRate, Throughput};
use crate::pg::control::{AtWork, Orders};

const EVERY: Duration = Duration::from_secs(1);

/// Of the last minute.
const BEATS: usize = 60;

/// The same, of what is handled a second.
const LATELY: usize = 10;

/// What of the orders matters to those who start handlers.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    /// Why nothing may start.
    pub(super) closed: Option<String>,
    /// This agent is out of service: it leaves the group until it is back.
    pub(super) ordered_out: bool,
    pub(super) breaker_reason: Option<String>,
}

impl Heard {
    fn new(orders: Orders) -> Self {
        let paused = orders.paused_by.map(|by| format!("paused by {by}"));
        let closed = paused
            .or_else(|| orders.drain.then(|| "an operator has taken this agent out of service".to_owned()));
        Self { closed, ordered_out: orders.drain, breaker_reason: orders.breaker_reason }
    }
}

/// The end of those who start handlers, of fresh messages and of retries.
#[derive(Debug)]
pub(super) struct Control {
    group: String,
    pause: Duration,
    changes: mpsc::UnboundedSender<(Change, String)>,
    pub(super) heard: watch::Receiver<Heard>,
    /// With how often this agent has changed it.
    breaker: Mutex<(Breaker, u64)>,
}

impl Control {
    /// The other side of a handler has answered, be it with a refusal.
    pub(super) fn answered(&self) {
        let change = self.breaker().0.answered();
        self.tell(change, "");
    }

    /// A failure that another try may mend.
    pub(super) fn failed(&self, reason: &str) {
        let change = self.breaker().0.failed();
        self.tell(change, reason);
    }

    /// How many handlers may be at work, of so many.
    pub(super) fn places(&self, of: usize) -> usize {
        if self.heard.borrow().closed.is_some() { 0 } else { self.breaker().0.places(of) }
    }

    pub(super) fn state(&self) -> State {
        self.breaker().0.state()
    }

    fn breaker(&self) -> MutexGuard<'_, (Breaker, u64)> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An answer from before a change of our own undoes nothing.
    fn hear(&self, state: State, after: u64) {
        let mut breaker = self.breaker();
        if breaker.1 == after {
            breaker.0.hear(state);
        }
    }

    /// Tells the other agents, with the reason, for those who look.
    fn tell(&self, change: Option<Change>, reason: &str) {
        let Some(change) = change else { return };
        let group = &*self.group;
        match change {
            Change::Open => tracing::warn!(
                group,
                "the breaker opens, nothing is started for {}: {reason}",
                humantime::format_duration(self.pause)
            ),
            Change::Close => tracing::info!(group, "the breaker closes"),
        }
        self.breaker().1 += 1;
        // Without anybody who listens the group is at its end.
        let _ = self.changes.send((change, reason.to_owned()));
    }
}

/// The other end.
pub(super) struct Desk {
    changes: mpsc::UnboundedReceiver<(Change, String)>,
    heard: watch::Sender<Heard>,
}

pub(super) fn control(group: &str, breaker: config::group::Breaker) -> (Control, Desk) {
    let (changes, told) = mpsc::unbounded_channel();
    let (orders, heard) = watch::channel(Heard { closed: None, ordered_out: false, breaker_reason: None });
    let control = Control {
        group: group.to_owned(),
        pause: breaker.pause,
        changes,
        heard,
        breaker: Mutex::new((Breaker::new(breaker.failures), 0)),
    };
    (control, Desk { changes: told, heard: orders })
}

impl Desk {
    /// Works until it is dropped. A database that does not answer leaves the last orders in force: nothing can be
    /// recorded then anyway.
    pub(super) async fn run(mut self, group: Arc<Group>) {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut rate, mut throughput) = (ErrorRate::over(BEATS), Throughput::over(LATELY));
        let mut changes = 0;
        loop {
            tokio::select! {
                _ = tick.tick() => group.resize(),
                Some((change, reason)) = self.changes.recv() => {
                    if let Err(error) = group.store.change_breaker(change, group.config().breaker.pause, &reason).await {
                        tracing::warn!(group = &*group.name, "the other agents do not hear of the breaker: {error}");
                    }
                    changes += 1;
                }
            }
            let (in_flight, processed, failed) = group.status.counts();
            let (lag, paused_partitions) = group.status.standing();
            let at_work = AtWork {
                in_flight,
                error_rate: rate.after(processed, failed),
                rate: throughput.after(processed, std::time::Instant::now()),
                lag,
                paused_partitions,
                takes_retries: group.status.takes_retries(),
                holds_keys: group.config().retry.on_failure == OnFailure::HoldKey,
            };
            match group.store.control(at_work).await {
                Ok(Some(orders)) => {
                    let breaker = match orders.breaker {
                        None => State::Closed,
                        Some(left) if left > 0 => State::Open,
                        Some(_) => State::HalfOpen,
                    };
                    group.control.hear(breaker, changes);
                    group.keep_pace(orders.members.max(1));
                    self.heard.send_replace(Heard::new(orders));
                }
                // Of a group that is forgotten.
                Ok(None) => self.heard.send_modify(|_| {}),
                Err(error) => tracing::debug!(group = &*group.name, "no orders: {error}"),
            }
        }
    }
}
