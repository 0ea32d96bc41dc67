//! Every metric once: its name, its labels, what it tells. `docs/metrics.md` is made of this table.
//!
//! Labels are few and their values too: topics, groups, partitions, lanes, jobs, never keys or ids. What concerns the whole
//! database is told by one agent only, so that a sum over all of them is true; the others leave it out.

mod labels;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};

use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

pub use labels::GIVEN_UP;
pub use labels::{
    Alone, Group, GroupReason, GroupResult, Job, JobPolicy, JobResult, Labels, Lane, Outcome, Partition,
    RoleStatus, Topic, TopicReason, Version,
};

/// What `/metrics` answers with.
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

const PREFIX: &str = "outboxd";

/// A gauge of seconds.
pub type Seconds = Gauge<f64, AtomicU64>;

/// Statements that failed, whoever asked: a process has one database.
static DB_ERRORS: AtomicU64 = AtomicU64::new(0);

/// A statement failed, or the database could not be reached.
pub fn count_db_error() {
    DB_ERRORS.fetch_add(1, Ordering::Relaxed);
}

const LATENCY: [f64; 17] = [
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0,
    600.0,
];
const ROWS: [f64; 10] = [1.0, 5.0, 20.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 2_500.0, 5_000.0];

fn latency() -> Histogram {
    Histogram::new(LATENCY)
}

fn rows() -> Histogram {
    Histogram::new(ROWS)
}

/// Brings its gauges up to date before they are read.
pub trait Gauges: Send + Sync {
    fn show(&self);
}

/// A line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Described {
    pub name: &'static str,
    pub kind: &'static str,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

/// `kind field(Labels) "name" "help";` for each.
macro_rules! metrics {
    ($($kind:ident $field:ident($labels:ty) $name:literal $help:literal;)*) => {
        /// All of them, of one daemon.
        pub struct Metrics {
            registry: Registry,
            $(pub $field: metrics!(@type $kind, $labels),)*
        }

        /// The table, in the order of their names.
        pub const ALL: &[Described] = &[$(Described {
            name: metrics!(@name $kind, $name),
            kind: metrics!(@kind $kind),
            labels: <$labels as Labels>::NAMES,
            help: $help,
        }),*];

        impl Default for Metrics {
            fn default() -> Self {
                let mut registry = Registry::with_prefix(PREFIX);
                $(
                    let $field: metrics!(@type $kind, $labels) = metrics!(@new $kind);
                    registry.register($name, $help, $field.clone());
                )*
                Self { registry, $($field,)* }
            }
        }
    };
    (@type counter, $labels:ty) => { Family<$labels, Counter> };
    (@type gauge, $labels:ty) => { Family<$labels, Gauge> };
    (@type seconds, $labels:ty) => { Family<$labels, Seconds> };
    (@type latency, $labels:ty) => { Family<$labels, Histogram> };
    (@type rows, $labels:ty) => { Family<$labels, Histogram> };
    (@new latency) => { Family::new_with_constructor(latency as fn() -> Histogram) };
    (@new rows) => { Family::new_with_constructor(rows as fn() -> Histogram) };
    (@new $kind:ident) => { Family::default() };
    (@kind counter) => { "counter" };
    (@kind latency) => { "histogram" };
    (@kind rows) => { "histogram" };
    (@kind $kind:ident) => { "gauge" };
    (@name counter, $name:literal) => { concat!("outboxd_", $name, "_total") };
    (@name $kind:ident, $name:literal) => { concat!("outboxd_", $name) };
}

