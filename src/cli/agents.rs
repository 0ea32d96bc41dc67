//! `outboxd agents`.

use std::time::Duration;

use clap::{Args, Subcommand};
use uuid::Uuid;

use super::confirm::confirm;
use super::global::{Global, connect, connect_to_look};
use super::output::{self, maybe};
use super::retry::operator::operator;
use crate::failure::{Exit, Failure, Kind};
use crate::pg::agents::{self, Agent, AgentOrder};

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
        /// Its id, or its name: the one of that name that is alive
        #[arg(value_name = "ID or NAME")]
        agent: String,
    },
    /// Put one back into service
    #[command(after_help = "Example:\n  outboxd agents resume relay-1")]
    Resume {
        /// Its id, or its name: the one of that name that is alive
        #[arg(value_name = "ID or NAME")]
        agent: String,
    },
    /// Remove those that are stopped or inactive, or some that are known to be dead
    ///
    /// One that lives after all registers anew with its next heartbeat.
    #[command(after_help = "Example:\n  outboxd agents prune --dry-run\n  outboxd agents prune relay-1")]
    Prune {
        /// These, also if they are only suspect (missed two beats)
        #[arg(value_name = "ID or NAME")]
        agents: Vec<String>,
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
            Command::Prune { agents: named, dry_run, yes } => {
                let inactive_after = config.agent.inactive_after;
                let dead = dead(agents, named, inactive_after)?;
                if *dry_run || !yes {
                    table(&dead)?;
                }
                if !dry_run && !dead.is_empty() {
                    confirm(&format!("Remove {} agents?", dead.len()), *yes)?;
                    let ids: Vec<Uuid> = dead.iter().map(|agent| agent.id).collect();
                    let removed = agents::prune(&client, &ids, inactive_after, !named.is_empty()).await?;
                    output::line(&format!("{removed} agents removed"))?;
                }
            }
            Command::Drain { agent } => {
                let found = find_alive(agents, agent)?;
                let said = if found.has_ended() {
                    "has ended: there is nothing to take out of service"
                } else if AgentOrder::Drain.carry_out(&mut client, found.id, &operator()).await? {
                    "goes out of service within a second or two; `outboxd agents list` shows when it has"
                } else {
                    "was out of service already"
                };
                output::line(&format!("agent {} {said}", found.name))?;
            }
            Command::Resume { agent } => {
                let found = find_alive(agents, agent)?;
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

/// Those that are to be removed.
fn dead(agents: Vec<Agent>, named: &[String], inactive_after: Duration) -> Result<Vec<Agent>, Failure> {
    let is_dead = |agent: &Agent| agent.has_ended() || agent.silent_seconds > inactive_after.as_secs_f64();
    if named.is_empty() {
        return Ok(agents.into_iter().filter(is_dead).collect());
    }
    let mut dead = Vec::new();
    for name in named {
        let (gone, alive): (Vec<_>, Vec<_>) = agents
            .iter()
            .filter(|agent| is_meant(agent, name))
            .partition(|agent| is_dead(agent) || agent.state == "suspect");
        if let ([], Some(agent)) = (&gone[..], alive.first()) {
            let heard = output::age(agent.silent_seconds);
            let problem = format!(
                "agent {} is {}, heard {heard} ago: it can be removed once it has missed two beats",
                agent.name, agent.state
            );
            return Err(Failure::new(Kind::Refused, problem));
        }
        if gone.is_empty() {
            return Err(unknown(name));
        }
        dead.extend(gone.into_iter().cloned());
    }
    dead.sort_by_key(|agent| agent.id);
    dead.dedup_by_key(|agent| agent.id);
    Ok(dead)
}

fn is_meant(agent: &Agent, wanted: &str) -> bool {
    Uuid::parse_str(wanted).map_or_else(|_| agent.name == wanted, |id| agent.id == id)
}

fn is_alive(agent: &Agent) -> bool {
    ["active", "draining"].contains(&&*agent.state)
}

/// A name means the one that is alive, of several the one heard last.
fn find(agents: Vec<Agent>, wanted: &str) -> Result<Agent, Failure> {
    let meant = agents.into_iter().filter(|agent| is_meant(agent, wanted));
    meant.max_by_key(|agent| (is_alive(agent), agent.last_heartbeat_at)).ok_or_else(|| unknown(wanted))
}

/// The same, for orders: which of several that live is meant must be said.
fn find_alive(agents: Vec<Agent>, wanted: &str) -> Result<Agent, Failure> {
    let alive: Vec<String> = agents
        .iter()
        .filter(|agent| is_alive(agent) && is_meant(agent, wanted))
        .map(|agent| format!("{} (process {} on {})", agent.id, agent.pid, agent.host))
        .collect();
    if alive.len() > 1 {
        return Err(Failure::usage(format!(
            "several agents `{wanted}` are alive: name one by its id: {}",
            alive.join(", ")
        )));
    }
    find(agents, wanted)
}

fn unknown(wanted: &str) -> Failure {
    Failure::not_found(format!("no agent `{wanted}`; `outboxd agents list` shows those there are"))
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
    fn a_name_means_the_one_that_is_alive_else_the_one_heard_last() {
        let dead = |id, heard| Agent { state: "suspect".into(), ..agent(id, "a", heard) };
        let found = |agents: &[Agent], wanted: &str| {
            find_alive(agents.to_vec(), wanted)
                .map(|agent| agent.id.as_u128())
                .map_err(|failure| failure.to_string())
        };
        let all = [dead(1, 30), agent(2, "a", 20), dead(3, 90), agent(4, "b", 5)];
        assert_eq!(found(&all, "a"), Ok(2));
        assert_eq!(found(&all, &Uuid::from_u128(3).to_string()), Ok(3));
        assert_eq!(found(&[dead(1, 30), dead(2, 40)], "a"), Ok(2));
        assert!(found(&all, "c").unwrap_err().contains("no agent"));
        let two = [agent(1, "a", 30), agent(2, "a", 20)];
        let several = found(&two, "a").unwrap_err();
        assert!(several.contains(&Uuid::from_u128(2).to_string()), "{several}");
        assert_eq!(find(two.to_vec(), "a").map(|agent| agent.id.as_u128()).ok(), Some(1));
    }

    #[test]
    fn who_is_suspect_is_removed_if_he_is_named() {
        let with = |id, state: &str, silent_seconds| Agent {
            state: state.into(),
            silent_seconds,
            ..agent(id, state, 1)
        };
        let all = [
            with(1, "active", 3.0),
            with(2, "suspect", 70.0),
            with(3, "stopped", 9.0),
            with(4, "suspect", 400.0),
        ];
        let chosen = |named: &[&str]| {
            let named: Vec<String> = named.iter().map(|name| (*name).to_owned()).collect();
            let dead = dead(all.to_vec(), &named, Duration::from_secs(300));
            dead.map(|dead| dead.iter().map(|agent| agent.id.as_u128()).collect::<Vec<_>>())
                .map_err(|failure| failure.kind)
        };
        assert_eq!(chosen(&[]), Ok(vec![3, 4]));
        assert_eq!(chosen(&["suspect", "stopped"]), Ok(vec![2, 3, 4]));
        assert_eq!(chosen(&["active"]), Err(Kind::Refused));
        assert_eq!(chosen(&["nobody"]), Err(Kind::NotFound));
    }
}
