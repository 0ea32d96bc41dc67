//! The groups that this database knows, and how one is forgotten.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio_postgres::GenericClient;
use utoipa::ToSchema;

use super::connect::{Connection, PgError};
use super::sql::{millis, statements};
use crate::domain::delivery::TopicPartition;

statements! {
    /// Alive is who has been heard of within that time and has not said goodbye.
    GROUPS = "
        select g.name, g.topics, g.kafka_group,
          (select count(*) from outboxd.group_positions p where p.consumer_group = g.name),
          array(select a.name from outboxd.agents a where g.name = any(a.groups) and a.status not in ('stopped', 'inactive')
            and a.last_heartbeat_at > clock_timestamp() - $1::bigint * interval '1 ms' order by a.name),
          g.cluster_id, g.paused_at, g.paused_by, m.lag, m.rate, m.paused_partitions,
          (select count(*) from outboxd.failure_states f where f.consumer_group = g.name and f.state in ('due', 'retrying', 'running')),
          (select count(*) from outboxd.failure_states f where f.consumer_group = g.name and f.state = 'dead'),
          (select count(*) from outboxd.held_keys h where h.consumer_group = g.name)
        from outboxd.groups g
        cross join lateral (
          select sum(m.lag)::bigint as lag, sum(m.rate)::double precision as rate, sum(m.paused_partitions) as paused_partitions
          from outboxd.members m where m.consumer_group = g.name and m.seen_at > clock_timestamp() - interval '5 s'
        ) m
        order by g.name";

    SHOWN = "
        select case when g.breaker_until > clock_timestamp() then g.breaker_until end, g.breaker_reason,
          (select count(*) from outboxd.failure_states f where f.consumer_group = $1 and f.state = 'held')
        from outboxd.groups g where g.name = $1";

    STANDS_AT = "
        select topic, partition, next_offset, updated_at from outboxd.group_positions
        where consumer_group = $1 order by topic, partition";

    MEMBERS = "
        select agent, in_flight, error_rate::double precision, takes_retries from outboxd.members
        where consumer_group = $1 and seen_at > clock_timestamp() - interval '5 s' order by agent";

    /// Nothing while an agent of it is alive, asked by the same statement.
    FORGET = "
        with gone as (
          delete from outboxd.groups g where g.name = $1 and not exists (
            select from outboxd.agents a where g.name = any(a.groups) and a.status not in ('stopped', 'inactive')
              and a.last_heartbeat_at > clock_timestamp() - $2::bigint * interval '1 ms')
          returning name
        ), positions as (
          delete from outboxd.group_positions p using gone where p.consumer_group = gone.name
        )
        select count(*) from gone";

    /// Locks the group, unless an agent of it is alive.
    LOCK = "
        select g.cluster_id from outboxd.groups g
        where g.name = $1 and outboxd.durable() and not exists (
          select from outboxd.agents a where g.name = any(a.groups) and a.status not in ('stopped', 'inactive')
            and a.last_heartbeat_at > clock_timestamp() - $2::bigint * interval '1 ms')
        for update";

    POSITIONS = "
        select topic, partition, next_offset from outboxd.group_positions where consumer_group = $1 and cluster_id = $2";

    /// Wherever it is: the one way for a position to go back.
    SET_POSITIONS = "
        insert into outboxd.group_positions as p (consumer_group, cluster_id, topic, partition, next_offset)
        select $1, $2, at.topic, at.partition, at.next_offset
        from unnest($3::text[], $4::integer[], $5::bigint[]) as at (topic, partition, next_offset)
        on conflict (consumer_group, cluster_id, topic, partition)
        do update set next_offset = excluded.next_offset, topic_id = null, updated_at = clock_timestamp()";

    HANDLED_FROM = "
        select count(*) from unnest($2::text[], $3::integer[], $4::bigint[]) as at (topic, partition, first)
        join outboxd.handled h on h.consumer_group = $1 and h.topic = at.topic and h.partition = at.partition
          and h.\"offset\" >= at.first";

    /// Evidence, and the operations that those messages did, in one.
    FORGET_HANDLED_FROM = "
        with gone as (
          delete from outboxd.handled h
          using unnest($2::text[], $3::integer[], $4::bigint[]) as at (topic, partition, first)
          where h.consumer_group = $1 and h.topic = at.topic and h.partition = at.partition and h.\"offset\" >= at.first
          returning h.message_id
        ), keys as (
          delete from outboxd.idempotency_keys k using gone
          where k.consumer_group = $1 and k.message_id = gone.message_id
        )
        select count(*) from gone";
}

/// A line of `groups list`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Group {
    pub name: String,
    pub topics: Vec<String>,
    pub kafka_group: String,
    pub cluster_id: String,
    /// How many partitions it has a position in.
    pub positions: i64,
    /// The names of those that are alive.
    pub agents: Vec<String>,
    pub paused_at: Option<DateTime<Utc>>,
    pub paused_by: Option<String>,
    /// Messages of its partitions that are not finished, as those that are at work say; `None`: nobody is.
    pub lag: Option<i64>,
    /// Handled a second, lately.
    pub rate: Option<f64>,
    /// Not read, because they are full.
    pub paused_partitions: Option<i64>,
    /// To be tried again.
    pub failures: i64,
    pub dead_letters: i64,
    pub held_keys: i64,
}

