//! `outboxd groups`.

mod reset;

use std::time::Duration;

use clap::{Args, Subcommand};

use super::global::{Global, connect_to_look};
use super::output;
use crate::failure::{Exit, Failure, Kind};
use crate::pg::connect::Connection;
use crate::pg::groups::{self, Group};
use reset::Reset;

/// Look at the groups that this database knows, move one, forget one
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  outboxd groups list")]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(List),
    Forget(Forget),
    Reset(Reset),
}

/// Every group that ever started here: its topics, and its agents that are alive
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  outboxd groups list --json")]
struct List {
    /// One array of objects
    #[arg(long)]
    json: bool,
}

/// Forget a group that will not come back, so that retention does not wait for it
///
/// Removes the group and its positions. Its evidence stays until its own retention ends: should the group come back,
/// it begins anew, and what it has handled is not handled again.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  outboxd groups forget old-reports --yes")]
struct Forget {
    group: String,
    /// Do it; without this it is only said what would be forgotten
    #[arg(long)]
    yes: bool,
}

impl Options {
    pub async fn run(&self, global: &Global) -> anyhow::Result<Exit> {
        match &self.command {
            Command::List(options) => options.run(global).await?,
            Command::Forget(options) => options.run(global).await?,
            Command::Reset(options) => options.run(global).await?,
        }
        Ok(Exit::Done)
    }
}

impl List {
    async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let config = global.load()?.config;
        let client = connect_to_look(&config, "groups").await?;
        let groups = groups::list(&client, config.agent.inactive_after).await?;
        if self.json {
            output::json(&groups)?;
        } else {
            let columns = ["NAME", "TOPICS", "KAFKA GROUP", "POSITIONS", "AGENTS"];
            output::table(columns, groups.iter().map(row))?;
        }
        Ok(())
    }
}

impl Forget {
    async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let config = global.load()?.config;
        let client = connect_to_look(&config, "groups").await?;
        let inactive_after = config.agent.inactive_after;
        let found = find(&client, &self.group, inactive_after).await?;
        if !found.agents.is_empty() {
            return Err(alive(&found.name, &found.agents.join(", ")).into());
        }
        if !self.yes {
            return Err(Failure::new(Kind::Refused, preview(&found)).into());
        }
        if !groups::forget(&client, &found.name, inactive_after).await? {
            return Err(alive(&found.name, "one that has just started").into());
        }
        output::line(&format!("forgot group {}, with {} positions", found.name, found.positions))?;
        Ok(())
    }
}

async fn find(client: &Connection, name: &str, inactive_after: Duration) -> anyhow::Result<Group> {
    let groups = groups::list(client, inactive_after).await?;
    let found = groups.into_iter().find(|found| found.name == name);
    let unknown = || {
        Failure::not_found(format!(
            "no group `{name}` is known here; `outboxd groups list` shows those that are"
        ))
    };
    Ok(found.ok_or_else(unknown)?)
}

fn row(group: &Group) -> [String; 5] {
    [
        group.name.clone(),
        group.topics.join(","),
        group.kafka_group.clone(),
        group.positions.to_string(),
        group.agents.join(","),
    ]
}

fn alive(group: &str, agents: &str) -> Failure {
    Failure::new(Kind::Refused, format!("group `{group}` has agents alive ({agents}): stop them first"))
}

fn preview(group: &Group) -> String {
    let Group { name, topics, positions, .. } = group;
    format!(
        "group `{name}` (topics {}, positions in {positions} partitions) would be forgotten, and messages it has not \
         handled may go; say --yes to do it",
        topics.join(", ")
    )
}
