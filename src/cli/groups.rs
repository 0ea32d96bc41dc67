//! `outboxd groups`.

mod pause;
mod reset;
mod show;

use std::time::Duration;

use clap::{Args, Subcommand};

use super::global::{Global, connect_to_look};
use super::output::{self, maybe};
use super::retry::operator::operator;
use crate::failure::{Exit, Failure, Kind};
use crate::pg::agents;
use crate::pg::connect::Connection;
use crate::pg::group_orders::GroupOrder;
use crate::pg::groups::{self, Group};
use pause::{Pause, Resume};
use reset::Reset;
use show::Show;

/// Look at the groups that this database knows, pause one, move one, forget one
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  outboxd groups list")]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(List),
    Show(Show),
    Pause(Pause),
    Resume(Resume),
    Forget(Forget),
    Reset(Reset),
}

/// Every group that ever started here: its agents that are alive, what waits for them, what they handle, what failed
///
/// Lag and rate are what the agents at work say, a second ago. PAUSED tells who paused the group, or how many of its
/// partitions are not read, because they are full or what comes next in them cannot be decoded.
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
            Command::Show(options) => options.run(global).await?,
            Command::Pause(options) => options.run(global).await?,
            Command::Resume(options) => options.run(global).await?,
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
            let columns =
                ["NAME", "TOPICS", "AGENTS", "LAG", "RATE", "FAILURES", "DEAD", "HELD KEYS", "PAUSED"];
            output::table(columns, groups.iter().map(row))?;
        }
        Ok(())
    }
}

impl Forget {
    async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let config = global.load()?.config;
        let mut client = connect_to_look(&config, "groups").await?;
        let inactive_after = config.agent.inactive_after;
        let found = find(&client, &self.group, inactive_after).await?;
        if !found.agents.is_empty() {
            return Err(alive(&client, &found).await?.into());
        }
        if !self.yes {
            return Err(Failure::new(Kind::Refused, preview(&found)).into());
        }
        let order = GroupOrder::Forget { inactive_after };
        if !order.carry_out(&mut client, &found.name, &operator()).await? {
            return Err(alive(&client, &found).await?.into());
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

fn row(group: &Group) -> [String; 9] {
    [
        group.name.clone(),
        group.topics.join(","),
        group.agents.join(","),
        maybe(group.lag.as_ref()),
        maybe(group.rate.map(|rate| format!("{rate:.1}/s")).as_ref()),
        group.failures.to_string(),
        group.dead_letters.to_string(),
        group.held_keys.to_string(),
        paused(group),
    ]
}

/// By whom, or how many of its partitions.
fn paused(group: &Group) -> String {
    match (&group.paused_by, group.paused_at, group.paused_partitions) {
        (by, Some(_), _) => format!("by {}", by.as_deref().unwrap_or("an operator")),
        (_, None, Some(partitions @ 1..)) => format!("{partitions} partitions"),
        _ => String::new(),
    }
}

/// Who is in the way, and what to do about one that is dead.
async fn alive(client: &Connection, group: &Group) -> anyhow::Result<Failure> {
    let mut named = Vec::new();
    let mut suspect = Vec::new();
    let in_the_way = |agent: &agents::Agent| agent.groups.contains(&group.name) && !agent.has_ended();
    for agent in agents::list(client).await?.into_iter().filter(in_the_way) {
        if agent.state == "suspect" {
            suspect.push(agent.id.to_string());
        }
        named.push(format!("{}, heard {} ago", agent.name, output::age(agent.silent_seconds)));
    }
    let advice = match &suspect[..] {
        [] => String::new(),
        dead => {
            format!("; one that has missed two beats and is dead: `outboxd agents prune {}`", dead.join(" "))
        }
    };
    let said =
        format!("group `{}` has agents alive ({}): stop them first{advice}", group.name, named.join("; "));
    Ok(Failure::new(Kind::Refused, said))
}

fn preview(group: &Group) -> String {
    let Group { name, topics, positions, .. } = group;
    format!(
        "group `{name}` (topics {}, positions in {positions} partitions) would be forgotten, and messages it has not \
         handled may go; say --yes to do it",
        topics.join(", ")
    )
}
