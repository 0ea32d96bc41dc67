//! `outboxd groups`.

use clap::{Args, Subcommand};

use super::global::{Global, connect_to_look};
use super::output;
use crate::failure::{Exit, Failure, Kind};
use crate::pg::groups::{self, Group};

/// Look at the groups that this database knows, and forget one
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  outboxd groups list")]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Every group that ever started here: its topics, and its agents that are alive
    #[command(after_help = "Example:\n  outboxd groups list --json")]
    List {
        /// One array of objects
        #[arg(long)]
        json: bool,
    },
    /// Forget a group that will not come back, so that retention does not wait for it
    ///
    /// Removes the group and its positions. Its evidence stays until its own retention ends: should the group come back,
    /// it begins anew, and what it has handled is not handled again.
    #[command(after_help = "Example:\n  outboxd groups forget old-reports --yes")]
    Forget {
        group: String,
        /// Do it; without this it is only said what would be forgotten
        #[arg(long)]
        yes: bool,
    },
}

impl Options {
    pub async fn run(&self, global: &Global) -> anyhow::Result<Exit> {
        let config = global.load()?.config;
        let client = connect_to_look(&config, "groups").await?;
        let inactive_after = config.agent.inactive_after;
        let groups = groups::list(&client, inactive_after).await?;
        match &self.command {
            Command::List { json: true } => output::json(&groups)?,
            Command::List { json: false } => {
                let columns = ["NAME", "TOPICS", "KAFKA GROUP", "POSITIONS", "AGENTS"];
                output::table(columns, groups.iter().map(row))?;
            }
            Command::Forget { group, yes } => {
                let found = groups.iter().find(|found| found.name == *group).ok_or_else(|| {
                    Failure::not_found(format!(
                        "no group `{group}` is known here; `outboxd groups list` shows those that are"
                    ))
                })?;
                if !found.agents.is_empty() {
                    return Err(alive(group, &found.agents.join(", ")).into());
                }
                if !yes {
                    return Err(Failure::new(Kind::Refused, preview(found)).into());
                }
                if !groups::forget(&client, group, inactive_after).await? {
                    return Err(alive(group, "one that has just started").into());
                }
                output::line(&format!("forgot group {group}, with {} positions", found.positions))?;
            }
        }
        Ok(Exit::Done)
    }
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
