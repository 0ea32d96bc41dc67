//! What a group says of itself, for its agent's health.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::domain::delivery::{Record, TopicPartition};
use crate::domain::health::Vitals;

/// Written by the group's tasks, read by the heartbeat and the health check.
#[derive(Debug)]
pub struct GroupStatus {
    group: String,
    /// Its reader of the retry topic moves, and it does not drain.
    pub(super) takes_retries: AtomicBool,
    /// Retries at work.
    pub(super) retries: AtomicU32,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    partitions: BTreeMap<TopicPartition, Partition>,
    missing_topics: Vec<String>,
    processed: u64,
    failed: u64,
    duplicates: u64,
    other_payloads: u64,
    last_progress: Option<DateTime<Utc>>,
    waiting_for: Option<String>,
    turned_at: Instant,
}

#[derive(Debug, Default)]
struct Partition {
    next: i64,
    /// Where the log ended when last heard of.
    end: Option<i64>,
    /// A message that a handler has now, and those that are finished without evidence yet.
    in_flight: u64,
    /// The last message that was started: its offset, and the time of its record.
    last_started: Option<(i64, DateTime<Utc>)>,
}

impl Partition {
    /// When the message was written that is started and not finished, also while it waits for its next try.
    fn pending_since(&self) -> Option<DateTime<Utc>> {
        self.last_started.filter(|(offset, _)| *offset >= self.next).map(|(_, timestamp)| timestamp)
    }
}

/// What became of a message, for the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tally {
    Processed,
    /// One try that failed.
    Failed,
    /// A repeat, or another message had done the operation.
    Duplicate,
    /// A duplicate whose payload is not that of the message which had done the operation.
    OtherPayload,
}

