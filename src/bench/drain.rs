//! Draining a backlog: one measured process, from its start to the last record, and the medians of several.

use std::time::Instant;

use anyhow::Context;
use serde::Serialize;

use super::child::Child;
use super::sink::{Found, Sink};
use super::statistics::{median, median_of};
use super::usage::Postmaster;
use super::workbench::Outbox;

/// What is there to be published.
pub struct Backlog<'a> {
    pub outbox: &'a Outbox,
    pub postmaster: Option<Postmaster>,
    pub messages: u64,
}

/// One drain.
pub struct Drain {
    /// Messages a second.
    pub rate: f64,
    seconds: f64,
    cpu_seconds: Option<f64>,
    peak_memory_bytes: Option<u64>,
    postgres_cpu_seconds: Option<f64>,
    found: Found,
}

/// One way to drain a backlog: medians over the rounds; counts over all of them.
#[derive(Debug, Serialize)]
pub struct Drains {
    pub messages: u64,
    /// Between the first and the last tenth, by the broker's clock.
    pub messages_per_second: f64,
    /// Of payloads.
    pub bytes_per_second: f64,
    /// From the start of the process, or the commit, to the last record.
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

impl Backlog<'_> {
    /// Starts a process that publishes all of it, and looks at what it did.
    pub async fn drain(&self, arguments: &[&str], sink: &Sink) -> anyhow::Result<Drain> {
        self.measure(sink, async || Child::start(arguments, &self.outbox.file, &self.outbox.log)).await
    }

    /// The same from the moment at which the backlog is there for a process that may have worked before.
    pub async fn measure(
        &self,
        sink: &Sink,
        begin: impl AsyncFnOnce() -> anyhow::Result<Child>,
    ) -> anyhow::Result<Drain> {
        let before = sink.ends().await?;
        let postgres_before = self.postmaster.and_then(Postmaster::cpu_seconds);
        let started = Instant::now();
        let mut child = begin().await?;
        sink.grown(&before, self.messages, || child.check()).await?;
        let seconds = started.elapsed().as_secs_f64();
        let usage = child.usage();
        let postgres_after = self.postmaster.and_then(Postmaster::cpu_seconds);
        child.stop().await?;
        let found = sink.read(&before, &sink.ends().await?, self.messages).await?;
        let rate = found.rate().with_context(|| {
            format!("{} messages are too few to measure: they came within a millisecond", self.messages)
        })?;
        Ok(Drain {
            rate,
            seconds,
            cpu_seconds: usage.map(|usage| usage.cpu_seconds),
            peak_memory_bytes: usage.map(|usage| usage.peak_memory_bytes),
            postgres_cpu_seconds: postgres_before.zip(postgres_after).map(|(before, after)| after - before),
            found,
        })
    }
}

impl Drains {
    #[allow(clippy::cast_precision_loss, reason = "counts of a benchmark")]
    pub fn of(drains: &[Drain], messages: u64) -> Self {
        let rates: Vec<f64> = drains.iter().map(|drain| drain.rate).collect();
        let per_million = |seconds: Option<f64>| seconds.map(|seconds| seconds * 1e6 / messages as f64);
        let sum = |count: fn(&Found) -> u64| drains.iter().map(|drain| count(&drain.found)).sum::<u64>();
        let rate = median(&rates);
        let (records, bytes) = (sum(|found| found.records), sum(|found| found.bytes));
        Self {
            messages,
            messages_per_second: rate,
            bytes_per_second: rate * bytes as f64 / records.max(1) as f64,
            seconds: median(&drains.iter().map(|drain| drain.seconds).collect::<Vec<_>>()),
            cpu_seconds_per_million: median_of(drains.iter().map(|drain| per_million(drain.cpu_seconds))),
            postgres_cpu_seconds_per_million: median_of(
                drains.iter().map(|drain| per_million(drain.postgres_cpu_seconds)),
            ),
            peak_memory_bytes: drains.iter().filter_map(|drain| drain.peak_memory_bytes).max(),
            rates,
            records,
            lost: sum(|found| found.lost),
            repeats: sum(|found| found.repeats),
            out_of_order: sum(|found| found.out_of_order),
        }
    }

    /// What was read back is what was written.
    pub fn is_right(&self) -> bool {
        self.lost == 0 && self.out_of_order == 0
    }
}

/// The median of the rounds' ratios of rates.
pub fn ratio(measured: &[Drain], normal: &[Drain]) -> f64 {
    let ratios: Vec<f64> =
        measured.iter().zip(normal).map(|(measured, normal)| measured.rate / normal.rate).collect();
    median(&ratios)
}
