//! What a relay says of itself, for its agent's health.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::domain::health::Vitals;
use crate::domain::offsets::Offsets;
use crate::domain::priority::Priority;
use crate::kafka::error::Refusal;
use crate::telemetry::metrics::{Alone, Gauges, Lane, Metrics, TopicReason};

/// Written by the relay, read by the heartbeat and the health check.
pub struct RelayStatus {
    metrics: Arc<Metrics>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    lanes: BTreeMap<Reverse<Priority>, LaneStatus>,
    published: u64,
    parked: u64,
    /// What all of it waits for.
    waiting_for: Option<String>,
    /// Asked now and then also when there is nothing to send.
    kafka_away: Option<String>,
    kafka_has_answered: bool,
    /// It is switched off in the file: it does not turn, and waits for nothing.
    is_off: bool,
    turned_at: Instant,
}

/// An owned lane.
#[derive(Debug)]
struct LaneStatus {
    in_flight: u64,
    waiting_for: Option<String>,
    turned_at: Instant,
}

impl RelayStatus {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        // Known before the first event.
        drop(metrics.lease_lost.get_or_create(&Alone));
        drop(metrics.poll_duration.get_or_create(&Alone));
        for lane in Priority::ALL.map(|priority| Lane { lane: priority.name() }) {
            drop(metrics.commit_to_ack.get_or_create(&lane));
            drop(metrics.relay_batch_rows.get_or_create(&lane));
        }
        let inner = Mutex::new(Inner {
            lanes: BTreeMap::new(),
            published: 0,
            parked: 0,
            waiting_for: Some("PostgreSQL".into()),
            kafka_away: None,
            kafka_has_answered: false,
            is_off: false,
            turned_at: Instant::now(),
        });
        Self { metrics, inner }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
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

    pub(super) fn kafka_is_away(&self, reason: Option<String>) {
        let mut inner = self.inner();
        inner.kafka_has_answered |= reason.is_none();
        inner.kafka_away = reason;
    }

    pub(super) fn published(&self, messages: u64) {
        self.inner().published += messages;
    }

    /// Kafka has acknowledged these records.
    pub(super) fn acknowledged(&self, records: &Offsets) {
        for (topic, records) in records.records() {
            self.metrics.count_published(topic, records);
        }
    }

    /// A message of that lane, inserted at that millisecond, was acknowledged just now.
    pub(super) fn published_after(&self, lane: Priority, created_ms: u64) {
        self.metrics.observe_commit_to_ack(lane.name(), created_ms);
    }

    pub(super) fn delivery_failed(&self, topic: &str, refusal: Refusal) {
        let reason = match refusal {
            Refusal::Transport => "transport",
            Refusal::TopicForbidden => "forbidden",
            Refusal::TopicMissing => "missing",
            Refusal::Record => "record",
        };
        self.metrics.publish_failures.get_or_create(&TopicReason { topic: topic.to_owned(), reason }).inc();
    }

    pub(super) fn read(&self, lane: Priority, rows: usize) {
        #[allow(clippy::cast_precision_loss, reason = "a batch has few rows")]
        self.metrics.relay_batch_rows.get_or_create(&Lane { lane: lane.name() }).observe(rows as f64);
    }

    pub(super) fn looked(&self, took: Duration) {
        self.metrics.poll_duration.get_or_create(&Alone).observe(took.as_secs_f64());
    }

    pub(super) fn lost_leases(&self) {
        self.metrics.lease_lost.get_or_create(&Alone).inc();
    }

    /// How many messages were published so far.
    pub(super) fn total(&self) -> u64 {
        self.inner().published
    }

    /// Kafka will never take one message.
    pub(super) fn parked(&self) {
        self.inner().parked += 1;
    }

    /// This agent publishes nothing, and that is how it is meant.
    pub fn switched_off(&self) {
        self.inner().is_off = true;
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

impl Gauges for RelayStatus {
    fn show(&self) {
        let inner = self.inner();
        for priority in Priority::ALL {
            let owned = inner.lanes.contains_key(&Reverse(priority));
            self.metrics.lane_owned.get_or_create(&Lane { lane: priority.name() }).set(owned.into());
        }
        let connected = inner.kafka_has_answered && inner.kafka_away.is_none();
        self.metrics.kafka_connected.get_or_create(&Alone).set(connected.into());
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
        })
    }

    fn since_turn(&self) -> Duration {
        let inner = self.inner();
        if inner.is_off {
            return Duration::ZERO;
        }
        let oldest = inner.lanes.values().map(|lane| lane.turned_at).min();
        oldest.unwrap_or(inner.turned_at).min(inner.turned_at).elapsed()
    }

    fn waiting_for(&self) -> Option<String> {
        let inner = self.inner();
        inner.waiting_for().filter(|_| !inner.is_off).cloned()
    }

    fn kafka_away(&self) -> Option<String> {
        let inner = self.inner();
        let unasked = || (!inner.kafka_has_answered).then(|| "Kafka has not answered yet".to_owned());
        inner.kafka_away.clone().or_else(unasked).filter(|_| !inner.is_off)
    }

    fn unfinished(&self) -> Option<String> {
        let in_flight = self.inner().in_flight();
        (in_flight > 0).then(|| {
            format!("{in_flight} records that Kafka has not acknowledged; the next owner sends them again")
        })
    }
}
