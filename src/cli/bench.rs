//! `outboxd bench`.

mod relay;

use clap::{Args, Subcommand};

use super::global::Global;
use crate::bench;
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
