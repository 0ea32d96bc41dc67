//! `outboxd lanes`.

use clap::{Args, Subcommand};

use super::global::{Global, connect_to_look};
use super::output::{self, maybe};
use crate::failure::Exit;
use crate::pg::inspect::{self, LaneStatus, PENDING_LIMIT};

/// Look at the lanes of the outbox: who publishes them, and what waits in them
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  outboxd lanes list --json")]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Per lane: owner, lease, oldest pending message, how many are pending, scheduled, held, parked, and what stops it
    #[command(after_help = "Example:\n  outboxd lanes list")]
    List {
        /// One array of objects
        #[arg(long)]
        json: bool,
    },
}

impl Options {
    pub async fn run(&self, global: &Global) -> anyhow::Result<Exit> {
        let Command::List { json } = self.command;
        let config = global.load()?.config;
        let client = connect_to_look(&config, "lanes").await?;
        let lanes = inspect::lanes(&client).await?;
        if json {
            output::json(&lanes)?;
        } else {
            let columns = [
                "NAME",
                "STATE",
                "AGENT",
                "LEASE UNTIL",
                "OLDEST PENDING",
                "PENDING",
                "SCHEDULED",
                "HELD",
                "PARKED",
                "STOPPED BY",
            ];
            output::table(columns, lanes.iter().map(row))?;
        }
        Ok(Exit::Done)
    }
}

fn row(lane: &LaneStatus) -> [String; 10] {
    let pending =
        if lane.pending >= PENDING_LIMIT { format!("{PENDING_LIMIT}+") } else { lane.pending.to_string() };
    [
        lane.name.clone(),
        lane.state.clone(),
        maybe(lane.agent.clone()),
        maybe(lane.lease_expires_at.map(output::time)),
        maybe(lane.oldest_pending_seconds.map(output::age)),
        pending,
        lane.scheduled.to_string(),
        lane.held.to_string(),
        lane.parked.to_string(),
        maybe(lane.stopped_reason.clone()),
    ]
}
