//! What one agent tells of the whole database, for metrics and for the dashboard. Bounded reads, at intervals.

use chrono::{DateTime, Utc};
use tokio_postgres::Row;
use uuid::Uuid;

use super::connect::{Connection, PgError};
use super::sql::statements;

statements! {
    /// Ends a look that would make the next one late.
    BOUND = "set statement_timeout = '5s'";

    /// Who does the work of `process-pending`: the owner of a lane, the normal one first. Should nobody own any, the
    /// producer that has been alive longest tells of it.
    TELLER = "
        select coalesce(
          (select agent from outboxd.lanes where lease_expires_at > clock_timestamp() order by abs(priority), priority limit 1),
          (select name from outboxd.agents where role = 'producer' and status in ('active', 'draining')
            and last_heartbeat_at > clock_timestamp() - heartbeat * 2 order by started_at, name limit 1))";

    PARKED = "
        select topic, count(*) from (select topic from outboxd.set_aside where state = 'parked' limit $1) bounded
        group by topic";

    /// Each state by an index of its own.
    GROUPS = "
        with bounded as materialized (
          (select consumer_group, false as dead from outboxd.failures where state = 'due' limit $1)
          union all
          (select consumer_group, false from outboxd.failures where state in ('retrying', 'running') limit $1)
          union all
          (select consumer_group, false from outboxd.failures where state = 'held' limit $1)
          union all
          (select consumer_group, true from outboxd.failures where state = 'dead' limit $1)
        )
        select g.name, g.paused_at is not null, g.breaker_until is not null,
          (select count(*) from bounded b where b.consumer_group = g.name and not b.dead),
          (select count(*) from bounded b where b.consumer_group = g.name and b.dead)
        from outboxd.groups g order by g.name";

    /// Whether a cursor may stand still: nobody has its lease, or the relay is paused.
    MAY_STAND = "
        select exists (select from outboxd.lanes where lease_expires_at is null or lease_expires_at <= clock_timestamp())
          or exists (select from outboxd.jobs where name = 'process-pending' and paused_at is not null)";

    /// What waits behind such a cursor for longer than a lane takes to pass to another owner.
    STANDING = "
        select name, extract(epoch from clock_timestamp() - oldest_pending_at)::float8, owned
        from outboxd.lane_status
        where oldest_pending_at < clock_timestamp() - interval '10 seconds'
          and (not owned or exists (select from outboxd.jobs where name = 'process-pending' and paused_at is not null))
        order by oldest_pending_at limit 1";

    /// A retry goes through the outbox.
    STRANDED = "
        select g.name, extract(epoch from clock_timestamp() - due.next_attempt_at)::float8
        from outboxd.groups g
        cross join lateral (
          select next_attempt_at from outboxd.failures
          where consumer_group = g.name and state = 'due' order by next_attempt_at limit 1
        ) due
        where due.next_attempt_at < clock_timestamp() - interval '10 seconds'
          and not exists (select from outboxd.lanes where lease_expires_at > clock_timestamp())
        order by due.next_attempt_at limit 1";

    AGENTS = "select role, status, count(*) from outboxd.agents group by role, status";

    /// Those that are not of the largest party of their role.
    MISMATCH = "
        select coalesce(sum(agents - largest), 0)::bigint from (
          select sum(agents) as agents, max(agents) as largest from (
            select role, count(*) as agents from outboxd.agents
            where status in ('active', 'draining') and health ? 'config' group by role, health->>'config'
          ) parties group by role
        ) roles";

    SILENCE = "
        select coalesce(extract(epoch from clock_timestamp() - min(last_heartbeat_at)), 0)::float8 from outboxd.agents
        where status <> 'stopped'";

    OLDEST_TRANSACTION = "
        select coalesce(extract(epoch from clock_timestamp() - least(
          (select min(xact_start) from pg_stat_activity
            where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()),
          (select min(prepared) from pg_prepared_xacts where database = current_database()))), 0)::float8";

    DEAD_BY_ERROR = "
        select consumer_group, coalesce(left(error, 200), ''), count(*), max(changed_at) from (
          select consumer_group, error, changed_at from outboxd.failures where state = 'dead' order by changed_at desc limit $1
        ) newest
        group by 1, 2 order by 3 desc, 4 desc limit 20";

    SEQUENCE = "select coalesce(pg_sequence_last_value('outboxd.messages_seq'), 0)";

    PROCESSED = "
        select id, role = 'producer', coalesce((health->>'processed')::bigint, 0) from outboxd.agents
        where status <> 'stopped' order by id limit 1000";

    NOW = "select clock_timestamp()::text";

    /// What commands have sent again since then. One that takes longer than a day is not waited for.
    REPLAYED = "
        select result, messages, (max(ended_at) over ())::text from outboxd.operations
        where began_at > clock_timestamp() - interval '1 day' and command = 'retry run'
          and ended_at > $1::text::timestamptz";
}

/// Where counting ends.
pub const LIMIT: i64 = 10_000;

/// A group as the database sees it.
#[derive(Clone, Debug)]
pub struct GroupCounts {
    pub name: String,
    pub paused: bool,
    pub breaker_open: bool,
    pub backlog: i64,
    pub dead_letters: i64,
}

