//! The groups that this database knows, and how one is forgotten.

use std::collections::HashMap;
use std::time::Duration;

use serde::Serialize;

use super::connect::{Connection, PgError};
use super::sql::statements;
use crate::domain::delivery::TopicPartition;

statements! {
    /// Alive is who has been heard of within that time and has not said goodbye.
    GROUPS = "
        select g.name, g.topics, g.kafka_group,
          (select count(*) from outboxd.group_positions p where p.consumer_group = g.name),
          array(select a.name from outboxd.agents a where g.name = any(a.groups) and a.status not in ('stopped', 'inactive')
            and a.last_heartbeat_at > clock_timestamp() - $1::bigint * interval '1 ms' order by a.name),
          g.cluster_id
        from outboxd.groups g order by g.name";

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
        do update set next_offset = excluded.next_offset, updated_at = clock_timestamp()";

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
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    pub name: String,
    pub topics: Vec<String>,
    pub kafka_group: String,
    pub cluster_id: String,
    /// How many partitions it has a position in.
    pub positions: i64,
    /// The names of those that are alive.
    pub agents: Vec<String>,
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
        })
        .collect())
}

/// Removes the group with its positions, so that retention does not wait for it; false: there is none, or an agent of it
/// is alive. Its evidence stays, for its own retention: if the group comes back, what it handled is not handled again.
pub async fn forget(client: &Connection, group: &str, inactive_after: Duration) -> Result<bool, PgError> {
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
    let topics = moves.iter().map(|wanted| wanted.at.0.as_str()).collect();
    let partitions = moves.iter().map(|wanted| wanted.at.1).collect();
    (topics, partitions, moves.iter().map(|wanted| wanted.to).collect())
}

/// Where the group stands, by topic and partition.
pub async fn positions(client: &Connection, group: &Group) -> Result<HashMap<TopicPartition, i64>, PgError> {
    let rows = client.query(POSITIONS, &[&group.name, &group.cluster_id]).await?;
    Ok(rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect())
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

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 2)
}
