//! What a relay says of itself, for its agent's health.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::domain::health::Vitals;
use crate::domain::priority::Priority;

/// Written by the relay, read by the heartbeat and the health check.
#[derive(Debug)]
pub struct RelayStatus(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    lanes: Vec<Priority>,
    published: u64,
    parked: u64,
    in_flight: u64,
    waiting_for: Option<String>,
    /// Asked now and then also when there is nothing to send.
    kafka_away: Option<String>,
    progressed: bool,
    turned_at: Instant,
}

impl Default for RelayStatus {
    fn default() -> Self {
        Self(Mutex::new(Inner {
            lanes: Vec::new(),
            published: 0,
            parked: 0,
            in_flight: 0,
            waiting_for: Some("PostgreSQL".into()),
            kafka_away: None,
            progressed: false,
            turned_at: Instant::now(),
        }))
    }
}

impl RelayStatus {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn own(&self, lanes: Vec<Priority>) {
        self.inner().lanes = lanes;
    }

    /// One turn of the loop: nothing is waited for.
    pub(super) fn turn(&self) {
        let mut inner = self.inner();
        inner.turned_at = Instant::now();
        inner.waiting_for = None;
    }

    pub(super) fn in_flight(&self, records: u64) {
        self.inner().in_flight = records;
    }

    pub(super) fn kafka_away(&self, reason: Option<String>) {
        self.inner().kafka_away = reason;
    }

    pub(super) fn published(&self, messages: u64) {
        let mut inner = self.inner();
        inner.published += messages;
        inner.progressed |= messages > 0;
    }

    /// Kafka will never take one message.
    pub(super) fn parked(&self) {
        self.inner().parked += 1;
    }

    /// Waiting is turning: the loop lives.
    pub(super) fn wait_for(&self, what: String) {
        let mut inner = self.inner();
        inner.turned_at = Instant::now();
        inner.waiting_for = Some(what);
    }

    /// Was anything published since the last call?
    pub(super) fn take_progress(&self) -> bool {
        std::mem::take(&mut self.inner().progressed)
    }
}

impl Vitals for RelayStatus {
    fn health(&self) -> Value {
        let inner = self.inner();
        json!({
            "owned_lanes": inner.lanes.iter().map(|lane| lane.name()).collect::<Vec<_>>(),
            "in_flight": inner.in_flight,
            "processed": inner.published,
            "failed": inner.parked,
            "waiting_for": inner.waiting_for,
        })
    }

    fn since_turn(&self) -> Duration {
        self.inner().turned_at.elapsed()
    }

    fn waiting_for(&self) -> Option<String> {
        let inner = self.inner();
        inner.waiting_for.clone().or_else(|| inner.kafka_away.clone())
    }

    fn unfinished(&self) -> Option<String> {
        let in_flight = self.inner().in_flight;
        (in_flight > 0).then(|| {
            format!("{in_flight} records that Kafka has not acknowledged; the next owner sends them again")
        })
    }
}