/// Dead letters of one group and one error.
#[derive(Clone, Debug)]
pub struct DeadBy {
    pub group: String,
    pub error: String,
    pub messages: i64,
    pub newest: DateTime<Utc>,
}

/// What has flowed so far: the sequence's last value, and of each agent whether it is a producer, and what it has done.
#[derive(Clone, Debug)]
pub struct Counted {
    pub sequence: i64,
    pub processed: Vec<(Uuid, bool, i64)>,
}

/// Operations that have ended.
#[derive(Clone, Debug, Default)]
pub struct Replayed {
    /// How each ended, and how many messages it sent again.
    pub ended: Vec<(String, i64)>,
    /// When the last of them did.
    pub until: Option<String>,
}

/// Ends every later statement of this connection that takes too long.
pub async fn bound(client: &Connection) -> Result<(), PgError> {
    Ok(client.set(BOUND).await?)
}

/// The name of the agent that tells of the whole database.
pub async fn teller(client: &Connection) -> Result<Option<String>, PgError> {
    Ok(client.query_one(&client.prepare_once(TELLER).await?, &[]).await?.get(0))
}

/// By topic.
pub async fn parked(client: &Connection) -> Result<Vec<(String, i64)>, PgError> {
    let rows = client.query(&client.prepare_once(PARKED).await?, &[&LIMIT]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

pub async fn groups(client: &Connection) -> Result<Vec<GroupCounts>, PgError> {
    let rows = client.query(&client.prepare_once(GROUPS).await?, &[&LIMIT]).await?;
    Ok(rows
        .iter()
        .map(|row| GroupCounts {
            name: row.get(0),
            paused: row.get(1),
            breaker_open: row.get(2),
            backlog: row.get(3),
            dead_letters: row.get(4),
        })
        .collect())
}

/// Of the newest dead letters, the most frequent errors first.
pub async fn dead_by_error(client: &Connection) -> Result<Vec<DeadBy>, PgError> {
    let rows = client.query(&client.prepare_once(DEAD_BY_ERROR).await?, &[&LIMIT]).await?;
    let dead =
        |row: &Row| DeadBy { group: row.get(0), error: row.get(1), messages: row.get(2), newest: row.get(3) };
    Ok(rows.iter().map(dead).collect())
}

pub async fn counted(client: &Connection) -> Result<Counted, PgError> {
    let sequence = client.query_one(&client.prepare_once(SEQUENCE).await?, &[]).await?.get(0);
    let rows = client.query(&client.prepare_once(PROCESSED).await?, &[]).await?;
    Ok(Counted { sequence, processed: rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect() })
}

/// Messages that wait while nobody moves the cursor of their lane: the lane, how long, and whether the relay is paused.
pub async fn standing(client: &Connection) -> Result<Option<(String, f64, bool)>, PgError> {
    if !client.query_one(&client.prepare_once(MAY_STAND).await?, &[]).await?.get::<_, bool>(0) {
        return Ok(None);
    }
    let row = client.query_opt(&client.prepare_once(STANDING).await?, &[]).await?;
    Ok(row.map(|row| (row.get(0), row.get(1), row.get(2))))
}

/// Retries that are due while nobody owns a lane: the group, and how long.
pub async fn stranded(client: &Connection) -> Result<Option<(String, f64)>, PgError> {
    let row = client.query_opt(&client.prepare_once(STRANDED).await?, &[]).await?;
    Ok(row.map(|row| (row.get(0), row.get(1))))
}

/// Role, state, how many.
pub async fn agents(client: &Connection) -> Result<Vec<(String, String, i64)>, PgError> {
    let rows = client.query(&client.prepare_once(AGENTS).await?, &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
}

/// Live agents whose file differs from that of most.
pub async fn mismatch(client: &Connection) -> Result<i64, PgError> {
    Ok(client.query_one(&client.prepare_once(MISMATCH).await?, &[]).await?.get(0))
}

/// Of the agent that has been silent for longest without having said goodbye, in seconds.
pub async fn silence(client: &Connection) -> Result<f64, PgError> {
    Ok(client.query_one(&client.prepare_once(SILENCE).await?, &[]).await?.get(0))
}

/// The age of the oldest open transaction, in seconds, as far as this user may see.
pub async fn oldest_transaction(client: &Connection) -> Result<f64, PgError> {
    Ok(client.query_one(&client.prepare_once(OLDEST_TRANSACTION).await?, &[]).await?.get(0))
}

/// The database's clock, as it writes it.
pub async fn now(client: &Connection) -> Result<String, PgError> {
    Ok(client.query_one(&client.prepare_once(NOW).await?, &[]).await?.get(0))
}

pub async fn replayed_since(client: &Connection, since: &str) -> Result<Replayed, PgError> {
    let rows = client.query(&client.prepare_once(REPLAYED).await?, &[&since]).await?;
    Ok(Replayed {
        ended: rows.iter().map(|row| (row.get(0), row.get(1))).collect(),
        until: rows.first().map(|row| row.get(2)),
    })
}
