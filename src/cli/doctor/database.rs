//! What can be seen in the database: the server, the outbox, agents and groups.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::Utc;

use crate::cli::global::connect_to_look;
use crate::cli::report;
use crate::config::Config;
use crate::domain::doctor::fleet::{self, Blocking, Group};
use crate::domain::doctor::outbox::{self, Lane};
use crate::domain::doctor::{Check, Finding, postgres, rights};
use crate::failure;
use crate::pg::connect::Connection;
use crate::pg::doctor::{self, LIMIT};
use crate::pg::jobs::trial;
use crate::pg::migrate::{self, Fit};
use crate::pg::{PgError, agents, groups, inspect, retention};

/// The checks, and the topics that the database knows of, with who wants each.
pub async fn examine(config: &Config, long: Duration) -> (Vec<Check>, BTreeMap<String, String>) {
    let mut client = match connect_to_look(config, "doctor").await {
        Ok(client) => client,
        Err(error) => return (vec![Check::of("postgres", vec![unseen(error)])], BTreeMap::new()),
    };
    let mut checks = vec![
        checked("settings", settings(&client).await),
        checked("connections", connections(&client, config).await),
        checked("clock", clock(&client).await),
        vacuum(&client, long).await.unwrap_or_else(|error| failed("vacuum", &error)),
    ];
    match schema(&client).await {
        Ok(None) => checks.push(Check::of("schema", Vec::new())),
        Ok(Some(finding)) => {
            checks.push(Check::of("schema", vec![finding]));
            return (checks, BTreeMap::new());
        }
        Err(error) => {
            checks.push(Check::of("schema", vec![unseen(error)]));
            return (checks, BTreeMap::new());
        }
    }
    checks.extend([
        checked("rights", missing_rights(&client, config).await),
        checked("indexes", doctor::indexes(&client).await.map(|indexes| postgres::indexes(&indexes))),
        checked("sequence", sequence(&client).await),
        checked("partitions", partitions(&client).await),
        checked("lanes", lanes(&client).await),
        checked("aside", doctor::aside(&client).await.map(|aside| outbox::aside(&aside, LIMIT))),
        checked("agents", living(&client, config).await),
        checked("groups", standing(&client, config).await),
        checked("retention", blocking(&client, config).await.map(|found| fleet::retention(found.as_ref()))),
        checked(
            "dead-letters",
            doctor::dead_letters(&client).await.map(|dead| outbox::dead_letters(&dead, LIMIT)),
        ),
    ]);
    checks.push(checked("jobs", own_jobs(&mut client, config).await));
    // Without them, those of the file are looked at.
    let topics = topics(&client).await.unwrap_or_default();
    (checks, topics)
}

fn checked(name: &'static str, findings: Result<Vec<Finding>, PgError>) -> Check {
    findings.map_or_else(|error| failed(name, &error), |findings| Check::of(name, findings))
}

/// What this user may not see, or what took too long, says nothing against the rest.
fn failed(name: &'static str, error: &PgError) -> Check {
    Check::skipped(name, error.to_string())
}

/// Without it, nothing can be told.
fn unseen(error: impl Into<anyhow::Error>) -> Finding {
    let error = error.into();
    Finding::new(
        failure::words(error.chain()),
        report::kind(&error).advice().unwrap_or("see the server's log"),
    )
}

async fn settings(client: &Connection) -> Result<Vec<Finding>, PgError> {
    let (server, settings) = (doctor::server(client).await?, doctor::settings(client).await?);
    Ok([postgres::standing(&server), postgres::settings(&settings, &server.user)].concat())
}

async fn connections(client: &Connection, config: &Config) -> Result<Vec<Finding>, PgError> {
    let (server, settings) = (doctor::server(client).await?, doctor::settings(client).await?);
    Ok(postgres::connections(&server, &settings, config.groups.len(), config.postgres.pool_size))
}

async fn clock(client: &Connection) -> Result<Vec<Finding>, PgError> {
    let before = Utc::now();
    let server = doctor::now(client).await?;
    Ok(postgres::clocks(before, server, Utc::now()))
}

async fn vacuum(client: &Connection, long: Duration) -> Result<Check, PgError> {
    let name = "vacuum";
    let (server, holders) = (doctor::server(client).await?, doctor::holders(client, long).await?);
    let found = postgres::vacuum(&holders, &doctor::tables(client).await?);
    if found.is_empty() && !server.sees_others {
        let user = server.user;
        let why = format!("{user} sees no other user's transactions: grant pg_read_all_stats to \"{user}\"");
        return Ok(Check::skipped(name, why));
    }
    Ok(Check::of(name, found))
}

/// What is wrong with it; the rest needs it.
async fn schema(client: &Connection) -> Result<Option<Finding>, PgError> {
    Ok(match migrate::fit(client).await? {
        Fit::Fits { .. } => None,
        Fit::Behind { version: 0 } => Some(Finding::new(
            "there is no schema `outboxd` in this database",
            "outboxd migrate, as its owner",
        )),
        Fit::Behind { version } => Some(Finding::new(
            format!("the schema is at version {version} of {}", migrate::newest()),
            "outboxd migrate, as the owner of the schema; --dry-run shows what it would do",
        )),
        Fit::TooNew { version, oldest_compatible } => Some(Finding::new(
            migrate::too_new(version, oldest_compatible),
            "upgrade outboxd on this machine",
        )),
    })
}

