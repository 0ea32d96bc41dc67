//! `outboxd bench`.

mod consume;
mod idle;
mod insert;
mod latency;
mod relay;
mod takeover;

use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::global::Global;
use super::output::{self, OutputError};
use crate::bench::{self, Workbench};
use crate::failure::Exit;

/// Measure this machine, database and broker, beside their own upper bound
///
/// It works in a database and topics of its own on the configured server and cluster, never in your outbox, and removes
/// both at the end. The user of the configuration needs the right to create databases. Everything that was published is
/// read back: exit 1 if a message was lost or out of order.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  outboxd bench relay\n  outboxd bench relay --messages 1000000 --json")]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Relay(relay::Options),
    Latency(latency::Options),
    Insert(insert::Options),
    Idle(idle::Options),
    Consume(consume::Options),
    Takeover(takeover::Options),
    /// Sends what an outbox holds without any bookkeeping, and stays
    #[command(hide = true, after_help = "Example:\n  outboxd bench bound --topic measured")]
    Bound {
        #[arg(long)]
        topic: String,
    },
}

impl Options {
    pub async fn run(&self, global: &Global) -> anyhow::Result<Exit> {
        match &self.command {
            Command::Relay(options) => options.run(global).await,
            Command::Latency(options) => options.run(global).await,
            Command::Insert(options) => options.run(global).await,
            Command::Idle(options) => options.run(global).await,
            Command::Consume(options) => options.run(global).await,
            Command::Takeover(options) => options.run(global).await,
            Command::Bound { topic } => {
                bench::bound::run(&global.load()?.config, topic).await?;
                Ok(Exit::Done)
            }
        }
    }
}

/// Of every measurement.
#[derive(Args, Debug)]
struct Common {
    /// One object instead of a table
    #[arg(long)]
    json: bool,
    /// Leave the database and the topics, and say what they are called
    #[arg(long)]
    keep: bool,
}

impl Common {
    /// Measures, and tells what came of it, for people or as one object.
    async fn run<R: Serialize>(
        &self,
        global: &Global,
        measure: impl AsyncFnOnce(&mut Workbench) -> anyhow::Result<R>,
        show: impl FnOnce(&R) -> Result<(), OutputError>,
        is_right: impl FnOnce(&R) -> bool,
    ) -> anyhow::Result<Exit> {
        // Boxed: a measurement's state is large, and every future around it would carry it.
        let report = Box::pin(bench::on_a_workbench(global.load()?.config, self.keep, measure)).await?;
        if self.json {
            output::json(&report)?;
        } else {
            show(&report)?;
        }
        Ok(if is_right(&report) { Exit::Done } else { Exit::Failed })
    }
}

/// Applications at work.
#[derive(Args, Debug)]
struct Load<const SECONDS: u32> {
    /// How long, in seconds
    #[arg(long, default_value_t = SECONDS, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    #[command(flatten)]
    applications: Applications,
}

/// Who inserts what.
#[derive(Args, Debug)]
struct Applications {
    /// Connections that insert
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    clients: u64,
    /// The size of a payload
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(16..=900_000))]
    payload_bytes: u32,
    /// Of the topic
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(i32).range(1..=1_000))]
    partitions: i32,
}

impl<const SECONDS: u32> Load<SECONDS> {
    fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds.into())
    }
}

fn millis(millis: f64) -> String {
    format!("{millis:.2}")
}

/// Of one core.
fn percent(percent: f64) -> String {
    format!("{percent:.1} % of a core")
}

/// Memory, in millions of bytes.
#[allow(clippy::cast_precision_loss, reason = "for people")]
fn room(bytes: u64) -> String {
    format!("{:.0} MB", bytes as f64 / 1e6)
}
