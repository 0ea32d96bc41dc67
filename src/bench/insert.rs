//! What outboxd costs the application: single-row inserts with a relay at work, and into a table like it with none.

use std::time::Duration;

use serde::Serialize;

use super::load::{Load, Outcome};
use super::producing::Producing;
use super::sink::Sink;
use super::statistics::{Spread, median};
use super::workbench::{Outbox, Workbench};
use crate::pg::benching::{self, Server, Table};

#[derive(Clone, Copy, Debug)]
pub struct InsertOptions {
    pub clients: u64,
    pub duration: Duration,
    pub rounds: u32,
    /// Of the runs at a given rate, in transactions a second.
    pub rate: f64,
    pub payload_bytes: usize,
    pub partitions: i32,
}

#[derive(Debug, Serialize)]
pub struct InsertReport {
    pub bench: &'static str,
    pub postgres: Server,
    pub clients: u64,
    pub rounds: u32,
    /// As fast as the clients can.
    pub plain: Inserts,
    pub outbox: Inserts,
    /// The median of the rounds' ratios, with the relay to plain.
    pub ratio: f64,
    pub offered_per_second: f64,
    pub plain_offered: Inserts,
    pub outbox_offered: Inserts,
    pub ratio_offered: f64,
    /// Of what the clients committed with the relay at work.
    pub published: u64,
    pub lost: u64,
    pub out_of_order: u64,
    pub repeats: u64,
}

impl InsertReport {
    pub fn is_right(&self) -> bool {
        self.lost == 0 && self.out_of_order == 0
    }
}

/// Medians over the rounds; counts over all of them.
#[derive(Debug, Serialize)]
pub struct Inserts {
    pub transactions_per_second: f64,
    pub commit_ms: Spread,
    pub errors: u64,
    /// Looks, 50 a second, at which some session waited for a lock.
    pub lock_waits: i64,
}

impl Inserts {
    fn of(outcomes: &[Outcome]) -> Self {
        Self {
            transactions_per_second: median(&rates(outcomes)),
            commit_ms: Spread::of(outcomes.iter().flat_map(Outcome::waits).collect()),
            errors: outcomes.iter().map(|outcome| outcome.errors).sum(),
            lock_waits: outcomes.iter().map(|outcome| outcome.lock_waits).sum(),
        }
    }
}

fn rates(outcomes: &[Outcome]) -> Vec<f64> {
    outcomes.iter().map(Outcome::rate).collect()
}

fn ratio(measured: &[Outcome], normal: &[Outcome]) -> f64 {
    let pairs = rates(measured).into_iter().zip(rates(normal));
    median(&pairs.map(|(measured, normal)| measured / normal).collect::<Vec<_>>())
}

pub async fn run(bench: &mut Workbench, options: InsertOptions) -> anyhow::Result<InsertReport> {
    let outbox = bench.outbox().await?;
    let client = outbox.connect().await?;
    benching::make_plain_table(&client).await?;
    let topic = bench.topic(options.partitions).await?;
    let sink = Sink::new(&outbox.config.kafka, &topic, options.partitions)?;
    let before = sink.ends().await?;
    let mut inserting = Inserting { outbox: &outbox, topic, options, next: 0, committed: 0 };
    let [mut plain, mut with, mut plain_offered, mut with_offered] = [const { Vec::new() }; 4];
    for round in 1..=options.rounds {
        let say = |what: &str| bench.progress.say(format!("round {round} of {}: {what}", options.rounds));
        say("a table like the outbox, and no relay");
        plain.push(inserting.run(Table::Plain, None).await?);
        plain_offered.push(inserting.run(Table::Plain, Some(options.rate)).await?);
        say("the outbox, and a relay at work");
        let mut producing = Producing::start(&outbox).await?;
        with.push(inserting.run(Table::Outbox, None).await?);
        sink.grown(&before, inserting.committed, || producing.check()).await?;
        with_offered.push(inserting.run(Table::Outbox, Some(options.rate)).await?);
        sink.grown(&before, inserting.committed, || producing.check()).await?;
        producing.stop().await?;
    }
    let found = sink.read(&before, &sink.ends().await?, inserting.next).await?;
    Ok(InsertReport {
        bench: "insert",
        postgres: benching::server(&client).await?,
        clients: options.clients,
        rounds: options.rounds,
        ratio: ratio(&with, &plain),
        ratio_offered: ratio(&with_offered, &plain_offered),
        plain: Inserts::of(&plain),
        outbox: Inserts::of(&with),
        offered_per_second: options.rate,
        plain_offered: Inserts::of(&plain_offered),
        outbox_offered: Inserts::of(&with_offered),
        published: found.records - found.repeats,
        lost: found.lost.saturating_sub(inserting.next - inserting.committed),
        out_of_order: found.out_of_order,
        repeats: found.repeats,
    })
}

struct Inserting<'a> {
    outbox: &'a Outbox,
    topic: String,
    options: InsertOptions,
    /// The number of the next message for the outbox.
    next: u64,
    /// How many of the numbers before it are known to be committed.
    committed: u64,
}

impl Inserting<'_> {
    async fn run(&mut self, table: Table, rate: Option<f64>) -> anyhow::Result<Outcome> {
        let InsertOptions { clients, duration, payload_bytes, .. } = self.options;
        let (topic, first) = (self.topic.clone(), self.next);
        let load = Load { table, topic, clients, rate, duration, payload_bytes, first };
        let outcome = load.run(self.outbox).await?;
        if table == Table::Outbox {
            let committed = outcome.commits.len() as u64;
            // A number whose insert failed is used up.
            self.next += committed + outcome.errors;
            self.committed += committed;
        }
        Ok(outcome)
    }
}