impl GroupStatus {
    pub fn new(group: impl Into<String>) -> Self {
        Self {
            group: group.into(),
            takes_retries: AtomicBool::new(false),
            retries: AtomicU32::new(0),
            inner: Mutex::new(Inner {
                partitions: BTreeMap::new(),
                missing_topics: Vec::new(),
                processed: 0,
                failed: 0,
                duplicates: 0,
                other_payloads: 0,
                last_progress: None,
                waiting_for: Some("Kafka has not been asked yet".into()),
                turned_at: Instant::now(),
            }),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn turn(&self) {
        self.inner().turned_at = Instant::now();
    }

    /// Waiting is turning: the loop lives.
    pub(super) fn wait_for(&self, what: &str) {
        let mut inner = self.inner();
        inner.turned_at = Instant::now();
        inner.waiting_for = Some(what.to_owned());
    }

    /// Nothing is waited for.
    pub(super) fn go_on(&self) {
        let mut inner = self.inner();
        inner.turned_at = Instant::now();
        inner.waiting_for = None;
    }

    pub(super) fn missing(&self, topics: Vec<String>) {
        self.inner().missing_topics = topics;
    }

    pub(super) fn assigned(&self, at: &TopicPartition, next: i64) {
        self.inner().partitions.insert(at.clone(), Partition { next, ..Partition::default() });
    }

    pub(super) fn gave_back(&self, at: &TopicPartition) {
        self.inner().partitions.remove(at);
    }

    pub(super) fn no_assignment(&self) {
        self.inner().partitions.clear();
    }

    pub(super) fn ends_at(&self, at: &TopicPartition, end: i64) {
        if let Some(partition) = self.inner().partitions.get_mut(at) {
            partition.end = Some(end);
        }
    }

    pub(super) fn started(&self, at: &TopicPartition, record: &Record) {
        if let Some(partition) = self.inner().partitions.get_mut(at) {
            partition.in_flight += 1;
            partition.last_started = record.timestamp.map(|timestamp| (record.offset, timestamp));
        }
    }

    /// What was started came to nothing.
    pub(super) fn stopped(&self, at: &TopicPartition) {
        if let Some(partition) = self.inner().partitions.get_mut(at) {
            partition.in_flight = partition.in_flight.saturating_sub(1);
        }
    }

    /// So many of those in flight have their evidence now.
    pub(super) fn completed(&self, at: &TopicPartition, next: i64, finished: u64) {
        let mut inner = self.inner();
        inner.last_progress = Some(Utc::now());
        if let Some(partition) = inner.partitions.get_mut(at) {
            partition.next = next;
            partition.in_flight = partition.in_flight.saturating_sub(finished);
        }
    }

    pub(super) fn count(&self, tally: Tally) {
        let mut inner = self.inner();
        match tally {
            Tally::Processed => inner.processed += 1,
            Tally::Failed => inner.failed += 1,
            Tally::Duplicate => inner.duplicates += 1,
            Tally::OtherPayload => inner.other_payloads += 1,
        }
    }

    /// Work that an end now would leave unfinished, by partition.
    pub(super) fn left(&self) -> Vec<String> {
        let inner = self.inner();
        let busy = inner.partitions.iter().filter(|(_, partition)| partition.in_flight > 0);
        busy.map(|((topic, partition), state)| {
            format!("{topic}[{partition}]: {} messages unfinished", state.in_flight)
        })
        .collect()
    }
}

fn age_seconds(since: DateTime<Utc>) -> f64 {
    (Utc::now() - since).to_std().unwrap_or_default().as_secs_f64()
}

/// Every group of a consumer.
#[derive(Debug)]
pub struct ConsumerStatus(pub Vec<Arc<GroupStatus>>);

impl Vitals for ConsumerStatus {
    fn health(&self) -> Value {
        let (mut assigned, mut lag, mut in_flight) = (0, 0, 0);
        let (mut processed, mut failed, mut duplicates) = (0, 0, 0);
        let mut pending_since: Option<DateTime<Utc>> = None;
        let mut groups = serde_json::Map::new();
        for group in &self.0 {
            let inner = group.inner();
            let behind =
                inner.partitions.values().filter_map(|at| Some((at.end? - at.next).max(0))).sum::<i64>();
            let running = inner.partitions.values().map(|at| at.in_flight).sum::<u64>();
            let names: Vec<String> =
                inner.partitions.keys().map(|(topic, partition)| format!("{topic}[{partition}]")).collect();
            let oldest = inner.partitions.values().filter_map(Partition::pending_since).min();
            pending_since = pending_since.into_iter().chain(oldest).min();
            assigned += names.len();
            lag += behind;
            in_flight += running;
            processed += inner.processed;
            failed += inner.failed;
            duplicates += inner.duplicates;
            groups.insert(
                group.group.clone(),
                json!({
                    "assigned_partitions": names,
                    "missing_topics": inner.missing_topics,
                    "lag": behind,
                    "in_flight": running,
                    "processed": inner.processed,
                    "failed": inner.failed,
                    "duplicates": inner.duplicates,
                    "duplicates_with_other_payload": inner.other_payloads,
                    "last_progress_at": inner.last_progress,
                    "waiting_for": inner.waiting_for,
                }),
            );
        }
        json!({
            "assigned_partitions": assigned,
            "lag": lag,
            "in_flight": in_flight,
            "processed": processed,
            "failed": failed,
            "duplicates": duplicates,
            "oldest_pending_seconds": pending_since.map(age_seconds),
            "groups": groups,
        })
    }

    fn since_turn(&self) -> Duration {
        self.0.iter().map(|group| group.inner().turned_at.elapsed()).max().unwrap_or_default()
    }

    fn waiting_for(&self) -> Option<String> {
        let waiting: Vec<String> = self
            .0
            .iter()
            .filter_map(|group| {
                Some(format!("group {}: {}", group.group, group.inner().waiting_for.as_ref()?))
            })
            .collect();
        (!waiting.is_empty()).then(|| waiting.join("; "))
    }

    fn unfinished(&self) -> Option<String> {
        let left: Vec<String> = self.0.iter().flat_map(|group| group.left()).collect();
        (!left.is_empty()).then(|| left.join(", "))
    }
}
