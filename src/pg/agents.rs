//! The agents: registration, heartbeats, and who has fallen silent.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use super::connect::{Connection, Connector, PgError};
use super::operations::{OnRecord, Operator};
use super::sql::{millis, statements};

statements! {
    /// Ends a look at the backlog that would make the beat late.
    BOUND = "set statement_timeout = '5s'";

    /// A name that another live agent of this moment has gets a number behind it, unless the operator chose it.
    REGISTER = "
        insert into outboxd.agents (id, name, role, groups, host, pid, version, http, heartbeat, status, health)
        select $1, case when $11 then $2 else coalesce((
            select candidate from (
              select $2 || case n when 1 then '' else '-' || n end as candidate, n from generate_series(1, 1000) as n
            ) names
            where not exists (select from outboxd.agents a where a.name = candidate and a.id <> $1
              and a.status not in ('stopped', 'inactive') and a.last_heartbeat_at > clock_timestamp() - a.heartbeat * 2)
            order by n limit 1), $2) end,
          $3, $4, $5, $6, $7, $8, $9::bigint * interval '1 ms', $10, $12
        on conflict (id) do update set last_heartbeat_at = clock_timestamp(), status = excluded.status, health = excluded.health
        returning name";

    /// No row: the reaper or an operator removed it, and it registers anew.
    BEAT = "
        with beat as (
          update outboxd.agents set last_heartbeat_at = clock_timestamp(), status = $2, health = $3
          where id = $1 returning id
        )
        insert into outboxd.agent_heartbeats (agent_id, status, health) select id, $2, $3 from beat";

    /// The last beat is checked in the statement that judges by it.
    REAP = "
        update outboxd.agents set status = case
            when last_heartbeat_at < clock_timestamp() - $1::bigint * interval '1 ms' then 'inactive' else 'suspect' end
        where status in ('active', 'draining', 'suspect')
          and last_heartbeat_at < clock_timestamp() - least(heartbeat * 2, $1::bigint * interval '1 ms')
          and status <> case
            when last_heartbeat_at < clock_timestamp() - $1::bigint * interval '1 ms' then 'inactive' else 'suspect' end
        returning name, status";

    /// The agent obeys within about a second.
    DRAIN = "
        update outboxd.agents set drain_ordered_at = clock_timestamp()
        where id = $1 and drain_ordered_at is null and status not in ('stopped', 'inactive') and outboxd.durable()";

    RESUME = "
        update outboxd.agents set drain_ordered_at = null
        where id = $1 and drain_ordered_at is not null and outboxd.durable()";

    FORGET_BEATS = "delete from outboxd.agent_heartbeats where at < clock_timestamp() - interval '1 day'";

    /// Who has said goodbye, or is taken for dead, whether or not anybody is left to reap; checked again by the statement
    /// that removes. Of those that an operator names, two missed beats are enough.
    PRUNE = "
        with gone as (
          delete from outboxd.agents where id = any($1) and (status in ('stopped', 'inactive')
            or last_heartbeat_at < clock_timestamp() - $2::bigint * interval '1 ms'
            or ($3 and last_heartbeat_at < clock_timestamp() - heartbeat * 2))
          returning id
        ), forgotten as (
          delete from outboxd.agent_heartbeats b using gone where b.agent_id = gone.id
        ), left_groups as (
          delete from outboxd.members m using gone where m.agent_id = gone.id
        )
        select count(*) from gone";

    /// Of a role, what most of the live ones have read in their files is the usual; as many each: who has run longer. Who
    /// has missed two beats is suspect before the reaper comes, and if none does.
    LIST = "
        with usual as (
          select distinct on (role) role, health->>'config' as config
          from outboxd.agents where status in ('active', 'draining') and health ? 'config'
          group by role, health->>'config' order by role, count(*) desc, min(started_at)
        )
        select id, name, a.role, groups, host, pid, version, http, started_at, last_heartbeat_at,
          case when status in ('active', 'draining') and last_heartbeat_at < clock_timestamp() - heartbeat * 2
            then 'suspect' else status end, health,
          extract(epoch from clock_timestamp() - last_heartbeat_at)::float8,
          coalesce(status in ('active', 'draining') and health->>'config' <> usual.config, false), drain_ordered_at
        from outboxd.agents a left join usual on usual.role = a.role order by a.role, name, started_at";
}

/// An agent as it introduces itself.
#[derive(Clone, Debug)]
pub struct Registration {
    pub id: Uuid,
    pub name: String,
    /// The operator chose the name: it is taken as it is.
    pub name_is_chosen: bool,
    pub role: &'static str,
    pub groups: Vec<String>,
    pub host: String,
    pub pid: i32,
    pub version: String,
    pub http: Option<String>,
    pub heartbeat: Duration,
}

