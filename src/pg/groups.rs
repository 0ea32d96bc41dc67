//! The groups that this database knows, and how one is forgotten.

use std::time::Duration;

use serde::Serialize;

use super::connect::{Connection, PgError};
use super::sql::statements;

statements! {
    /// Alive is who has been heard of within that time and has not said goodbye.
    GROUPS = "
        select g.name, g.topics, g.kafka_group,
          (select count(*) from outboxd.group_positions p where p.consumer_group = g.name),
          array(select a.name from outboxd.agents a where g.name = any(a.groups) and a.status not in ('stopped', 'inactive')
            and a.last_heartbeat_at > clock_timestamp() - $1::bigint * interval '1 ms' order by a.name)
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
}

/// A line of `groups list`.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    pub name: String,
    pub topics: Vec<String>,
    pub kafka_group: String,
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
        })
        .collect())
}

/// Removes the group with its positions, so that retention does not wait for it; false: there is none, or an agent of it
/// is alive. Its evidence stays, for its own retention: if the group comes back, what it handled is not handled again.
pub async fn forget(client: &Connection, group: &str, inactive_after: Duration) -> Result<bool, PgError> {
    Ok(client.query_one(FORGET, &[&group, &millis(inactive_after)]).await?.get::<_, i64>(0) > 0)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 2)
}
