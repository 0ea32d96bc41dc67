//! The agents, and the groups that they work for.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::{Finding, age};

/// A group with a lag that has finished nothing for this long is stuck.
const STUCK_AFTER_SECONDS: f64 = 300.0;

/// Who has just started waits for everything, and says so in its first beat.
const JUST_STARTED_SECONDS: f64 = 5.0;

/// An agent, as it said last.
#[derive(Clone, Debug)]
pub struct Agent {
    pub name: String,
    pub host: String,
    pub pid: i32,
    pub version: String,
    pub state: String,
    pub silent_seconds: f64,
    pub config_mismatch: bool,
    pub health: Value,
}

impl Agent {
    /// Whatever the reaper has come to: without a daemon there is none.
    fn is_silent(&self, inactive_after_seconds: f64) -> bool {
        match self.state.as_str() {
            "stopped" => false,
            "suspect" | "inactive" => true,
            _ => self.silent_seconds > inactive_after_seconds,
        }
    }

    fn is_live(&self, inactive_after_seconds: f64) -> bool {
        self.state != "stopped" && !self.is_silent(inactive_after_seconds)
    }
}

/// A name that came back needs no word about its former process.
pub fn agents(agents: &[Agent], inactive_after_seconds: f64) -> Vec<Finding> {
    let live: Vec<&Agent> = agents.iter().filter(|agent| agent.is_live(inactive_after_seconds)).collect();
    let is_back = |name: &str| live.iter().any(|agent| agent.name == name);
    let mut found = Vec::new();
    for agent in
        agents.iter().filter(|agent| agent.is_silent(inactive_after_seconds) && !is_back(&agent.name))
    {
        let Agent { name, host, pid, silent_seconds, .. } = agent;
        found.push(Finding::new(
            format!("agent {name} (process {pid} on {host}) has been silent for {}", age(*silent_seconds)),
            "see whether it runs and reaches the database; one that is gone for good: outboxd agents prune",
        ));
    }
    // One that an operator has taken out of service waits for him.
    let waits = |agent: &&&Agent| {
        agent.state == "active"
            && agent.health["uptime_seconds"].as_f64().is_some_and(|uptime| uptime > JUST_STARTED_SECONDS)
    };
    for agent in live.iter().filter(waits) {
        if let Some(what) = agent.health["waiting_for"].as_str() {
            found.push(Finding::new(
                format!("agent {} waits: {what}", agent.name),
                format!("make right what it says; `outboxd agents show {}` has the rest", agent.name),
            ));
        }
    }
    let versions: BTreeSet<&str> = live.iter().map(|agent| agent.version.as_str()).collect();
    if versions.len() > 1 {
        let versions: Vec<&str> = versions.into_iter().collect();
        found.push(Finding::new(
            format!("agents of several versions are at work: {}", versions.join(", ")),
            "finish the upgrade: restart the older ones (`outboxd agents list` names them)",
        ));
    }
    let differing: Vec<&str> =
        live.iter().filter(|agent| agent.config_mismatch).map(|agent| agent.name.as_str()).collect();
    if !differing.is_empty() {
        found.push(Finding::new(
            format!("the files of some agents say other things than those of most of their role: {}", differing.join(", ")),
            "compare [retention], [groups] and [jobs] of their files (`outboxd config dump` on each), and reload or restart those that are behind",
        ));
    }
    found
}

/// A group that this database knows, or that the file declares.
#[derive(Clone, Debug, Default)]
pub struct Group {
    pub name: String,
    /// Of those that are alive.
    pub agents: Vec<String>,
    /// It has run here.
    pub known: bool,
    pub declared: bool,
    pub paused_by: Option<String>,
    pub breaker: Option<String>,
}

/// The oldest range of the outbox that only this group keeps from going.
#[derive(Clone, Debug)]
pub struct Blocking {
    pub group: String,
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub next_offset: Option<i64>,
    /// Since the range was published.
    pub age_seconds: f64,
}

pub fn groups(
    groups: &[Group],
    agents: &[Agent],
    inactive_after_seconds: f64,
    now: DateTime<Utc>,
) -> Vec<Finding> {
    let progress = progress(agents, inactive_after_seconds, now);
    let mut found = Vec::new();
    for group in groups {
        let name = &group.name;
        if group.agents.is_empty() {
            let what = if group.known {
                format!(
                    "group {name} has no consumer that lives: its messages wait, and retention waits for it"
                )
            } else {
                format!("group {name} is declared in this file and has never run here")
            };
            let or_forget = match (group.known, group.declared) {
                (true, true) => format!(", or remove it from the file and: outboxd groups forget {name}"),
                (true, false) => format!(", or if it will not come back: outboxd groups forget {name}"),
                (false, _) => ", or remove it from the file".to_owned(),
            };
            let start = format!("start one (systemctl start outboxd-consumer@{name}){or_forget}");
            found.push(Finding::new(what, start));
        }
        if let Some(by) = &group.paused_by {
            found.push(Finding::new(
                format!("group {name} is paused, by {by}: nothing of it is handled"),
                format!("outboxd groups resume {name}"),
            ));
        }
        if let Some(reason) = &group.breaker {
            found.push(Finding::new(
                format!("the breaker of group {name} is open: {reason}"),
                "mend what its handler calls; it closes by itself when a try succeeds",
            ));
        }
        for (agent, lag, standing) in progress.get(name.as_str()).into_iter().flatten() {
            found.push(Finding::new(
                format!(
                    "group {name} has finished nothing at {agent} for {}, and {lag} messages wait",
                    age(*standing)
                ),
                format!("see what its handler does: the log of {agent}, and `outboxd agents show {agent}`"),
            ));
        }
    }
    found
}