/// A line of `agents list`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Agent {
    pub id: Uuid,
    pub name: String,
    pub role: String,
    pub groups: Vec<String>,
    pub host: String,
    pub pid: i32,
    pub version: String,
    pub http: Option<String>,
    pub started_at: DateTime<Utc>,
    pub last_heartbeat_at: DateTime<Utc>,
    pub state: String,
    pub health: Value,
    pub silent_seconds: f64,
    /// Its file says something else for the whole cluster than those of most of its role.
    pub config_mismatch: bool,
    /// An operator has taken it out of service.
    pub drain_ordered_at: Option<DateTime<Utc>>,
}

impl Agent {
    /// By its own word, or by its silence.
    pub fn has_ended(&self) -> bool {
        matches!(self.state.as_str(), "stopped" | "inactive")
    }
}

/// The connection that an agent beats by.
pub async fn connect(connector: &Connector) -> Result<Connection, PgError> {
    let connection = connector.connect().await?;
    connection.set(BOUND).await?;
    Ok(connection)
}

/// Enters the agent, and returns the name that it got. One at a time, so that two that start at one moment differ.
pub async fn register(
    client: &mut Connection,
    agent: &Registration,
    status: &str,
    health: &Value,
) -> Result<String, PgError> {
    let heartbeat = millis(agent.heartbeat);
    let transaction = client.transaction().await?;
    transaction.batch_execute("select pg_advisory_xact_lock(hashtextextended('outboxd.agents', 0))").await?;
    let row = transaction
        .query_one(
            REGISTER,
            &[
                &agent.id,
                &agent.name,
                &agent.role,
                &agent.groups,
                &agent.host,
                &agent.pid,
                &agent.version,
                &agent.http,
                &heartbeat,
                &status,
                &agent.name_is_chosen,
                &health,
            ],
        )
        .await?;
    transaction.commit().await?;
    Ok(row.get(0))
}

/// One beat; false if the agent is not known any more.
pub async fn beat(client: &Connection, id: Uuid, status: &str, health: &Value) -> Result<bool, PgError> {
    Ok(client.execute(BEAT, &[&id, &status, &health]).await? > 0)
}

/// What operators order for an agent, from wherever they do.
#[derive(Clone, Copy, Debug)]
pub enum AgentOrder {
    /// It is taken out of service.
    Drain,
    /// That is taken back.
    Resume,
}

impl AgentOrder {
    /// On record. Says whether that changed anything.
    pub async fn carry_out(self, client: &mut Connection, id: Uuid, by: &Operator) -> Result<bool, PgError> {
        let (command, sql) = match self {
            Self::Drain => ("agents drain", DRAIN),
            Self::Resume => ("agents resume", RESUME),
        };
        let order = OnRecord::begin(client, command, &json!({ "agent": id }), by).await?;
        let changed = order.transaction.execute(sql, &[&id]).await;
        order.end(changed.map(|rows| rows > 0).map_err(PgError::from)).await
    }
}

/// Marks agents that missed two beats `suspect`, and those silent for `inactive_after` `inactive`; forgets old beats.
pub async fn reap(client: &Connection, inactive_after: Duration) -> Result<Vec<(String, String)>, PgError> {
    let limit = millis(inactive_after);
    let rows = client.query(REAP, &[&limit]).await?;
    client.execute(FORGET_BEATS, &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Removes those of these that are stopped or silent for `inactive_after`, if they are named also those that are suspect, with
/// their beats; says how many.
pub async fn prune(
    client: &Connection,
    ids: &[Uuid],
    inactive_after: Duration,
    are_named: bool,
) -> Result<i64, PgError> {
    Ok(client.query_one(PRUNE, &[&ids, &millis(inactive_after), &are_named]).await?.get(0))
}

pub async fn list(client: &Connection) -> Result<Vec<Agent>, PgError> {
    let rows = client.query(LIST, &[]).await?;
    Ok(rows
        .iter()
        .map(|row| Agent {
            id: row.get(0),
            name: row.get(1),
            role: row.get(2),
            groups: row.get(3),
            host: row.get(4),
            pid: row.get(5),
            version: row.get(6),
            http: row.get(7),
            started_at: row.get(8),
            last_heartbeat_at: row.get(9),
            state: row.get(10),
            health: row.get(11),
            silent_seconds: row.get(12),
            config_mismatch: row.get(13),
            drain_ordered_at: row.get(14),
        })
        .collect())
}
