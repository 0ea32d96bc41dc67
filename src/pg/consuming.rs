//! Groups that begin: what they are to this database, and where they stand. A database that does not answer is an error
//! here, never an empty answer.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use deadpool_postgres::GenericClient;
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use super::connect::PgError;
use super::pool::Lent;
use super::sql::statements;
use crate::domain::delivery::TopicPartition;

statements! {
    /// What was ordered of its job before the group began. Locked: an order that comes now finds the group.
    PAUSED_BEFORE = "select paused_at, paused_by from outboxd.jobs where name = 'consume-' || $1 for update";

    DECLARE = "
        insert into outboxd.groups (name, kafka_group, cluster_id, paused_at, paused_by) values ($1, $2, $3, $4, $5)
        on conflict (name) do nothing returning name";

    /// From now on the group itself is paused.
    PAUSED_BY_GROUP = "
        update outboxd.jobs set paused_at = null, paused_by = null
        where name = 'consume-' || $1 and paused_at is not null";

    DECLARED = "select kafka_group, cluster_id from outboxd.groups where name = $1";

    SUBSCRIBE = "update outboxd.groups set topics = $2 where name = $1 and topics <> $2";

    OWNER_OF_KAFKA_GROUP = "select name from outboxd.groups where cluster_id = $1 and kafka_group = $2";

    START_AT = "
        insert into outboxd.group_positions (consumer_group, cluster_id, topic, partition, next_offset)
        select $1, $2, at.topic, at.partition, at.next_offset
        from unnest($3::text[], $4::integer[], $5::bigint[]) as at (topic, partition, next_offset)
        on conflict do nothing";

    /// At an assignment. The one way for a consumer to set a position back: if the topic is another, or its log does not
    /// hold it any more.
    SETTLE = "
        insert into outboxd.group_positions as p (consumer_group, cluster_id, topic, partition, next_offset, topic_id)
        select $1, $2, $3, $4, $5, $6 where outboxd.durable()
        on conflict (consumer_group, cluster_id, topic, partition) do update set
          next_offset = case when $7 then excluded.next_offset else p.next_offset end,
          topic_id = coalesce(excluded.topic_id, p.topic_id), updated_at = clock_timestamp()
        where $7 or p.topic_id is distinct from excluded.topic_id";

    POSITIONS = "
        select topic, partition, next_offset, topic_id from outboxd.group_positions
        where consumer_group = $1 and cluster_id = $2 and topic = any($3)";

    FUNCTION_EXISTS = "select to_regprocedure($1) is not null";

    /// For `dev`, whose embedded broker forgets everything at its end.
    FORGET_GROUPS = "delete from outboxd.groups";
}

/// What the group is to this database.
#[derive(Debug, PartialEq, Eq)]
pub enum Declared {
    /// Its first start: where it begins is still to be stored.
    New,
    Known,
    /// The name or its Kafka group belongs to something else.
    Refused(String),
}

/// What the group is to this database, before anything is entered.
pub async fn standing(
    client: &impl GenericClient,
    group: &str,
    kafka_group: &str,
    cluster_id: &str,
) -> Result<Declared, PgError> {
    let owner = client.query_opt(OWNER_OF_KAFKA_GROUP, &[&cluster_id, &kafka_group]).await?;
    if let Some(owner) = owner.map(|row| row.get::<_, String>(0))
        && owner != group
    {
        return Ok(Declared::Refused(format!(
            "Kafka group `{kafka_group}` is used by group `{owner}` already: two groups cannot share its offsets"
        )));
    }
    let Some(row) = client.query_opt(DECLARED, &[&group]).await? else { return Ok(Declared::New) };
    let (its_group, its_cluster): (String, String) = (row.get(0), row.get(1));
    if its_cluster != cluster_id {
        return Ok(Declared::Refused(format!(
            "group `{group}` began on Kafka cluster {its_cluster}, and this is {cluster_id}: its positions mean \
             nothing here; give the group another name"
        )));
    }
    if its_group != kafka_group {
        return Ok(Declared::Refused(format!(
            "group `{group}` began as Kafka group `{its_group}`, and `{kafka_group}` knows nothing of its offsets; \
             set kafka_group back, or give the group another name"
        )));
    }
    Ok(Declared::Known)
}

