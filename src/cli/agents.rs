//! `outboxd agents`.

use clap::{Args, Subcommand};
use uuid::Uuid;

use super::confirm::confirm;
use super::global::{Global, connect, connect_to_look};
use super::output::{self, maybe};
use super::retry::operator::operator;
use crate::failure::{Exit, Failure};
use crate::pg::agents::{self, Agent, AgentOrder};
use crate::pg::connect::Connection;

/// Look at the agents: who is alive, and how well; take one out of service and back; remove the dead
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  outboxd agents list")]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Every process that registered: active, draining, stopped, suspect (missed two beats), inactive
    #[command(
        after_help = "Example:\n  outboxd agents list --json | jq -r '.[] | select(.state == \"active\") | .name'"
    )]
    List {
        /// One array of objects
        #[arg(long)]
        json: bool,
    },
    /// One of them, with its health
    #[command(after_help = "Example:\n  outboxd agents show relay-1")]
    Show {
        /// Its id, or its name: the one of that name that was heard last
        #[arg(value_name = "ID or NAME")]
        agent: String,
        /// One object
        #[arg(long)]
        json: bool,
    },
    /// Take one out of service: it finishes what runs, others take its work over, the process stays
    #[command(after_help = "Example:\n  outboxd agents drain relay-1")]
    Drain {
        /// Its id, or its name: the one of that name that was heard last
        #[arg(value_name = "ID or NAME")]
        agent: String,
    },
    /// Put one back into service
    #[command(after_help = "Example:\n  outboxd agents resume relay-1")]
    Resume {
        /// Its id, or its name: the one of that name that was heard last
        #[arg(value_name = "ID or NAME")]
        agent: String,
    },
    /// Remove those that are stopped or inactive
    ///
    /// One that lives after all registers anew with its next heartbeat.
    #[command(after_help = "Example:\n  outboxd agents prune --dry-run")]
    Prune {
        /// Show which they are, and change nothing
        #[arg(long)]
        dry_run: bool,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

impl Options {
    pub async fn run(&self, global: &Global) -> anyhow::Result<Exit> {
        let config = global.load()?.config;
        let mut client = match self.command {
            Command::Prune { .. } | Command::Drain { .. } | Command::Resume { .. } => {
                connect(&config, "agents").await?
            }
            Command::List { .. } | Command::Show { .. } => connect_to_look(&config, "agents").await?,
        };
        let agents = agents::list(&client).await?;
        match &self.command {
            Command::List { json: true } => output::json(&agents)?,
            Command::List { json: false } => table(&agents)?,
            Command::Prune { dry_run, yes } => {
                let dead: Vec<Agent> = agents
                    .into_iter()
                    .filter(|agent| ["stopped", "inactive"].contains(&&*agent.state))
                    .collect();
                prune(&client, &dead, *dry_run, *yes).await?;
            }
            Command::Drain { agent } => {
                let found = find(agents, agent)?;
                let said = if ["stopped", "inactive"].contains(&&*found.state) {
                    "has ended: there is nothing to take out of service"
                } else if AgentOrder::Drain.carry_out(&mut client, found.id, &operator()).await? {
                    "goes out of service within a second or two; `outboxd agents list` shows when it has"
                } else {
                    "was out of service already"
                };
                output::line(&format!("agent {} {said}", found.name))?;
            }
            Command::Resume { agent } => {
                let found = find(agents, agent)?;
                let is_new = AgentOrder::Resume.carry_out(&mut client, found.id, &operator()).await?;
                let said = if is_new { "is put back into service" } else { "was in service" };
                output::line(&format!("agent {} {said}", found.name))?;
            }
            Command::Show { agent, json } => {
                let found = find(agents, agent)?;
                if *json { output::json(&found)? } else { output::line(&describe(&found))? }
            }
        }
        Ok(Exit::Done)
    }
}

fn table(agents: &[Agent]) -> Result<(), output::OutputError> {
    let columns =
        ["NAME", "ROLE", "STATE", "GROUPS", "HEARD", "CONFIG", "HTTP", "HOST", "PID", "VERSION", "ID"];
    output::table(columns, agents.iter().map(row))
}

async fn prune(client: &Connection, dead: &[Agent], dry_run: bool, yes: bool) -> anyhow::Result<()> {
    if dry_run || !yes {
        table(dead)?;
    }
    if dry_run || dead.is_empty() {
        return Ok(());
    }
    confirm(&format!("Remove {} agents?", dead.len()), yes)?;
    let ids: Vec<Uuid> = dead.iter().map(|agent| agent.id).collect();
    let removed = agents::prune(client, &ids).await?;
    Ok(output::line(&format!("{removed} agents removed"))?)
}

fn find(agents: Vec<Agent>, wanted: &str) -> Result<Agent, Failure> {
    let id = Uuid::parse_str(wanted).ok();
    let named = |agent: &Agent| Some(agent.id) == id || agent.name == wanted;
    let found =
        agents.into_iter().filter(named).max_by_key(|agent| (Some(agent.id) == id, agent.last_heartbeat_at));
    found.ok_or_else(|| {
        Failure::not_found(format!("no agent `{wanted}`; `outboxd agents list` shows those there are"))
    })
}

fn row(agent: &Agent) -> [String; 11] {
    [
        agent.name.clone(),
        agent.role.clone(),
        agent.state.clone(),
        agent.groups.join(","),
        format!("{} ago", output::age(agent.silent_seconds)),
        if agent.config_mismatch { "differs" } else { "" }.to_owned(),
        maybe(agent.http.clone()),
        agent.host.clone(),
        agent.pid.to_string(),
        agent.version.clone(),
        agent.id.to_string(),
    ]
}

fn describe(agent: &Agent) -> String {
    let mut facts = vec![
        ("name", agent.name.clone()),
        ("id", agent.id.to_string()),
        ("role", agent.role.clone()),
        ("state", agent.state.clone()),
        ("groups", agent.groups.join(", ")),
        ("process", format!("{} on {}, version {}", agent.pid, agent.host, agent.version)),
        ("http", maybe(agent.http.clone())),
        ("started", output::time(agent.started_at)),
        (
            "heard",
            format!("{} ({} ago)", output::time(agent.last_heartbeat_at), output::age(agent.silent_seconds)),
        ),
    ];
    if agent.config_mismatch {
        facts.push(("config", "differs from that of most of its role".to_owned()));
    }
    for (name, value) in agent.health.as_object().into_iter().flatten() {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        facts.push((name, value));
    }
    output::facts(facts)
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    fn agent(id: u128, name: &str, heard: i64) -> Agent {
        Agent {
            id: Uuid::from_u128(id),
            name: name.to_owned(),
            role: "producer".into(),
            groups: Vec::new(),
            host: "h".into(),
            pid: 1,
            version: "0".into(),
            http: None,
            started_at: DateTime::UNIX_EPOCH,
            last_heartbeat_at: DateTime::from_timestamp(heard, 0).unwrap(),
            state: "active".into(),
            health: serde_json::Value::Null,
            silent_seconds: 0.0,
            config_mismatch: false,
            drain_ordered_at: None,
        }
    }

    #[test]
    fn a_name_means_the_one_heard_last_and_an_id_beats_a_name() {
        let all =
            || vec![agent(1, "a", 30), agent(2, "a", 20), agent(3, &Uuid::from_u128(2).to_string(), 90)];
        let found = |wanted: &str| find(all(), wanted).ok().map(|agent| agent.id.as_u128());
        assert_eq!((found("a"), found("b")), (Some(1), None));
        assert_eq!(found(&Uuid::from_u128(2).to_string()), Some(2));
    }
}
