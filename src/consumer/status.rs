//! What a group says of itself, for its agent's health.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::domain::delivery::TopicPartition;
use crate::domain::health::Vitals;
use crate::telemetry::metrics::{self, Alone, Gauges, Group, GroupReason, GroupResult, Metrics};

/// Written by the group's tasks, read by the heartbeat and the health check.
pub struct GroupStatus {
    group: String,
    metrics: Arc<Metrics>,
    /// Its reader of the retry topic moves, and it does not drain.
    takes_retries: AtomicBool,
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
    /// By who waits.
    waiting_for: BTreeMap<&'static str, String>,
    turned_at: Instant,
    still: Option<Still>,
}

/// Since when nothing was finished.
#[derive(Debug)]
struct Still {
    done: u64,
    lag: i64,
    since: Instant,
}

#[derive(Debug, Default)]
struct Partition {
    next: i64,
    /// Where the log ended when last heard of.
    end: Option<i64>,
    /// Messages that a handler has now, and those that are finished without evidence yet.
    in_flight: u64,
    /// It is full, and not read.
    paused: bool,
    /// When the oldest message was written that was taken in and is not finished.
    pending_since: Option<DateTime<Utc>>,
}

impl Inner {
    /// Messages of its partitions that are not finished.
    fn lag(&self) -> i64 {
        self.partitions.values().filter_map(|at| Some((at.end? - at.next).max(0))).sum()
    }

    /// What is waited for, each thing once.
    fn reasons(&self) -> Option<String> {
        self.reasons_of(|_| true)
    }

