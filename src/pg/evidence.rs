//! What a group has handled: looked up before anything is, written when it is done, with the positions that follow.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::GenericClient;
use uuid::Uuid;

use super::claims::{self, Claim};
use super::connect::PgError;
use super::pool::Lent;
use super::sql::statements;
use crate::domain::delivery::{Record, TopicPartition};

statements! {
    /// The shape leaves the planner nothing but the primary key: with few rows it would choose a sequential scan.
    LOOK_UP = "
        select found.message_id from unnest($2::uuid[]) as wanted (id)
        cross join lateral (
          select message_id from outboxd.handled h where h.consumer_group = $1 and h.message_id = wanted.id limit 1
        ) found";

    /// The topics are those that the messages name by their place.
    EVIDENCE = "
        insert into outboxd.handled
          (consumer_group, message_id, topic, partition, \"offset\", agent, attempt, duplicate_of, took)
        select $1, e.message_id, ($3::text[])[e.topic], e.partition, e.\"offset\", $2, e.attempt, e.duplicate_of,
          e.micros * interval '1 microsecond'
        from unnest($4::uuid[], $5::integer[], $6::integer[], $7::bigint[], $8::integer[], $9::uuid[], $10::bigint[])
          as e (message_id, topic, partition, \"offset\", attempt, duplicate_of, micros)
        where (select outboxd.durable())
        on conflict (consumer_group, message_id) do nothing";

    /// Rises only, whoever is late.
    MOVE = "
        insert into outboxd.group_positions as p (consumer_group, cluster_id, topic, partition, next_offset)
        select $1, $2, at.topic, at.partition, at.next_offset
        from unnest($3::text[], $4::integer[], $5::bigint[]) as at (topic, partition, next_offset)
        where (select outboxd.durable())
        order by at.topic, at.partition
        on conflict (consumer_group, cluster_id, topic, partition)
        do update set next_offset = excluded.next_offset, updated_at = clock_timestamp()
        where p.next_offset < excluded.next_offset";
}

/// Whose evidence it is.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    pub group: &'a str,
    pub cluster_id: &'a str,
    pub agent: Uuid,
    pub agent_name: &'a str,
}

/// A message that is finished, and what the evidence says of it.
#[derive(Clone, Debug)]
pub struct Finished {
    pub message_id: Uuid,
    pub topic: Arc<str>,
    pub partition: i32,
    pub offset: i64,
    pub attempt: i32,
    pub duplicate_of: Option<Uuid>,
    /// How long the handler took; `None` if it was not called, or is about to be.
    pub took: Option<Duration>,
}

impl Finished {
    pub fn new(message_id: Uuid, record: &Record, attempt: u32) -> Self {
        Self {
            message_id,
            topic: Arc::clone(&record.topic),
            partition: record.partition,
            offset: record.offset,
            attempt: i32::try_from(attempt).unwrap_or(i32::MAX),
            duplicate_of: None,
            took: None,
        }
    }
}

/// Which of these messages the group has handled: one statement a batch.
pub async fn look_up(client: &Lent, group: &str, ids: &[Uuid]) -> Result<HashSet<Uuid>, PgError> {
    let statement = client.prepare_cached(LOOK_UP).await?;
    let rows = client.query(&statement, &[&group, &ids]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Work that is written together.
#[derive(Debug, Default)]
pub struct Completion {
    pub finished: Vec<Finished>,
    /// Of the finished ones.
    pub claims: Vec<Claim>,
    /// Of those that came to nothing.
    pub released: Vec<Claim>,
    pub positions: Vec<(TopicPartition, i64)>,
}

impl Completion {
    pub fn is_empty(&self) -> bool {
        self.finished.is_empty() && self.released.is_empty() && self.positions.is_empty()
    }
}

/// Writes what was finished: evidence, keys and positions in one transaction. Says how many claims had been lost to
/// another agent meanwhile; their effects have happened, so the evidence stands.
pub async fn complete(
    client: &mut Lent,
    scope: Scope<'_>,
    completion: &Completion,
) -> Result<usize, PgError> {
    let transaction = client.transaction().await?;
    write(&transaction, scope, &completion.finished).await?;
    let lost = claims::finish(&transaction, scope.group, &completion.claims).await?;
    claims::release(&transaction, scope.group, &completion.released).await?;
    move_to(&transaction, scope, &completion.positions).await?;
    transaction.commit().await?;
    Ok(lost)
}

/// Inserts evidence; says for how many there was none before.
pub async fn write(
    transaction: &impl GenericClient,
    scope: Scope<'_>,
    finished: &[Finished],
) -> Result<u64, PgError> {
    if finished.is_empty() {
        return Ok(0);
    }
    let mut topics: Vec<&str> = Vec::new();
    let mut places = Vec::with_capacity(finished.len());
    for message in finished {
        let known = topics.iter().position(|topic| *topic == &*message.topic);
        let place = known.unwrap_or_else(|| {
            topics.push(&message.topic);
            topics.len() - 1
        });
        places.push(i32::try_from(place + 1).unwrap_or(i32::MAX));
    }
    let ids: Vec<Uuid> = finished.iter().map(|message| message.message_id).collect();
    let partitions: Vec<i32> = finished.iter().map(|message| message.partition).collect();
    let offsets: Vec<i64> = finished.iter().map(|message| message.offset).collect();
    let attempts: Vec<i32> = finished.iter().map(|message| message.attempt).collect();
    let duplicates: Vec<Option<Uuid>> = finished.iter().map(|message| message.duplicate_of).collect();
    let micros: Vec<Option<i64>> = finished
        .iter()
        .map(|message| message.took.map(|took| i64::try_from(took.as_micros()).unwrap_or(i64::MAX)))
        .collect();
    let Scope { group, agent_name, .. } = scope;
    let statement = transaction.prepare_cached(EVIDENCE).await?;
    let written = transaction
        .execute(
            &statement,
            &[
                &group,
                &agent_name,
                &topics,
                &ids,
                &places,
                &partitions,
                &offsets,
                &attempts,
                &duplicates,
                &micros,
            ],
        )
        .await?;
    Ok(written)
}

/// Moves the group's positions up to there.
async fn move_to(
    transaction: &impl GenericClient,
    scope: Scope<'_>,
    positions: &[(TopicPartition, i64)],
) -> Result<(), PgError> {
    if positions.is_empty() {
        return Ok(());
    }
    let topics: Vec<&str> = positions.iter().map(|((topic, _), _)| &**topic).collect();
    let partitions: Vec<i32> = positions.iter().map(|((_, partition), _)| *partition).collect();
    let offsets: Vec<i64> = positions.iter().map(|(_, next)| *next).collect();
    let statement = transaction.prepare_cached(MOVE).await?;
    let Scope { group, cluster_id, .. } = scope;
    transaction.execute(&statement, &[&group, &cluster_id, &topics, &partitions, &offsets]).await?;
    Ok(())
}
