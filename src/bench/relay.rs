//! How fast the relay drains a backlog: beside the upper bound of the same run, and in scenarios beside itself.

use serde::Serialize;

use super::drain::{Backlog, Drain, Drains, ratio};
use super::fill::{Shape, fill};
use super::scenario::{self, Scenario};
use super::sink::Sink;
use super::usage::Postmaster;
use super::workbench::{Outbox, Workbench};
use crate::pg::benching::{self, Server};
use crate::pg::connect::Connection;

#[derive(Clone, Debug)]
pub struct RelayOptions {
    pub messages: u64,
    pub rounds: u32,
    pub shape: Shape,
    pub scenarios: Vec<Scenario>,
    /// Rows of the transaction that commits late.
    pub late: u64,
    /// Messages of the large backlog.
    pub large: u64,
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
    pub scenarios: Vec<ScenarioReport>,
}

#[derive(Debug, Serialize)]
pub struct ScenarioReport {
    pub scenario: &'static str,
    pub relay: Drains,
    /// What it is held against, where that is not the plain relay.
    pub normal: Option<Drains>,
    /// The median of the rounds' ratios of rates, this to normal.
    pub ratio: f64,
}

impl RelayReport {
    /// What was read back is what was written.
    pub fn is_right(&self) -> bool {
        let scenarios =
            self.scenarios.iter().flat_map(|report| [Some(&report.relay), report.normal.as_ref()]);
        [&self.relay, &self.bound].into_iter().chain(scenarios.flatten()).all(Drains::is_right)
    }
}

/// An outbox with a backlog that is drained again and again.
pub struct Source {
    pub outbox: Outbox,
    pub client: Connection,
    pub topic: String,
    pub sink: Sink,
    pub messages: u64,
    postmaster: Option<Postmaster>,
}

impl Source {
    /// Without a backlog yet; its drains are of so many messages.
    pub async fn new(bench: &mut Workbench, shape: Shape, messages: u64) -> anyhow::Result<Self> {
        let outbox = bench.outbox().await?;
        let client = outbox.connect().await?;
        let topic = bench.topic(shape.partitions).await?;
        let sink = Sink::new(&outbox.config.kafka, &topic, shape.partitions)?;
        let postmaster = Postmaster::of(&client).await?;
        Ok(Self { outbox, client, topic, sink, messages, postmaster })
    }

    pub async fn filled(bench: &mut Workbench, shape: Shape, messages: u64) -> anyhow::Result<Self> {
        let source = Self::new(bench, shape, messages).await?;
        bench.progress.say(format!("filling an outbox with {messages} messages"));
        fill(&source.client, &source.topic, 0..messages, shape).await?;
        benching::settle(&source.client).await?;
        Ok(source)
    }

    pub fn backlog(&self) -> Backlog<'_> {
        Backlog { outbox: &self.outbox, postmaster: self.postmaster, messages: self.messages }
    }

    /// The relay, from an outbox that has published nothing.
    pub async fn drain(&self) -> anyhow::Result<Drain> {
        benching::begin_again(&self.client).await?;
        self.backlog().drain(&["producer"], &self.sink).await
    }
}

/// A broker that has just started compiles what it runs: one drain before the first round is not counted.
pub async fn run(bench: &mut Workbench, options: RelayOptions) -> anyhow::Result<RelayReport> {
    let source = Source::filled(bench, options.shape, options.messages).await?;
    let bound_topic = bench.topic(options.shape.partitions).await?;
    let bound_sink = Sink::new(&source.outbox.config.kafka, &bound_topic, options.shape.partitions)?;
    let held: Vec<Scenario> =
        options.scenarios.iter().copied().filter(|scenario| scenario.is_held()).collect();
    let (mut relay, mut bound) = (Vec::new(), Vec::new());
    let mut beside: Vec<Vec<Drain>> = held.iter().map(|_| Vec::new()).collect();
    bench.progress.say("warming up");
    let to_bound = ["bench", "bound", "--topic", &bound_topic];
    source.backlog().drain(&to_bound, &bound_sink).await?;
    for round in 1..=options.rounds {
        let say = |what: &str| bench.progress.say(format!("round {round} of {}: {what}", options.rounds));
        say("the relay");
        relay.push(source.drain().await?);
        say("the upper bound");
        bound.push(source.backlog().drain(&to_bound, &bound_sink).await?);
        for (scenario, drains) in held.iter().zip(&mut beside) {
            say(scenario.name());
            drains.push(scenario::beside(*scenario, &source).await?);
        }
    }
    let mut scenarios: Vec<ScenarioReport> = held
        .iter()
        .zip(&beside)
        .map(|(scenario, drains)| ScenarioReport {
            scenario: scenario.name(),
            relay: Drains::of(drains, options.messages),
            normal: None,
            ratio: ratio(drains, &relay),
        })
        .collect();
    if options.scenarios.contains(&Scenario::LateCommit) {
        scenarios.push(scenario::late_commit(bench, &options, &relay).await?);
    }
    if options.scenarios.contains(&Scenario::LargeBacklog) {
        scenarios.push(scenario::large_backlog(bench, &options).await?);
    }
    Ok(RelayReport {
        bench: "relay",
        messages: options.messages,
        payload_bytes: options.shape.payload_bytes,
        keys: options.shape.keys,
        partitions: options.shape.partitions,
        rounds: options.rounds,
        postgres: benching::server(&source.client).await?,
        ratio: ratio(&relay, &bound),
        relay: Drains::of(&relay, options.messages),
        bound: Drains::of(&bound, options.messages),
        scenarios,
    })
}
