//! `outboxd groups`.

use clap::{Args, Subcommand};

use super::global::{Global, connect_to_look};
use super::output;
use crate::failure::{Exit, Failure, Kind};
use crate::pg::control;
use crate::pg::groups::{self, Group, Shown};

/// Look at the groups that this database knows, pause one, and forget one
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
    /// One group: who works for it, what failed, where it stands
    #[command(after_help = "Example:\n  outboxd groups show orders")]
    Show {
        group: String,
        /// One object
        #[arg(long)]
        json: bool,
    },
    /// Start nothing more of a group until it is resumed; what runs is finished
    #[command(after_help = "Example:\n  outboxd groups pause orders")]
    Pause { group: String },
    /// Let a paused group go on, and close its breaker
    #[command(after_help = "Example:\n  outboxd groups resume orders")]
    Resume { group: String },
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
            Command::Show { group, json } => {
                let found = find(&groups, group)?.clone();
                let shown = groups::show(&client, found).await?.ok_or_else(|| unknown(group))?;
                if *json { output::json(&shown)? } else { show(&shown)? }
            }
            Command::Pause { group } => {
                find(&groups, group)?;
                let paused = control::pause(&*client, group, &who()).await?;
                let what = if paused {
                    "is paused: its agents start nothing more within a second"
                } else {
                    "was paused already"
                };
                output::line(&format!("group {group} {what}"))?;
            }
            Command::Resume { group } => {
                find(&groups, group)?;
                let resumed = control::resume(&*client, group).await?;
                let what = if resumed { "goes on" } else { "was not paused" };
                output::line(&format!("group {group} {what}"))?;
            }
            Command::Forget { group, yes } => {
                let found = find(&groups, group)?;
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

fn find<'a>(groups: &'a [Group], name: &str) -> Result<&'a Group, Failure> {
    groups.iter().find(|found| found.name == name).ok_or_else(|| unknown(name))
}

fn unknown(name: &str) -> Failure {
    Failure::not_found(format!("no group `{name}` is known here; `outboxd groups list` shows those that are"))
}

/// For those who wonder who it was.
fn who() -> String {
    let user = ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    user.filter(|user| !user.is_empty()).unwrap_or_else(|| "an operator".into())
}

fn show(shown: &Shown) -> Result<(), output::OutputError> {
    let paused = shown
        .paused_at
        .map(|at| format!("{} by {}", output::time(at), shown.paused_by.as_deref().unwrap_or("an operator")));
    let breaker = shown.breaker_open_until.map(|until| {
        format!("open until {}: {}", output::time(until), shown.breaker_reason.as_deref().unwrap_or_default())
    });
    let facts = vec![
        ("group", shown.group.name.clone()),
        ("topics", shown.group.topics.join(",")),
        ("kafka group", shown.group.kafka_group.clone()),
        ("paused", paused.unwrap_or_default()),
        ("breaker", breaker.unwrap_or_default()),
        ("failures", shown.failures.to_string()),
        ("held", format!("{} behind {} keys", shown.held, shown.held_keys)),
        ("dead letters", shown.dead_letters.to_string()),
    ];
    output::line(&output::facts(facts))?;
    let agents = shown.at_work.iter().map(|agent| {
        let rate = format!("{:.0} %", agent.error_rate * 100.0);
        [agent.agent.clone(), agent.in_flight.to_string(), rate]
    });
    output::table(["AGENT", "IN FLIGHT", "FAILED"], agents)?;
    let partitions = shown.partitions.iter().map(|at| {
        [format!("{}[{}]", at.topic, at.partition), at.next_offset.to_string(), output::time(at.updated_at)]
    });
    output::table(["PARTITION", "NEXT", "SINCE"], partitions)
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
