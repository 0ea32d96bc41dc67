//! How fast a group handles what a topic holds, with evidence for every message, beside reading it alone: both from the
//! start of a member of a new group to the last record, and once more without the start of either.

use std::time::{Duration, Instant};

use anyhow::bail;
use serde::Serialize;
use tokio_postgres::Client;

use super::child::Child;
use super::drain::Backlog;
use super::fill::Shape;
use super::reading;
use super::relay::Source;
use super::statistics::median;
use super::workbench::Workbench;
use crate::pg::{PgError, benching};

/// A group that finishes nothing for so long is stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is looked how far the group is.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Rows of one transaction that fills.
const TRANSACTION: i64 = 1_000_000;

#[derive(Clone, Copy, Debug)]
pub struct ConsumeOptions {
    pub messages: u64,
    pub rounds: u32,
    pub shape: Shape,
    /// An idempotency key on every message.
    pub keys: bool,
    /// Rows that are there before, of another group.
    pub before: Before,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Before {
    /// Of evidence, over the day.
    pub handled: u64,
    /// Of finished operations.
    pub operations: u64,
}

impl Before {
    async fn fill(self, client: &Client, say: impl Fn(String)) -> anyhow::Result<()> {
        let (handled, operations) = (i64::try_from(self.handled)?, i64::try_from(self.operations)?);
        if handled == 0 && operations == 0 {
            return Ok(());
        }
        benching::make_day(client).await?;
        in_parts(handled, "rows of evidence", &say, async |first, last| {
            benching::fill_evidence(client, first, last, handled).await
        })
        .await?;
        in_parts(operations, "operations", &say, async |first, last| {
            benching::fill_operations(client, first, last).await
        })
        .await?;
        say("settling them".into());
        Ok(benching::settle_evidence(client).await?)
    }
}

/// The first and the last number of each transaction.
async fn in_parts(
    all: i64,
    what: &str,
    say: impl Fn(String),
    fill: impl AsyncFn(i64, i64) -> Result<(), PgError>,
) -> Result<(), PgError> {
    let mut first = 1;
    while first <= all {
        say(format!("{} of {all} {what} are there", first - 1));
        let last = all.min(first + TRANSACTION - 1);
        fill(first, last).await?;
        first = last + 1;
    }
    Ok(())
}

#[derive(Debug, Serialize)]
pub struct ConsumeReport {
    pub bench: &'static str,
    pub messages: u64,
    pub rounds: u32,
    pub idempotency_keys: bool,
    pub before: Before,
    /// From the start of a process or a member to the last message.
    pub whole: Beside,
    /// The same, beside a client with librdkafka's defaults.
    pub beside_defaults: Beside,
    /// Between the first and the last tenth, the group's by the database's clock.
    pub steady: Beside,
    /// Of the database, each of several statements.
    pub transactions_per_message: f64,
    pub cpu_seconds_per_million: Option<f64>,
    pub peak_memory_bytes: Option<u64>,
    pub lost: u64,
}

/// Medians; the ratio is of what was measured one after the other.
#[derive(Debug, Serialize)]
pub struct Beside {
    pub reading_per_second: f64,
    pub handled_per_second: f64,
    pub ratio: f64,
}

impl Beside {
    /// A reading and a handling a round.
    fn of(rounds: &[(f64, f64)]) -> Self {
        let median_of = |each: fn(&(f64, f64)) -> f64| median(&rounds.iter().map(each).collect::<Vec<f64>>());
        Self {
            reading_per_second: median_of(|(reading, _)| *reading),
            handled_per_second: median_of(|(_, handled)| *handled),
            ratio: median_of(|(reading, handled)| handled / reading),
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "counts of a benchmark")]
pub async fn run(bench: &mut Workbench, options: ConsumeOptions) -> anyhow::Result<ConsumeReport> {
    let messages = options.messages;
    let source = Source::filled(bench, options.shape, messages).await?;
    if options.keys {
        benching::give_keys(&source.client).await?;
        benching::settle(&source.client).await?;
    }
    options.before.fill(&source.client, |what| bench.progress.say(what)).await?;
    bench.progress.say("publishing it");
    let before = source.sink.ends().await?;
    let Backlog { outbox, .. } = source.backlog();
    let mut child = Child::start(&["producer"], &outbox.file, &outbox.log)?;
    source.sink.grown(&before, messages, || child.check()).await?;
    child.stop().await?;
    let ends = source.sink.ends().await?;
    let (mut whole, mut beside_defaults, mut steady, mut lost) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let kafka = &source.outbox.config.kafka;
    let defaults = reading::with_defaults(kafka);
    let (mut cpu, mut peak_memory_bytes, mut transactions) = (Vec::new(), None, Vec::new());
    for round in 1..=options.rounds {
        let say = |what: &str| bench.progress.say(format!("round {round} of {}: {what}", options.rounds));
        say("reading alone");
        let plain = reading::alone(&defaults, &source.topic, &before, &ends).await?;
        let reading = reading::alone(kafka, &source.topic, &before, &ends).await?;
        say("a group");
        let group = format!("bench-{round}");
        let file = source.outbox.with_group(&group, &source.topic)?;
        let transactions_before = benching::transactions(&source.client).await?;
        let began = Instant::now();
        let mut child =
            Child::start(&["consumer", "--group", &group, "--log", "warn"], &file, &source.outbox.log)?;
        let looks = wait_until_finished(&source, &group, messages, &mut child).await?;
        let per_second = messages as f64 / began.elapsed().as_secs_f64();
        whole.push((reading.per_second, per_second));
        beside_defaults.push((plain.per_second, per_second));
        if let Some(usage) = child.usage() {
            cpu.push(usage.cpu_seconds * 1e6 / messages as f64);
            peak_memory_bytes = peak_memory_bytes.max(Some(usage.peak_memory_bytes));
        }
        child.stop().await?;
        // Each look at how far the group is was one of ours.
        let ours = looks + 1;
        let seen = benching::transactions(&source.client).await? - transactions_before - ours;
        transactions.push(seen.max(0) as f64 / messages as f64);
        let handled = benching::handled(&source.client, &group).await?;
        lost += messages.saturating_sub(u64::try_from(handled.messages)?);
        if handled.seconds <= 0.0 {
            bail!("{messages} messages are completed too fast to be measured: take more, with --messages");
        }
        steady.push((reading.steady_per_second, handled.measured as f64 / handled.seconds));
    }
    Ok(ConsumeReport {
        bench: "consume",
        messages,
        rounds: options.rounds,
        idempotency_keys: options.keys,
        before: options.before,
        whole: Beside::of(&whole),
        beside_defaults: Beside::of(&beside_defaults),
        steady: Beside::of(&steady),
        transactions_per_message: median(&transactions),
        cpu_seconds_per_million: (!cpu.is_empty()).then(|| median(&cpu)),
        peak_memory_bytes,
        lost,
    })
}

/// Says how often it looked.
async fn wait_until_finished(
    source: &Source,
    group: &str,
    messages: u64,
    child: &mut Child,
) -> anyhow::Result<i64> {
    let (mut last, mut moved_at, mut looks) = (0, Instant::now(), 0);
    while last < messages {
        child.check()?;
        looks += 1;
        let finished = u64::try_from(benching::finished(&source.client, group).await?)?;
        if finished > last {
            (last, moved_at) = (finished, Instant::now());
        } else if moved_at.elapsed() > PATIENCE {
            bail!("after {last} of {messages} messages the group finishes nothing any more");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(looks)
}