async fn missing_rights(client: &Connection, config: &Config) -> Result<Vec<Finding>, PgError> {
    let roles = &config.postgres.roles;
    let (missing_roles, missing, user) = doctor::rights::missing(client, roles).await?;
    Ok(rights::rights(&missing_roles, &missing, &user, &roles.agent))
}

async fn sequence(client: &Connection) -> Result<Vec<Finding>, PgError> {
    let (sequence, same_cluster) = doctor::sequence(client).await?;
    Ok(outbox::sequence(sequence, same_cluster))
}

async fn partitions(client: &Connection) -> Result<Vec<Finding>, PgError> {
    let (partitions, last_seq) = doctor::partitions(client).await?;
    Ok(outbox::partitions(&partitions, last_seq))
}

async fn lanes(client: &Connection) -> Result<Vec<Finding>, PgError> {
    let lanes: Vec<Lane> = inspect::lanes(client)
        .await?
        .into_iter()
        .map(|lane| Lane {
            name: lane.name,
            owner: lane.agent.filter(|_| lane.state == "owned"),
            pending: lane.pending,
            oldest_pending_seconds: lane.oldest_pending_seconds,
        })
        .collect();
    Ok(outbox::lanes(&lanes, inspect::PENDING_LIMIT, doctor::retries_due(client).await?))
}

async fn all_agents(client: &Connection) -> Result<Vec<fleet::Agent>, PgError> {
    let agents = agents::list(client).await?.into_iter();
    Ok(agents
        .map(|agent| fleet::Agent {
            name: agent.name,
            host: agent.host,
            pid: agent.pid,
            version: agent.version,
            state: agent.state,
            silent_seconds: agent.silent_seconds,
            config_mismatch: agent.config_mismatch,
            health: agent.health,
        })
        .collect())
}

async fn living(client: &Connection, config: &Config) -> Result<Vec<Finding>, PgError> {
    Ok(fleet::agents(&all_agents(client).await?, config.agent.inactive_after.as_secs_f64()))
}

async fn standing(client: &Connection, config: &Config) -> Result<Vec<Finding>, PgError> {
    let mut all: BTreeMap<String, Group> = BTreeMap::new();
    for name in config.groups.keys() {
        all.insert(name.clone(), Group { name: name.clone(), declared: true, ..Group::default() });
    }
    for known in groups::list(client, config.agent.inactive_after).await? {
        let group = all.entry(known.name.clone()).or_default();
        *group = Group { name: known.name, agents: known.agents, known: true, ..group.clone() };
    }
    for stopped in doctor::stopped_groups(client).await? {
        if let Some(group) = all.get_mut(&stopped.name) {
            (group.paused_by, group.breaker) = (stopped.paused_by, stopped.breaker);
        }
    }
    let all: Vec<Group> = all.into_values().collect();
    let (agents, now) = (all_agents(client).await?, doctor::now(client).await?);
    Ok(fleet::groups(&all, &agents, config.agent.inactive_after.as_secs_f64(), now))
}

/// The oldest leaf that would have gone, were it not for a group.
async fn blocking(client: &Connection, config: &Config) -> Result<Option<Blocking>, PgError> {
    let blocked = retention::blocked(client, config.retention.published).await?;
    Ok(blocked.map(|(behind, age)| Blocking {
        group: behind.group,
        topic: behind.topic,
        partition: behind.partition,
        offset: behind.offset,
        next_offset: behind.next_offset,
        age_seconds: age.as_secs_f64(),
    }))
}

/// What of them the database would refuse at each firing.
async fn own_jobs(client: &mut Connection, config: &Config) -> Result<Vec<Finding>, PgError> {
    let mut found = Vec::new();
    for (name, job) in config.jobs.iter().filter(|(_, job)| job.enabled) {
        let Some(own) = &job.own else { continue };
        if let Some(trouble) = trial::try_out(client, own).await? {
            let fix = format!(
                "until it is right in [jobs.{name}], or allowed to whom it runs as, each firing fails"
            );
            found.push(Finding::new(format!("job {name}: {trouble}"), fix));
        }
    }
    Ok(found)
}

async fn topics(client: &Connection) -> Result<BTreeMap<String, String>, PgError> {
    let mut wanted: BTreeMap<String, String> =
        doctor::topics(client).await?.into_iter().map(|topic| (topic, "of the outbox".to_owned())).collect();
    let mut of_groups: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for group in groups::list(client, Duration::ZERO).await? {
        for topic in group.topics {
            of_groups.entry(topic).or_default().insert(group.name.clone());
        }
    }
    for (topic, groups) in of_groups {
        let groups: Vec<String> = groups.into_iter().collect();
        wanted.entry(topic).or_insert_with(|| format!("of group {}", groups.join(", ")));
    }
    Ok(wanted)
}
