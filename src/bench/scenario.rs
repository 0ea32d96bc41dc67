//! What must not slow the relay down, each held against the relay alone in the same run.

use super::Workbench;
use super::child::Child;
use super::drain::{Drain, Drains, ratio};
use super::fill::{fill, messages};
use super::relay::{RelayOptions, ScenarioReport, Source};
use super::sink::Sink;
use crate::pg::benching;

/// The backlog that a large one is held against.
const SMALL: u64 = 100_000;

/// What is published before the late transaction commits.
const EARLY: u64 = 10_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// A transaction that has inserted a message stays open.
    HeldTransaction,
    /// A snapshot stays open, so that nothing can be vacuumed.
    HeldSnapshot,
    /// A bulk transaction commits after what was inserted behind it is published.
    LateCommit,
    /// A backlog of millions.
    LargeBacklog,
}

impl Scenario {
    pub const ALL: [Self; 4] =
        [Self::HeldTransaction, Self::HeldSnapshot, Self::LateCommit, Self::LargeBacklog];

    pub fn name(self) -> &'static str {
        match self {
            Self::HeldTransaction => "held-transaction",
            Self::HeldSnapshot => "held-snapshot",
            Self::LateCommit => "late-commit",
            Self::LargeBacklog => "large-backlog",
        }
    }

    /// Something is held open beside the plain relay, on the same backlog.
    pub fn is_held(self) -> bool {
        matches!(self, Self::HeldTransaction | Self::HeldSnapshot)
    }
}

/// Drains while another session holds something open.
pub async fn beside(scenario: Scenario, source: &Source) -> anyhow::Result<Drain> {
    let holder = source.outbox.connect().await?;
    match scenario {
        Scenario::HeldTransaction => benching::hold_transaction(&holder, &source.topic).await?,
        _ => benching::hold_snapshot(&holder).await?,
    }
    let drain = source.drain().await?;
    holder.batch_execute("rollback").await?;
    Ok(drain)
}

/// A bulk transaction takes its places in the line, others pass and are published, then it commits.
pub async fn late_commit(
    bench: &mut Workbench,
    options: &RelayOptions,
    normal: &[Drain],
) -> anyhow::Result<ScenarioReport> {
    let source = Source::new(bench, options.shape, options.late).await?;
    let early_topic = bench.topic(options.shape.partitions).await?;
    let early_sink = Sink::new(&source.outbox.config.kafka, &early_topic, options.shape.partitions)?;
    let late = source.outbox.connect().await?;
    let mut drains = Vec::new();
    for round in 1..=options.rounds {
        bench.progress.say(format!("round {round} of {}: a late commit", options.rounds));
        late.batch_execute("begin").await?;
        let mut noise = fastrand::Rng::with_seed(u64::from(round));
        benching::fill(&late, &source.topic, messages(0..options.late, options.shape, &mut noise)).await?;
        let before = early_sink.ends().await?;
        fill(&source.client, &early_topic, 0..EARLY, options.shape).await?;
        let mut child = Child::start(&["producer"], &source.outbox.file, &source.outbox.log)?;
        early_sink.grown(&before, EARLY, || child.check()).await?;
        child.begin_counting();
        let commit = async || {
            late.batch_execute("commit").await?;
            Ok(child)
        };
        drains.push(source.backlog().measure(&source.sink, commit).await?);
    }
    Ok(ScenarioReport {
        scenario: Scenario::LateCommit.name(),
        relay: Drains::of(&drains, options.late),
        normal: None,
        ratio: ratio(&drains, normal),
    })
}

/// A backlog of millions, beside one of a hundred thousand.
pub async fn large_backlog(bench: &mut Workbench, options: &RelayOptions) -> anyhow::Result<ScenarioReport> {
    let small = Source::filled(bench, options.shape, SMALL).await?;
    let large = Source::filled(bench, options.shape, options.large).await?;
    let (mut normal, mut drains) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        bench.progress.say(format!("round {round} of {}: a large backlog", options.rounds));
        normal.push(small.drain().await?);
        drains.push(large.drain().await?);
    }
    Ok(ScenarioReport {
        scenario: Scenario::LargeBacklog.name(),
        relay: Drains::of(&drains, options.large),
        ratio: ratio(&drains, &normal),
        normal: Some(Drains::of(&normal, SMALL)),
    })
}
