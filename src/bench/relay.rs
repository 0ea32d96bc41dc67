//! How fast a backlog drains, beside the upper bound of the same run.

use std::time::Instant;

use anyhow::bail;
use serde::Serialize;

use super::child::Child;
use super::fill::{Shape, fill};
use super::sink::{Found, Sink};
use super::statistics::{median, median_of};
use super::usage::{Postmaster, Usage};
use super::workbench::{Outbox, Workbench};
use crate::pg::benching::{self, Server};

#[derive(Clone, Copy, Debug)]
pub struct RelayOptions {
    pub messages: u64,
    pub rounds: u32,
    pub partitions: i32,
    pub shape: Shape,
}

/// One measured way to drain a backlog: medians over the rounds.
#[derive(Debug, Serialize)]
pub struct Drains {
    /// Between the first and the last tenth, by the broker's clock.
    pub messages_per_second: f64,
    /// Of payloads.
    pub bytes_per_second: f64,
    /// From its start to the last record.
    pub seconds: f64,
    pub cpu_seconds_per_million: Option<f64>,
    pub postgres_cpu_seconds_per_million: Option<f64>,
    pub peak_memory_bytes: Option<u64>,
    pub rates: Vec<f64>,
    pub records: u64,
    pub lost: u64,
    pub repeats: u64,
    pub out_of_order: u64,
}

#[derive(Debug, Serialize)]
pub struct RelayReport {
    pub bench: &'static str,
    pub messages: u64,
    pub payload_bytes: usize,
    pub keys: u64,
    pub partitions: i32,
    pub rounds: u32,
    pub postgres: Server,
    pub relay: Drains,
    pub bound: Drains,
    /// The median of the rounds' ratios of rates, relay to bound.
    pub ratio: f64,
}

impl RelayReport {
    /// What was read back is what was written.
    pub fn is_right(&self) -> bool {
        [&self.relay, &self.bound].iter().all(|drains| drains.lost == 0 && drains.out_of_order == 0)
    }
}

/// One drain.
struct Drain {
    rate: f64,
    seconds: f64,
    usage: Option<Usage>,
    postgres_cpu: Option<f64>,
    found: Found,
}

/// A backlog, and where it goes.
struct Backlog<'a> {
    outbox: &'a Outbox,
    postmaster: Option<Postmaster>,
    messages: u64,
}

pub async fn run(bench: &mut Workbench, options: RelayOptions) -> anyhow::Result<RelayReport> {
    let outbox = bench.outbox().await?;
    let client = outbox.connect().await?;
    let server = benching::server(&client).await?;
    let (topic, bound_topic) =
        (bench.topic(options.partitions).await?, bench.topic(options.partitions).await?);
    bench.progress.say(format!("filling the outbox with {} messages", options.messages));
    fill(&client, &topic, 0..options.messages, options.shape).await?;
    benching::settle(&client).await?;
    let sink = Sink::new(&outbox.config.kafka, &topic, options.partitions)?;
    let bound_sink = Sink::new(&outbox.config.kafka, &bound_topic, options.partitions)?;
    let backlog =
        Backlog { outbox: &outbox, postmaster: Postmaster::of(&client).await?, messages: options.messages };
    let (mut relay, mut bound) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        bench.progress.say(format!("round {round} of {}: the relay", options.rounds));
        benching::begin_again(&client).await?;
        relay.push(backlog.drain(&["producer"], &sink).await?);
        bench.progress.say(format!("round {round} of {}: the upper bound", options.rounds));
        bound.push(backlog.drain(&["bench", "bound", "--topic", &bound_topic], &bound_sink).await?);
    }
    let ratios: Vec<f64> = relay.iter().zip(&bound).map(|(relay, bound)| relay.rate / bound.rate).collect();
    Ok(RelayReport {
        bench: "relay",
        messages: options.messages,
        payload_bytes: options.shape.payload_bytes,
        keys: options.shape.keys,
        partitions: options.partitions,
        rounds: options.rounds,
        postgres: server,
        relay: summary(&relay, options.messages),
        bound: summary(&bound, options.messages),
        ratio: median(&ratios),
    })
}

impl Backlog<'_> {
    /// Starts a process that publishes all of it, and looks at what it did.
    async fn drain(&self, arguments: &[&str], sink: &Sink) -> anyhow::Result<Drain> {
        let before = sink.ends().await?;
        let cpu_before = self.postmaster.and_then(Postmaster::cpu_seconds);
        let started = Instant::now();
        let mut child = Child::start(arguments, &self.outbox.file, &self.outbox.log)?;
        sink.grown(&before, self.messages, || child.check()).await?;
        let seconds = started.elapsed().as_secs_f64();
        let usage = child.usage();
        let cpu_after = self.postmaster.and_then(Postmaster::cpu_seconds);
        child.stop().await?;
        let found = sink.read(&before, &sink.ends().await?, 0, self.messages).await?;
        let Some(rate) = found.rate() else {
            bail!("{} messages are too few to measure: they came within a millisecond", self.messages)
        };
        let postgres_cpu = cpu_before.zip(cpu_after).map(|(before, after)| after - before);
        Ok(Drain { rate, seconds, usage, postgres_cpu, found })
    }
}

#[allow(clippy::cast_precision_loss, reason = "counts of a benchmark")]
fn summary(drains: &[Drain], messages: u64) -> Drains {
    let rates: Vec<f64> = drains.iter().map(|drain| drain.rate).collect();
    let millions = messages as f64 / 1e6;
    let rate = median(&rates);
    let sum = |count: fn(&Found) -> u64| drains.iter().map(|drain| count(&drain.found)).sum::<u64>();
    let bytes_per_message = sum(|found| found.bytes) as f64 / sum(|found| found.records).max(1) as f64;
    Drains {
        messages_per_second: rate,
        bytes_per_second: rate * bytes_per_message,
        seconds: median(&drains.iter().map(|drain| drain.seconds).collect::<Vec<_>>()),
        cpu_seconds_per_million: median_of(
            drains.iter().map(|drain| drain.usage.map(|usage| usage.cpu_seconds / millions)),
        ),
        postgres_cpu_seconds_per_million: median_of(
            drains.iter().map(|drain| drain.postgres_cpu.map(|seconds| seconds / millions)),
        ),
        peak_memory_bytes: drains
            .iter()
            .filter_map(|drain| drain.usage)
            .map(|usage| usage.peak_memory_bytes)
            .max(),
        rates,
        records: sum(|found| found.records),
        lost: sum(|found| found.lost),
        repeats: sum(|found| found.repeats),
        out_of_order: sum(|found| found.out_of_order),
    }
}
