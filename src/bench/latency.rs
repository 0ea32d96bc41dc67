//! From an application's commit to the broker, at a rate that strains nobody.
//!
//! A commit counts from when its client knows of it, on the clock of this process. Its end is told twice:
//!
//! - by a consumer in this process, which waits at the broker for the next record: one clock, microseconds, and the way
//!   to the consumer is in it, so it overstates what an acknowledgement takes. It is what the budgets are held against.
//! - by the record's LogAppendTime: the broker's own word, but in whole milliseconds, rounded down, and by its clock, so
//!   it means something on one machine only.
//!
//! How much that overstates, and what no relay can do without, is measured beside it: records sent at the same rate by
//! this process, to their acknowledgement and to their arrival.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::bail;
use serde::Serialize;

use super::alone::{Alone, Sent};
use super::load::Load;
use super::producing::Producing;
use super::sink::{Arrival, Sink};
use super::statistics::Spread;
use super::workbench::Workbench;
use crate::pg::benching::{self, Server, Table};

/// Before records that are sent alone are measured. The broker is warm by then; the client still has to learn the metadata
/// and to size its buffers.
const ALONE_WARM_UP: Duration = Duration::from_secs(2);

/// How long records are sent alone, at the most.
const ALONE: Duration = Duration::from_secs(10);

/// For the last record behind the last commit.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug)]
pub struct LatencyOptions {
    pub rate: f64,
    /// Before what is measured, at the same rate. A broker that has just started spends up to half a core on compiling
    /// what it runs, and on a machine of two that is what would be measured.
    pub warm_up: Duration,
    pub duration: Duration,
    pub clients: u64,
    pub payload_bytes: usize,
    pub partitions: i32,
}

#[derive(Debug, Serialize)]
pub struct LatencyReport {
    pub bench: &'static str,
    pub postgres: Server,
    pub clients: u64,
    pub warm_up_seconds: f64,
    pub offered_per_second: f64,
    pub committed_per_second: f64,
    pub messages: u64,
    pub lost: u64,
    /// What the clients waited for.
    pub commit_ms: Spread,
    /// What the budgets are held against.
    pub commit_to_arrival_ms: Spread,
    pub commit_to_append_ms: Spread,
    /// The same without a database: what of it is Kafka's, and what the way to the consumer adds to an acknowledgement.
    pub send_to_ack_ms: Spread,
    pub send_to_arrival_ms: Spread,
    /// Of one core, while it published this.
    pub cpu_percent: Option<f64>,
    pub peak_memory_bytes: Option<u64>,
}

pub async fn run(bench: &mut Workbench, options: LatencyOptions) -> anyhow::Result<LatencyReport> {
    let outbox = bench.outbox().await?;
    let topic = bench.topic(options.partitions).await?;
    let sink = Sink::new(&outbox.config.kafka, &topic, options.partitions)?;
    let mut producing = Producing::start(&outbox).await?;
    let load = |duration, first| Load {
        table: Table::Outbox,
        topic: topic.clone(),
        clients: options.clients,
        rate: Some(options.rate),
        duration,
        payload_bytes: options.payload_bytes,
        first,
    };
    bench.progress.say("warming up");
    let before = sink.ends().await?;
    let warm = load(options.warm_up, 0).run(&outbox).await?.commits.len() as u64;
    sink.grown(&before, warm, || producing.check()).await?;
    bench.progress.say(format!("{} transactions a second", options.rate));
    producing.begin_counting();
    let stop = Arc::new(AtomicBool::new(false));
    let watching = sink.watch(sink.ends().await?, Arc::clone(&stop));
    let (clock, wall) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH)?);
    let outcome = load(options.duration, warm).run(&outbox).await?;
    let usage = producing.usage();
    if outcome.errors > 0 {
        bail!("{} inserts failed", outcome.errors);
    }
    let committed = outcome.commits.len() as u64;
    sink.grown(&before, warm + committed, || producing.check()).await?;
    bench.progress.say(format!("{} records a second, without a database", options.rate));
    let alone = Alone {
        topic: topic.clone(),
        rate: options.rate,
        duration: ALONE_WARM_UP + options.duration.min(ALONE),
        payload_bytes: options.payload_bytes,
        keys: options.clients,
        first: warm + committed,
    };
    let warm_until = Instant::now() + ALONE_WARM_UP;
    let mut sent = alone.run(&outbox.config).await?;
    sink.grown(&before, warm + committed + sent.len() as u64, || producing.check()).await?;
    sent.retain(|sent| sent.at >= warm_until);
    stop.store(true, Ordering::Relaxed);
    let arrivals = tokio::time::timeout(PATIENCE, watching).await???;
    producing.stop().await?;
    let (mut to_arrival, mut to_append) = (Vec::new(), Vec::new());
    for commit in &outcome.commits {
        let Some(Arrival { at, append_millis }) = arrivals.get(&commit.number) else { continue };
        to_arrival.push(signed_millis(*at, commit.at));
        let committed_at = wall.as_secs_f64() * 1e3 + signed_millis(commit.at, clock);
        #[allow(clippy::cast_precision_loss, reason = "milliseconds since 1970 have room in 53 bits")]
        to_append.push(*append_millis as f64 - committed_at);
    }
    let to_ack = sent.iter().map(|sent| signed_millis(sent.acknowledged_at, sent.at));
    let arrived = |sent: &Sent| arrivals.get(&sent.number).map(|arrival| signed_millis(arrival.at, sent.at));
    Ok(LatencyReport {
        bench: "latency",
        postgres: benching::server(&*outbox.connect().await?).await?,
        clients: options.clients,
        warm_up_seconds: options.warm_up.as_secs_f64(),
        offered_per_second: options.rate,
        committed_per_second: outcome.rate(),
        messages: committed,
        lost: committed - to_arrival.len() as u64,
        commit_ms: Spread::of(outcome.waits()),
        commit_to_arrival_ms: Spread::of(to_arrival),
        commit_to_append_ms: Spread::of(to_append),
        send_to_ack_ms: Spread::of(to_ack.collect()),
        send_to_arrival_ms: Spread::of(sent.iter().filter_map(arrived).collect()),
        cpu_percent: usage.map(|usage| usage.cpu_seconds * 100.0 / outcome.seconds),
        peak_memory_bytes: usage.map(|usage| usage.peak_memory_bytes),
    })
}

/// A record may arrive before its client knows that it committed.
fn signed_millis(to: Instant, from: Instant) -> f64 {
    (to.saturating_duration_since(from).as_secs_f64() - from.saturating_duration_since(to).as_secs_f64())
        * 1e3
}