    fn reasons_of(&self, who: impl Fn(&str) -> bool) -> Option<String> {
        let waiting = self.waiting_for.iter().filter(|(waits, _)| who(waits));
        let reasons: BTreeSet<&str> = waiting.map(|(_, what)| what.as_str()).collect();
        (!reasons.is_empty()).then(|| reasons.into_iter().collect::<Vec<_>>().join("; "))
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
    pub fn new(group: impl Into<String>, metrics: Arc<Metrics>) -> Self {
        let group = group.into();
        foresee(&metrics, &group);
        Self {
            group,
            metrics,
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
                waiting_for: BTreeMap::from([(super::SET_UP, "Kafka has not been asked yet".into())]),
                turned_at: Instant::now(),
                still: None,
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
    pub(super) fn wait_for(&self, who: &'static str, what: &str) {
        let mut inner = self.inner();
        inner.turned_at = Instant::now();
        inner.waiting_for.insert(who, what.to_owned());
    }

    /// That one waits for nothing.
    pub(super) fn go_on(&self, who: &'static str) {
        let mut inner = self.inner();
        inner.turned_at = Instant::now();
        inner.waiting_for.remove(who);
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

    /// So many of its messages are under way.
    pub(super) fn at_work(&self, at: &TopicPartition, in_flight: u64, pending_since: Option<DateTime<Utc>>) {
        if let Some(partition) = self.inner().partitions.get_mut(at) {
            (partition.in_flight, partition.pending_since) = (in_flight, pending_since);
        }
    }

    /// The database knows it.
    pub(super) fn completed(&self, positions: &[(TopicPartition, i64)]) {
        let mut inner = self.inner();
        inner.last_progress = Some(Utc::now());
        for (at, next) in positions {
            if let Some(partition) = inner.partitions.get_mut(at) {
                partition.next = *next;
            }
        }
    }

    pub(super) fn count(&self, tally: Tally, times: usize) {
        let (mut inner, times) = (self.inner(), times as u64);
        match tally {
            Tally::Processed => inner.processed += times,
            Tally::Failed => inner.failed += times,
            Tally::Duplicate => inner.duplicates += times,
            Tally::OtherPayload => inner.other_payloads += times,
        }
        drop(inner);
        let result = match tally {
            Tally::Processed => "done",
            Tally::Failed => "failed",
            Tally::Duplicate => "duplicate",
            Tally::OtherPayload => return,
        };
        self.metrics.handled.get_or_create(&GroupResult { group: self.group.clone(), result }).inc_by(times);
        if tally == Tally::Duplicate {
            self.metrics.duplicates_skipped.get_or_create(&self.label()).inc_by(times);
        }
    }

    fn label(&self) -> Group {
        Group { group: self.group.clone() }
    }

    /// A handler has answered, whatever it said.
    pub(super) fn answered(&self, took: Duration) {
        self.metrics.handler_duration.get_or_create(&self.label()).observe(took.as_secs_f64());
    }

    pub(super) fn gave_up(&self, reason: &'static str) {
        self.metrics.dead_lettered.get_or_create(&GroupReason { group: self.group.clone(), reason }).inc();
    }

    /// Partitions came or went.
    pub(super) fn rebalanced(&self) {
        self.metrics.rebalances.get_or_create(&self.label()).inc();
    }

    pub(super) fn paused(&self, at: &TopicPartition, paused: bool) {
        if let Some(partition) = self.inner().partitions.get_mut(at) {
            partition.paused = paused;
        }
    }

    /// In flight, processed, failed.
    pub(super) fn counts(&self) -> (u64, u64, u64) {
        let inner = self.inner();
        let in_flight: u64 = inner.partitions.values().map(|partition| partition.in_flight).sum();
        let retries = self.retries.load(Ordering::Relaxed);
        (in_flight + u64::from(retries), inner.processed, inner.failed)
    }

    /// What waits in its partitions, and how many of them are not read because they are full.
    pub(super) fn standing(&self) -> (i64, usize) {
        let inner = self.inner();
        (inner.lag(), inner.partitions.values().filter(|partition| partition.paused).count())
    }

    /// Said by whoever reads the retry topic: only then is this agent given retries.
    pub(super) fn take_retries(&self, takes: bool) {
        self.takes_retries.store(takes, Ordering::Relaxed);
    }

    pub(super) fn takes_retries(&self) -> bool {
        self.takes_retries.load(Ordering::Relaxed)
    }

    /// To be called about once in a few seconds. Says how much waits in its partitions if nothing was finished for so
    /// long, and it became more.
    pub(super) fn stands_still(&self, patience: Duration) -> Option<i64> {
        let mut inner = self.inner();
        let done = inner.processed + inner.failed + inner.duplicates;
        let lag = inner.lag();
        match inner.still {
            Some(Still { done: before, lag: then, since }) if before == done && lag > 0 => {
                (since.elapsed() >= patience && lag > then).then_some(lag)
            }
            _ => {
                inner.still = Some(Still { done, lag, since: Instant::now() });
                None
            }
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

/// What is counted of a group is known before the first event.
fn foresee(metrics: &Metrics, group: &str) {
    let label = Group { group: group.to_owned() };
    for result in ["done", "failed", "duplicate"] {
        drop(metrics.handled.get_or_create(&GroupResult { group: group.to_owned(), result }));
    }
    for reason in metrics::GIVEN_UP {
        drop(metrics.dead_lettered.get_or_create(&GroupReason { group: group.to_owned(), reason }));
    }
    drop(metrics.duplicates_skipped.get_or_create(&label));
    drop(metrics.handler_duration.get_or_create(&label));
    drop(metrics.rebalances.get_or_create(&label));
}

fn age_seconds(since: DateTime<Utc>) -> f64 {
    (Utc::now() - since).to_std().unwrap_or_default().as_secs_f64()
}

/// Before the first join a group has little else to wait for.
fn is_of_kafka(who: &str) -> bool {
    [super::SET_UP, super::KAFKA].contains(&who)
}

/// Every group of a consumer.
pub struct ConsumerStatus(pub Vec<Arc<GroupStatus>>);

impl Gauges for ConsumerStatus {
    fn show(&self) {
        let Some(GroupStatus { metrics, .. }) = self.0.first().map(Arc::as_ref) else { return };
        // Those that went to other agents are told there.
        metrics.consumer_lag.clear();
        metrics.partition_paused.clear();
        let mut connected = true;
        for group in &self.0 {
            let inner = group.inner();
            for ((topic, partition), state) in &inner.partitions {
                let at = metrics::Partition {
                    group: group.group.clone(),
                    topic: topic.to_string(),
                    partition: *partition,
                };
                let lag = state.end.map_or(0, |end| (end - state.next).max(0));
                metrics.consumer_lag.get_or_create(&at).set(lag);
                metrics.partition_paused.get_or_create(&at).set(state.paused.into());
            }
            let in_flight: u64 = inner.partitions.values().map(|at| at.in_flight).sum();
            let retries = group.retries.load(Ordering::Relaxed);
            let in_flight = metrics::gauge(in_flight + u64::from(retries));
            metrics.handler_in_flight.get_or_create(&group.label()).set(in_flight);
            let progress = metrics::timestamp(inner.last_progress);
            metrics.consumer_last_progress.get_or_create(&group.label()).set(progress);
            connected &= inner.reasons_of(is_of_kafka).is_none();
        }
        metrics.kafka_connected.get_or_create(&Alone).set(connected.into());
    }
}

impl ConsumerStatus {
    /// What groups wait for, as far as it is one of these.
    fn reasons(&self, who: fn(&str) -> bool) -> Option<String> {
        let of_group = |group: &Arc<GroupStatus>| {
            Some(format!("group {}: {}", group.group, group.inner().reasons_of(who)?))
        };
        let waiting: Vec<String> = self.0.iter().filter_map(of_group).collect();
        (!waiting.is_empty()).then(|| waiting.join("; "))
    }
}

impl Vitals for ConsumerStatus {
    fn health(&self) -> Value {
        let (mut assigned, mut lag, mut in_flight) = (0, 0, 0);
        let (mut processed, mut failed, mut duplicates) = (0, 0, 0);
        let mut pending_since: Option<DateTime<Utc>> = None;
        let mut groups = serde_json::Map::new();
        for group in &self.0 {
            let inner = group.inner();
            let behind = inner.lag();
            let running = inner.partitions.values().map(|at| at.in_flight).sum::<u64>();
            let names: Vec<String> =
                inner.partitions.keys().map(|(topic, partition)| format!("{topic}[{partition}]")).collect();
            let oldest = inner.partitions.values().filter_map(|at| at.pending_since).min();
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
                    "waiting_for": inner.reasons(),
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
        self.reasons(|who| !is_of_kafka(who))
    }

    fn kafka_away(&self) -> Option<String> {
        self.reasons(is_of_kafka)
    }

    fn unfinished(&self) -> Option<String> {
        let left: Vec<String> = self.0.iter().flat_map(|group| group.left()).collect();
        (!left.is_empty()).then(|| left.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_finishes_nothing_while_more_and_more_waits_stands_still_and_nobody_else() {
        let status = GroupStatus::new("orders", Arc::default());
        let at: TopicPartition = ("orders".into(), 0);
        let stands_still = || status.stands_still(Duration::ZERO);
        status.assigned(&at, 10);
        status.ends_at(&at, 10);
        assert_eq!((stands_still(), stands_still()), (None, None), "nothing waits");
        status.ends_at(&at, 15);
        assert_eq!(status.stands_still(Duration::from_secs(60)), None, "it has just come");
        status.count(Tally::Processed, 1);
        assert_eq!((stands_still(), stands_still()), (None, None), "no more than before");
        status.ends_at(&at, 17);
        assert_eq!(status.stands_still(Duration::from_secs(60)), None, "not for so long");
        assert_eq!(stands_still(), Some(7));
        status.count(Tally::Failed, 1);
        assert_eq!(stands_still(), None, "a failure is an end too");
        status.ends_at(&at, 20);
        assert_eq!(stands_still(), Some(10));
        status.completed(&[(at.clone(), 16)]);
        assert_eq!(stands_still(), None, "less waits than before");
        status.no_assignment();
        assert_eq!(stands_still(), None, "what is others' is theirs");
    }
}