metrics! {
    gauge agents(RoleStatus) "agents" "Agents that are registered, by what they or their silence say (one agent tells)";
    seconds agent_heartbeat_age(Alone) "agent_heartbeat_age_seconds" "The longest silence of an agent that has not said goodbye (one agent tells)";
    gauge breaker_open(Group) "breaker_open" "1 while the group's breaker lets nothing start, or tries one message (one agent tells)";
    gauge build_info(Version) "build_info" "1, with the version of this agent";
    latency commit_to_ack(Lane) "commit_to_ack_seconds" "From a message's insert to Kafka's acknowledgement: of each run of acknowledgements its oldest message, by the clocks of the database and of the host";
    gauge config_mismatch(Alone) "config_mismatch" "Live agents whose file differs from most others' of their role in what concerns the whole cluster (one agent tells)";
    gauge consumer_lag(Partition) "consumer_lag" "Messages of an assigned partition that are not finished";
    seconds consumer_last_progress(Group) "consumer_last_progress_timestamp_seconds" "When this agent last recorded something finished, 0 before the first time";
    counter db_errors(Alone) "db_errors" "Statements that failed and connections that could not be made";
    counter dead_lettered(GroupReason) "dead_lettered" "Messages that were given up";
    gauge dead_letters(Group) "dead_letters" "Dead letters that wait for an operator, counted up to 10,000 (one agent tells)";
    gauge draining(Alone) "draining" "1 while this agent takes nothing new on";
    counter duplicates_skipped(Group) "duplicates_skipped" "Messages that were skipped on evidence";
    counter handled(GroupResult) "handled" "Messages that were handled (done), tries that failed (failed), and skipped ones (duplicate)";
    latency handler_duration(Group) "handler_duration_seconds" "How long the handler took for a message that it handled";
    gauge handler_in_flight(Group) "handler_in_flight" "Messages that a handler has, or that are finished and not recorded";
    gauge held_messages(Alone) "held_messages" "Messages that wait for their topic or behind a parked one, counted up to 10,000 (one agent tells)";
    latency job_duration(Job) "job_duration_seconds" "How long a run of a job took";
    seconds job_last_success(Job) "job_last_success_timestamp_seconds" "When a run of the job last succeeded on this agent, 0 before the first time";
    counter job_missed_fires(JobPolicy) "job_missed_fires" "Firings of a job that got no start of their own, by what became of them";
    counter job_runs(JobResult) "job_runs" "Runs of a job on this agent";
    gauge kafka_connected(Alone) "kafka_connected" "1 while a broker answers";
    gauge lane_owned(Lane) "lane_owned" "1 if this agent owns the lane";
    counter lease_lost(Alone) "lease_lost" "Leases that ended or were taken over while this agent had lanes";
    seconds oldest_pending_age(Alone) "oldest_pending_age_seconds" "How long the oldest pending message has waited, 0 if none does (one agent tells)";
    seconds oldest_transaction_age(Alone) "oldest_transaction_age_seconds" "How long the oldest transaction of the database has been open (one agent tells)";
    gauge parked_messages(Topic) "parked_messages" "Messages that Kafka refused for good, counted up to 10,000 (one agent tells)";
    gauge partition_paused(Partition) "partition_paused" "1 while an assigned partition is not read because it is full, or what comes next in it cannot be decoded";
    gauge pending_messages(Alone) "pending_messages" "Messages that are committed and not published, counted up to 10,000 a lane (one agent tells)";
    latency poll_duration(Alone) "poll_duration_seconds" "How long the relay's look at the outbox took";
    counter publish_failures(TopicReason) "publish_failures" "Deliveries that failed: each ends an incarnation of the producer, whose records are sent again";
    counter published(Topic) "published" "Records of messages that Kafka acknowledged, repeated ones too";
    counter rebalances(Group) "rebalances" "Times that partitions were assigned, revoked or lost";
    rows relay_batch_rows(Lane) "relay_batch_rows" "Rows of a batch that the relay read";
    counter replayed(Outcome) "replayed" "Messages that operators sent again, by how the command ended (one agent tells)";
    seconds retention_blocked(Group) "retention_blocked_seconds" "For how long beyond `[retention] published` the group has kept published messages (one agent tells)";
    counter retries_scheduled(Group) "retries_scheduled" "Retries that were given to an agent";
    gauge retry_backlog(Group) "retry_backlog" "Messages that wait for another try or behind one that does, counted up to 10,000 (one agent tells)";
    gauge scheduled_messages(Alone) "scheduled_messages" "Messages whose time has not come, counted up to 10,000 (one agent tells)";
}

impl Metrics {
    /// That job is known: its numbers are told from nothing on.
    pub fn foresee_job(&self, job: &str) {
        let label = Job { job: job.to_owned() };
        drop(self.job_duration.get_or_create(&label));
        drop(self.job_last_success.get_or_create(&label));
        for result in ["done", "failed", "cut", "lost"] {
            drop(self.job_runs.get_or_create(&JobResult { job: job.to_owned(), result }));
        }
        for policy in ["skip", "once", "all", "overlap"] {
            drop(self.job_missed_fires.get_or_create(&JobPolicy { job: job.to_owned(), policy }));
        }
    }

    /// A run of a job has ended.
    pub fn count_run(&self, job: &str, result: &'static str, took: Duration) {
        let label = Job { job: job.to_owned() };
        self.job_runs.get_or_create(&JobResult { job: job.to_owned(), result }).inc();
        self.job_duration.get_or_create(&label).observe(took.as_secs_f64());
        if result == "done" {
            self.job_last_success.get_or_create(&label).set(timestamp(Some(Utc::now())));
        }
    }

    /// As Prometheus reads them.
    pub fn text(&self) -> Result<String, fmt::Error> {
        self.db_errors
            .get_or_create(&Alone)
            .inner()
            .store(DB_ERRORS.load(Ordering::Relaxed), Ordering::Relaxed);
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// So many records of a topic were acknowledged.
    pub fn count_published(&self, topic: &str, records: u64) {
        let topic = Topic { topic: topic.to_owned() };
        if self.published.get(&topic).is_none() {
            for reason in labels::PUBLISH_FAILURES {
                drop(
                    self.publish_failures.get_or_create(&TopicReason { topic: topic.topic.clone(), reason }),
                );
            }
        }
        self.published.get_or_create(&topic).inc_by(records);
    }

    /// A message of that lane, inserted at that millisecond since 1970, has just been acknowledged.
    pub fn observe_commit_to_ack(&self, lane: &'static str, created_ms: u64) {
        let now = u64::try_from(Utc::now().timestamp_millis()).unwrap_or(0);
        let took = Duration::from_millis(now.saturating_sub(created_ms));
        self.commit_to_ack.get_or_create(&Lane { lane }).observe(took.as_secs_f64());
    }
}

/// As gauges take a count.
pub fn gauge(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}

/// Seconds since 1970.
pub fn timestamp(at: Option<DateTime<Utc>>) -> f64 {
    at.map_or(0.0, |at| {
        Duration::from_millis(u64::try_from(at.timestamp_millis()).unwrap_or(0)).as_secs_f64()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_the_name_of_the_table() {
        let metrics = Metrics::default();
        metrics.count_published("orders", 3);
        metrics.draining.get_or_create(&Alone).set(1);
        let text = metrics.text().unwrap();
        assert!(text.contains("\noutboxd_published_total{topic=\"orders\"} 3\n"), "{text}");
        assert!(text.contains("\noutboxd_draining 1\n"), "{text}");
        assert!(
            text.contains("\noutboxd_publish_failures_total{topic=\"orders\",reason=\"transport\"} 0\n"),
            "{text}"
        );
        for described in ALL {
            let kind = format!("# TYPE {} {}\n", described.name, described.kind);
            assert!(text.contains(&kind) || !text.contains(&format!("\n{}", described.name)), "{kind}");
        }
    }
}
