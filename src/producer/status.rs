//! What a relay says of itself, for its agent's health.

use std::cmp::Reverse;
use std::collections::BTreeMap;
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
    lanes: BTreeMap<Reverse<Priority>, LaneStatus>,
    published: u64,
    parked: u64,
    /// What all of it waits for.
    waiting_for: Option<String>,
    /// Asked now and then also when there is nothing to send.
    kafka_away: Option<String>,
    turned_at: Instant,
}

/// An owned lane.
#[derive(Debug)]
struct LaneStatus {
    in_flight: u64,
    waiting_for: Option<String>,
    turned_at: Instant,
}

impl Default for RelayStatus {
    fn default() -> Self {
        Self(Mutex::new(Inner {
            lanes: BTreeMap::new(),
            published: 0,
            parked: 0,
            waiting_for: Some("PostgreSQL".into()),
            kafka_away: None,
            turned_at: Instant::now(),
        }))
    }
}

impl RelayStatus {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn own(&self, lanes: &[Priority]) {
        let mut inner = self.inner();
        inner.lanes.retain(|Reverse(lane), _| lanes.contains(lane));
        for lane in lanes {
            inner.lanes.entry(Reverse(*lane)).or_insert_with(|| LaneStatus {
                in_flight: 0,
                waiting_for: None,
                turned_at: Instant::now(),
            });
        }
    }

    /// The outbox was looked at: the relay as a whole waits for nothing.
    pub(super) fn turn(&self) {
        let mut inner = self.inner();
        inner.turned_at = Instant::now();
        inner.waiting_for = None;
    }

    /// A lane has done a step.
    pub(super) fn lane_turns(&self, lane: Priority) {
        if let Some(lane) = self.inner().lanes.get_mut(&Reverse(lane)) {
            lane.turned_at = Instant::now();
            lane.waiting_for = None;
        }
    }

    pub(super) fn in_flight(&self, lane: Priority, records: u64) {
        if let Some(lane) = self.inner().lanes.get_mut(&Reverse(lane)) {
            lane.in_flight = records;
        }
    }

    pub(super) fn kafka_away(&self, reason: Option<String>) {
        self.inner().kafka_away = reason;
    }

    pub(super) fn published(&self, messages: u64) {
        self.inner().published += messages;
    }

    /// How many messages were published so far.
    pub(super) fn total(&self) -> u64 {
        self.inner().published
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

    /// One lane waits; the others may go on.
    pub(super) fn lane_waits_for(&self, lane: Priority, what: String) {
        if let Some(lane) = self.inner().lanes.get_mut(&Reverse(lane)) {
            lane.turned_at = Instant::now();
            lane.waiting_for = Some(what);
        }
    }
}

impl Inner {
    fn in_flight(&self) -> u64 {
        self.lanes.values().map(|lane| lane.in_flight).sum()
    }

    fn waiting_for(&self) -> Option<&String> {
        let of_a_lane = || self.lanes.values().find_map(|lane| lane.waiting_for.as_ref());
        self.waiting_for.as_ref().or_else(of_a_lane)
    }
}

impl Vitals for RelayStatus {
    fn health(&self) -> Value {
        let inner = self.inner();
        json!({
            "owned_lanes": inner.lanes.keys().map(|Reverse(lane)| lane.name()).collect::<Vec<_>>(),
            "in_flight": inner.in_flight(),
            "processed": inner.published,
            "failed": inner.parked,
            "waiting_for": inner.waiting_for(),
        })
    }

    fn since_turn(&self) -> Duration {
        let inner = self.inner();
        let oldest = inner.lanes.values().map(|lane| lane.turned_at).min();
        oldest.unwrap_or(inner.turned_at).min(inner.turned_at).elapsed()
    }

    fn waiting_for(&self) -> Option<String> {
        let inner = self.inner();
        inner.waiting_for().or(inner.kafka_away.as_ref()).cloned()
    }

    fn unfinished(&self) -> Option<String> {
        let in_flight = self.inner().in_flight();
        (in_flight > 0).then(|| {
            format!("{in_flight} records that Kafka has not acknowledged; the next owner sends them again")
        })
    }
}