/// Enters a group at its first start, with where it begins; refuses one that is not what it was.
pub async fn declare(
    client: &mut Lent,
    group: &str,
    kafka_group: &str,
    cluster_id: &str,
    starts: &[(TopicPartition, i64)],
) -> Result<Declared, PgError> {
    let transaction = client.transaction().await?;
    let job = transaction.query_opt(PAUSED_BEFORE, &[&group]).await?;
    let (paused_at, paused_by): (Option<DateTime<Utc>>, Option<String>) =
        job.map(|job| (job.get(0), job.get(1))).unwrap_or_default();
    let entered =
        transaction.query_opt(DECLARE, &[&group, &kafka_group, &cluster_id, &paused_at, &paused_by]).await?;
    if entered.is_none() {
        return standing(&transaction, group, kafka_group, cluster_id).await;
    }
    transaction.execute(PAUSED_BY_GROUP, &[&group]).await?;
    let topics: Vec<&str> = starts.iter().map(|((topic, _), _)| &**topic).collect();
    let partitions: Vec<i32> = starts.iter().map(|((_, partition), _)| *partition).collect();
    let offsets: Vec<i64> = starts.iter().map(|(_, offset)| *offset).collect();
    transaction.execute(START_AT, &[&group, &cluster_id, &topics, &partitions, &offsets]).await?;
    transaction.commit().await?;
    Ok(Declared::New)
}

/// What the group reads: retention waits for it, also while none of its consumers runs.
pub async fn subscribe(client: &Client, group: &str, topics: &[String]) -> Result<(), PgError> {
    client.execute(SUBSCRIBE, &[&group, &topics]).await?;
    Ok(())
}

/// Where the group stands in a partition.
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    pub next: i64,
    /// Of the topic; `None` if the broker told none.
    pub topic_id: Option<Uuid>,
}

/// Where the group stands, by topic and partition.
pub async fn positions(
    client: &Client,
    group: &str,
    cluster_id: &str,
    topics: &[String],
) -> Result<HashMap<TopicPartition, Stored>, PgError> {
    let rows = client.query(POSITIONS, &[&group, &cluster_id, &topics]).await?;
    let position = |row: &Row| {
        let at = (Arc::from(row.get::<_, &str>(0)), row.get(1));
        (at, Stored { next: row.get(2), topic_id: row.get(3) })
    };
    Ok(rows.iter().map(position).collect())
}

/// Where the group begins in a partition that it was assigned, and of which topic that is.
#[derive(Clone, Debug)]
pub struct Settled<'a> {
    pub at: &'a TopicPartition,
    pub start: i64,
    pub topic_id: Option<Uuid>,
    /// What is stored is no place in this log: it goes back to the start.
    pub goes_back: bool,
}

/// Stores it.
pub async fn settle(
    client: &Client,
    group: &str,
    cluster_id: &str,
    settled: &Settled<'_>,
) -> Result<(), PgError> {
    let Settled { at: (topic, partition), start, topic_id, goes_back } = settled;
    client.execute(SETTLE, &[&group, &cluster_id, &&**topic, partition, start, topic_id, goes_back]).await?;
    Ok(())
}

/// Is there such a function, given with its arguments?
pub async fn function_exists(client: &Client, function: &str) -> Result<bool, PgError> {
    Ok(client.query_one(FUNCTION_EXISTS, &[&function]).await?.get(0))
}

/// Forgets which cluster each group began with.
pub async fn forget_groups(client: &Client) -> Result<(), PgError> {
    client.execute(FORGET_GROUPS, &[]).await?;
    Ok(())
}
