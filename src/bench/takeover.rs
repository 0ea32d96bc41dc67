//! How long messages wait when the relay that publishes them leaves, or is gone, and another one is there.
//!
//! Two relays, messages at a steady rate. What is told is the longest that one of them took from its commit to a consumer,
//! while the owner of their lane was asked to end, and while it was killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;

use super::load::{Commit, Load};
use super::producing::Producing;
use super::sink::Sink;
use super::workbench::{Outbox, Workbench};
use crate::domain::priority::Priority;
use crate::pg::benching::{self, Table};

/// Messages flow for so long before the owner leaves.
const BEFORE: Duration = Duration::from_secs(2);

/// And for so long after another must have the lane.
const AFTER: Duration = Duration::from_secs(3);

/// For the lanes to be shared by two, and for the last record.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
pub struct TakeoverOptions {
    pub rounds: u32,
    pub rate: f64,
    pub clients: u64,
    pub payload_bytes: usize,
    pub partitions: i32,
}

#[derive(Debug, Serialize)]
pub struct TakeoverReport {
    pub bench: &'static str,
    pub rounds: u32,
    pub offered_per_second: f64,
    pub lease_seconds: f64,
    /// The longest wait of each round in which the owner was asked to end.
    pub hand_over_ms: Vec<f64>,
    /// Of each in which it was killed.
    pub takeover_ms: Vec<f64>,
    pub messages: u64,
    pub lost: u64,
    pub out_of_order: u64,
    pub repeats: u64,
}

impl TakeoverReport {
    pub fn is_right(&self) -> bool {
        self.lost == 0 && self.out_of_order == 0
    }
}

/// How the owner leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Asked,
    Killed,
}

pub async fn run(bench: &mut Workbench, options: TakeoverOptions) -> anyhow::Result<TakeoverReport> {
    let outbox = bench.outbox().await?;
    let lease = outbox.config.producer.lease;
    let topic = bench.topic(options.partitions).await?;
    let sink = Sink::new(&outbox.config.kafka, &topic, options.partitions)?;
    let before = sink.ends().await?;
    let mut relays = vec![Producing::start(&outbox).await?, Producing::start(&outbox).await?];
    let stop = Arc::new(AtomicBool::new(false));
    let watching = sink.watch(before.clone(), Arc::clone(&stop));
    let mut rounds: Vec<(End, Vec<Commit>)> = Vec::new();
    let mut next = 0;
    for round in 1..=options.rounds {
        for end in [End::Asked, End::Killed] {
            bench.progress.say(format!("round {round} of {}: the owner is {end:?}", options.rounds));
            let owner = owner_of_two(&outbox, &mut relays).await?;
            let duration = BEFORE + AFTER + if end == End::Killed { lease } else { Duration::ZERO };
            let load = Load {
                table: Table::Outbox,
                topic: topic.clone(),
                clients: options.clients,
                rate: Some(options.rate),
                duration,
                payload_bytes: options.payload_bytes,
                first: next,
            };
            let leaving = async {
                tokio::time::sleep(BEFORE).await;
                match end {
                    End::Asked => owner.stop().await,
                    End::Killed => owner.kill().await,
                }
            };
            let (outcome, left) = tokio::join!(load.run(&outbox), leaving);
            left?;
            let outcome = outcome?;
            if outcome.errors > 0 {
                bail!("{} inserts failed", outcome.errors);
            }
            next += outcome.commits.len() as u64;
            sink.grown(&before, next, || relays.iter_mut().try_for_each(Producing::check)).await?;
            rounds.push((end, outcome.commits));
            relays.push(Producing::start(&outbox).await?);
        }
    }
    stop.store(true, Ordering::Relaxed);
    let arrivals = tokio::time::timeout(PATIENCE, watching).await???;
    for relay in relays {
        relay.stop().await?;
    }
    let longest = |commits: &[Commit]| {
        let waits = commits.iter().filter_map(|commit| {
            let arrival = arrivals.get(&commit.number)?;
            Some(arrival.at.saturating_duration_since(commit.at))
        });
        waits.max().unwrap_or_default().as_secs_f64() * 1e3
    };
    let of = |which: End| {
        rounds.iter().filter(|(end, _)| *end == which).map(|(_, commits)| longest(commits)).collect()
    };
    let found = sink.read(&before, &sink.ends().await?, next).await?;
    Ok(TakeoverReport {
        bench: "takeover",
        rounds: options.rounds,
        offered_per_second: options.rate,
        lease_seconds: lease.as_secs_f64(),
        hand_over_ms: of(End::Asked),
        takeover_ms: of(End::Killed),
        messages: next,
        lost: found.lost,
        out_of_order: found.out_of_order,
        repeats: found.repeats,
    })
}

/// Waits until both have lanes, and takes out the one that has the lane of our messages.
async fn owner_of_two(outbox: &Outbox, relays: &mut Vec<Producing>) -> anyhow::Result<Producing> {
    let client = outbox.connect().await?;
    let started = Instant::now();
    loop {
        relays.iter_mut().try_for_each(Producing::check)?;
        let owners = benching::lane_owners(&client).await?;
        let pids: Vec<i32> = relays.iter().map(Producing::pid).collect();
        let all_share = pids.iter().all(|pid| owners.iter().any(|(_, owner)| owner == pid));
        let of_ours = owners.iter().find(|(priority, _)| *priority == Priority::Normal.number());
        if let Some((_, owner)) = of_ours.filter(|_| all_share && owners.len() == Priority::ALL.len()) {
            let place = pids.iter().position(|pid| pid == owner);
            return Ok(relays.remove(place.context("a relay that is not ours has the lane")?));
        }
        if started.elapsed() > PATIENCE {
            bail!("the lanes are not shared after {}", humantime::format_duration(PATIENCE));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