/// Per group: who of it has a lag and stands still, and for how long.
fn progress(
    agents: &[Agent],
    inactive_after_seconds: f64,
    now: DateTime<Utc>,
) -> BTreeMap<&str, Vec<(&str, i64, f64)>> {
    let mut stuck: BTreeMap<&str, Vec<(&str, i64, f64)>> = BTreeMap::new();
    for agent in agents.iter().filter(|agent| agent.is_live(inactive_after_seconds)) {
        for (group, health) in agent.health["groups"].as_object().into_iter().flatten() {
            let lag = health["lag"].as_i64().unwrap_or_default();
            let uptime = agent.health["uptime_seconds"].as_f64().unwrap_or_default();
            let last =
                health["last_progress_at"].as_str().and_then(|text| DateTime::parse_from_rfc3339(text).ok());
            let idle = last.map_or(uptime, |last| (now - last.to_utc()).as_seconds_f64());
            // Of the message that a handler has: a group that was idle has just begun.
            let oldest = agent.health["oldest_pending_seconds"].as_f64().unwrap_or(idle);
            let standing = idle.min(oldest + agent.silent_seconds);
            if lag > 0 && standing > STUCK_AFTER_SECONDS {
                stuck.entry(group).or_default().push((&agent.name, lag, standing));
            }
        }
    }
    stuck
}

pub fn retention(blocking: Option<&Blocking>) -> Vec<Finding> {
    let Some(Blocking { group, topic, partition, offset, next_offset, age_seconds }) = blocking else {
        return Vec::new();
    };
    let stands = next_offset.map_or("has no position there".to_owned(), |next| format!("stands at {next}"));
    vec![Finding::new(
        format!(
            "retention waits for group {group}: {topic}/{partition} goes up to offset {offset}, published {} ago, and it {stands}",
            age(*age_seconds)
        ),
        format!(
            "see that group {group} is consumed; one that will not come back: outboxd groups forget {group}; a ceiling whatever \
             groups do: `[retention] max`"
        ),
    )]
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use serde_json::json;

    use super::*;

    fn agent(name: &str, state: &str, silent_seconds: f64) -> Agent {
        Agent {
            name: name.into(),
            host: "h".into(),
            pid: 7,
            version: "1".into(),
            state: state.into(),
            silent_seconds,
            config_mismatch: false,
            health: json!({}),
        }
    }

    #[test]
    fn a_silent_agent_is_found_unless_it_said_goodbye_or_its_name_is_back() {
        let found =
            |all: &[Agent]| agents(all, 300.0).iter().map(|found| found.what.clone()).collect::<Vec<_>>();
        assert_eq!(found(&[agent("a", "active", 30.0), agent("b", "stopped", 9e9)]), Vec::<String>::new());
        assert_eq!(found(&[agent("a", "inactive", 400.0), agent("a", "active", 1.0)]), Vec::<String>::new());
        for silent in
            [agent("a", "suspect", 70.0), agent("a", "inactive", 400.0), agent("a", "draining", 301.0)]
        {
            assert_eq!(found(std::slice::from_ref(&silent)).len(), 1, "{silent:?}");
        }
        let other = Agent { version: "2".into(), ..agent("b", "active", 1.0) };
        assert_eq!(
            found(&[agent("a", "active", 1.0), other]),
            ["agents of several versions are at work: 1, 2"]
        );
        let waits = Agent {
            health: json!({ "waiting_for": "Kafka", "uptime_seconds": 9 }),
            ..agent("a", "active", 1.0)
        };
        assert_eq!(found(&[waits]), ["agent a waits: Kafka"]);
        let starts = Agent {
            health: json!({ "waiting_for": "Kafka", "uptime_seconds": 0 }),
            ..agent("a", "active", 1.0)
        };
        assert_eq!(found(&[starts]), Vec::<String>::new());
    }

    #[test]
    fn a_group_that_stands_still_is_found_where_it_does() {
        let group = Group { name: "g".into(), agents: vec!["a".into()], known: true, ..Group::default() };
        let now = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let at_work = |lag: i64, idle: Option<i64>, oldest: Option<f64>| Agent {
            health: json!({
                "uptime_seconds": 900,
                "oldest_pending_seconds": oldest,
                "groups": { "g": { "lag": lag, "last_progress_at": idle.map(|idle| now - TimeDelta::seconds(idle)) } },
            }),
            ..agent("a", "active", 1.0)
        };
        let found = |agent: Agent| groups(std::slice::from_ref(&group), &[agent], 300.0, now).len();
        assert_eq!(found(at_work(5, Some(2), Some(400.0))), 0);
        assert_eq!(found(at_work(0, Some(900), None)), 0, "there is nothing to do");
        assert_eq!(found(at_work(5, Some(900), Some(2.0))), 0, "it has just begun");
        assert_eq!(found(at_work(5, Some(301), None)), 1);
        assert_eq!(found(at_work(5, None, Some(800.0))), 1, "it has never finished anything");
        assert_eq!(found(Agent { state: "stopped".into(), ..at_work(5, None, None) }), 0);
    }

    #[test]
    fn a_group_without_consumers_is_told_what_fits_it() {
        let fix = |known, declared| {
            groups(
                &[Group { name: "g".into(), known, declared, ..Group::default() }],
                &[],
                300.0,
                DateTime::UNIX_EPOCH,
            )[0]
            .fix
            .clone()
        };
        assert!(fix(true, false).contains("will not come back"));
        assert!(fix(true, true).contains("groups forget g"));
        assert!(!fix(false, true).contains("forget"));
    }
}
