//! `outboxd retry`.

mod act;
mod describe;
mod filters;
pub(super) mod operator;

use clap::{Args, Subcommand};
use serde_json::Value;
use uuid::Uuid;

use super::global::{Global, connect_to_look};
use super::output::{self, maybe};
use crate::failure::{Exit, Failure};
use crate::pg::connect::Connection;
use crate::pg::retry::{self, Decision, Entry, STATES};
use crate::pg::{failures, parked};
use filters::{Filters, Page};

/// Decide about messages that were given up: send them again, or discard them
///
/// States: parked (refused by Kafka for good), held (waits in the outbox for its topic, or behind a parked one of its key),
/// failing (a group tries it again), dead (the group gave it up), discarded (by an operator; kept for a while).
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  outboxd retry list --topic orders")]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(List),
    Show(Show),
    /// Send them again
    ///
    /// A message that holds its key (`on_poison = "hold-key"`) or stops its lane (`"stop"`) goes from its place, and what
    /// waits behind it follows. Any other becomes a new message that carries the old id. What a group failed to handle goes
    /// to that group alone; of one key the first is handled again, then the next, in the order in which they failed, unless
    /// the group lets them overtake each other (`on_failure = "continue"`).
    #[command(after_help = "\
Example:
  outboxd retry run 0199e0c4-35a1-7d27-9a7e-5be91bd1c5f2
  outboxd retry run --topic orders --error 'too large' --dry-run
  outboxd retry run --topic orders --since 2h --rate 100/s --yes")]
    Run(act::Options),
    /// Give them up for good
    ///
    /// What waits behind one of them goes on without it. They are kept, discarded, for `[retention] discarded`, and can be
    /// sent again so long. Messages for a topic that will never be are discarded with `--state held`, or by their ids; one
    /// that is just being published is published.
    #[command(after_help = "\
Example:
  outboxd retry discard 0199e0c4-35a1-7d27-9a7e-5be91bd1c5f2
  outboxd retry discard --type CartAbandoned --until 2026-11-01T00:00:00Z --yes
  outboxd retry discard --topic ordrs --state held
  outboxd retry discard --all --dry-run")]
    Discard(act::Options),
}

/// Those that wait for a decision
///
/// First what Kafka refused, in the order of its inserts, then what groups failed to handle, in the order of message ids, which
/// is that of their time.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  outboxd retry list
  outboxd retry list --error 'too large' --since 1d --json
  outboxd retry list --after 0199e0c4-35a1-7d27-9a7e-5be91bd1c5f2   the next page: behind the last ID of this one")]
struct List {
    #[command(flatten)]
    filters: Filters,
    #[command(flatten)]
    page: Page,
    /// One array of objects
    #[arg(long)]
    json: bool,
}

/// One of them: why it was given up, what waits for it, its content
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  outboxd retry show 0199e0c4-35a1-7d27-9a7e-5be91bd1c5f2")]
struct Show {
    /// The message's own id, or the derived one
    id: Uuid,
    /// One object; an array of them if several groups failed it
    #[arg(long)]
    json: bool,
}

/// What a list is cut at if nothing is said.
const PAGE: u32 = 50;

impl Options {
    pub async fn run(&self, global: &Global) -> anyhow::Result<Exit> {
        match &self.command {
            Command::List(options) => options.run(global).await,
            Command::Show(options) => options.run(global).await,
            Command::Run(options) => options.run(global, Decision::Replay).await,
            Command::Discard(options) => options.run(global, Decision::Discard).await,
        }
    }
}

/// Each of these ids, in one of these states; one that is not there is an error that names it.
async fn find(client: &Connection, states: &[&str], ids: &[Uuid]) -> anyhow::Result<Vec<Entry>> {
    let missing = |id| {
        let states = states.join(" or ");
        Failure::not_found(format!(
            "no message {id} is {states}; `outboxd messages show {id}` tells what became of it"
        ))
    };
    Ok(retry::find_each(client, states, ids).await?.map_err(missing)?)
}

impl List {
    async fn run(&self, global: &Global) -> anyhow::Result<Exit> {
        let config = global.load()?.config;
        let client = connect_to_look(&config, "retry").await?;
        let entries = retry::list(&client, &self.page.of(self.filters.filter(), Some(PAGE))).await?;
        if self.json {
            output::json(&entries)?;
        } else {
            table(&entries)?;
        }
        Ok(Exit::Done)
    }
}

fn table(entries: &[Entry]) -> Result<(), output::OutputError> {
    let columns = ["ID", "STATE", "GROUP", "TOPIC", "KEY", "TYPE", "SINCE", "ERROR"];
    output::table(columns, entries.iter().map(row))
}

fn row(entry: &Entry) -> [String; 8] {
    [
        entry.id.to_string(),
        entry.state.clone(),
        maybe(entry.group.clone()),
        entry.topic.clone(),
        maybe(entry.key.clone()),
        maybe(entry.event_type.clone()),
        output::time(entry.since),
        maybe(entry.error.clone()),
    ]
}

impl Show {
    async fn run(&self, global: &Global) -> anyhow::Result<Exit> {
        let config = global.load()?.config;
        let client = connect_to_look(&config, "retry").await?;
        let (mut of_outbox, mut of_groups) = (Vec::new(), Vec::new());
        for entry in find(&client, &STATES, &[self.id]).await? {
            of_outbox.extend(parked::show(&client, &entry).await?);
            of_groups.extend(failures::show(&client, &entry).await?);
        }
        if of_outbox.is_empty() && of_groups.is_empty() {
            return Err(Failure::not_found(format!("message {} has just been decided", self.id)).into());
        }
        if self.json {
            let of_outbox = of_outbox.iter().map(serde_json::to_value);
            let stories = of_outbox.chain(of_groups.iter().map(serde_json::to_value));
            match &*stories.collect::<Result<Vec<Value>, _>>()? {
                [story] => output::json(story)?,
                stories => output::json(&stories)?,
            }
            return Ok(Exit::Done);
        }
        for story in &of_outbox {
            output::line(&describe::refused(story))?;
        }
        for story in &of_groups {
            output::line(&describe::failed(story))?;
            let columns = ["ATTEMPT", "AGENT", "FAILED", "ERROR"];
            output::table(columns, story.history.iter().map(describe::attempt))?;
        }
        Ok(Exit::Done)
    }
}