/// One group, for `groups show`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Shown {
    #[serde(flatten)]
    pub group: Group,
    pub breaker_open_until: Option<DateTime<Utc>>,
    pub breaker_reason: Option<String>,
    /// Behind a failed one of their key.
    pub held: i64,
    pub at_work: Vec<AtWork>,
    pub partitions: Vec<Position>,
}

/// An agent that works for it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct AtWork {
    pub agent: String,
    pub in_flight: i32,
    /// Of the last minute, 0 to 1.
    pub error_rate: f64,
    pub takes_retries: bool,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Position {
    pub topic: String,
    pub partition: i32,
    pub next_offset: i64,
    pub updated_at: DateTime<Utc>,
}

/// What is known of that group besides its line in the list.
pub async fn show(client: &Connection, group: Group) -> Result<Shown, PgError> {
    let row = client.query_one(SHOWN, &[&group.name]).await?;
    let members = client.query(MEMBERS, &[&group.name]).await?;
    let positions = client.query(STANDS_AT, &[&group.name]).await?;
    Ok(Shown {
        group,
        breaker_open_until: row.get(0),
        breaker_reason: row.get(1),
        held: row.get(2),
        at_work: members
            .iter()
            .map(|row| AtWork {
                agent: row.get(0),
                in_flight: row.get(1),
                error_rate: row.get(2),
                takes_retries: row.get(3),
            })
            .collect(),
        partitions: positions
            .iter()
            .map(|row| Position {
                topic: row.get(0),
                partition: row.get(1),
                next_offset: row.get(2),
                updated_at: row.get(3),
            })
            .collect(),
    })
}

/// All of them. An agent that was not heard of for `inactive_after` is not alive.
pub async fn list(client: &Connection, inactive_after: Duration) -> Result<Vec<Group>, PgError> {
    let rows = client.query(GROUPS, &[&millis(inactive_after)]).await?;
    Ok(rows
        .iter()
        .map(|row| Group {
            name: row.get(0),
            topics: row.get(1),
            kafka_group: row.get(2),
            positions: row.get(3),
            agents: row.get(4),
            cluster_id: row.get(5),
            paused_at: row.get(6),
            paused_by: row.get(7),
            lag: row.get(8),
            rate: row.get(9),
            paused_partitions: row.get(10),
            failures: row.get(11),
            dead_letters: row.get(12),
            held_keys: row.get(13),
        })
        .collect())
}

/// Removes the group with its positions, so that retention does not wait for it; false: there is none, or an agent of it
/// is alive. Its evidence stays, for its own retention: if the group comes back, what it handled is not handled again.
pub async fn forget(
    client: &impl GenericClient,
    group: &str,
    inactive_after: Duration,
) -> Result<bool, PgError> {
    Ok(client.query_one(FORGET, &[&group, &millis(inactive_after)]).await?.get::<_, i64>(0) > 0)
}

/// A partition in which a group is to stand elsewhere.
#[derive(Clone, Debug)]
pub struct Move {
    pub at: TopicPartition,
    /// `None`: it has no position there.
    pub from: Option<i64>,
    pub to: i64,
}

fn columns(moves: &[Move]) -> (Vec<&str>, Vec<i32>, Vec<i64>) {
    let topics = moves.iter().map(|wanted| &*wanted.at.0).collect();
    let partitions = moves.iter().map(|wanted| wanted.at.1).collect();
    (topics, partitions, moves.iter().map(|wanted| wanted.to).collect())
}

/// Where the group stands, by topic and partition.
pub async fn positions(client: &Connection, group: &Group) -> Result<HashMap<TopicPartition, i64>, PgError> {
    let rows = client.query(POSITIONS, &[&group.name, &group.cluster_id]).await?;
    Ok(rows.iter().map(|row| ((row.get::<_, &str>(0).into(), row.get(1)), row.get(2))).collect())
}

/// How much evidence the group has from these places on. Reads all of its evidence.
pub async fn handled_from(client: &Connection, group: &str, moves: &[Move]) -> Result<i64, PgError> {
    let (topics, partitions, offsets) = columns(moves);
    Ok(client.query_one(HANDLED_FROM, &[&group, &topics, &partitions, &offsets]).await?.get(0))
}

/// Moves a group, and with `rehandle` removes what says that it has handled anything from there on, in one transaction;
/// says how much of that. `None`: an agent of it is alive.
pub async fn reset(
    client: &mut Connection,
    group: &str,
    moves: &[Move],
    rehandle: bool,
    inactive_after: Duration,
) -> Result<Option<i64>, PgError> {
    let (topics, partitions, offsets) = columns(moves);
    let transaction = client.transaction().await?;
    let Some(row) = transaction.query_opt(LOCK, &[&group, &millis(inactive_after)]).await? else {
        return Ok(None);
    };
    let cluster_id: &str = row.get(0);
    transaction.execute(SET_POSITIONS, &[&group, &cluster_id, &topics, &partitions, &offsets]).await?;
    let mut removed = 0;
    if rehandle {
        let row =
            transaction.query_one(FORGET_HANDLED_FROM, &[&group, &topics, &partitions, &offsets]).await?;
        removed = row.get(0);
    }
    transaction.commit().await?;
    Ok(Some(removed))
}
