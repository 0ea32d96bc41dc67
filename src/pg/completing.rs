//! What a group has handled: looked up before anything is, written when it is done, with the positions that follow.

use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use deadpool_postgres::{GenericClient, Transaction};
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::{IsNull, ToSql, Type, accepts, to_sql_checked};
use uuid::Uuid;

use super::claims::{self, Claim};
use super::connect::PgError;
use super::failing::{self, Failed};
use super::pool::Lent;
use super::sql::statements;
use super::starts;
use crate::domain::delivery::{Record, TopicPartition};
use crate::domain::identity::millis_of;

statements! {
    /// What has evidence or is among the failures, by its id, and by its place whose key is held. The ids are sorted, and
    /// each run of them lies in one leaf: one walk through its primary key, and no other leaf is opened. Without `offset 0`
    /// the planner may join afterwards, and read all between the first and the last. Whether there are failures, or held
    /// keys, is asked once.
    LOOK_UP = "
        select found.message_id, null::integer as held
        from unnest($3::integer[], $4::integer[]) as run (first, last)
        cross join lateral (
          select h.message_id from outboxd.handled h
          where h.consumer_group = $1 and h.message_id = any (($2::uuid[])[run.first:run.last])
            and h.message_id between ($2::uuid[])[run.first] and ($2::uuid[])[run.last]
            and h.message_id between ($2::uuid[])[1] and ($2::uuid[])[cardinality($2::uuid[])]
          offset 0
        ) found
        union all
        select wanted.id, null from unnest($2::uuid[]) as wanted (id)
        cross join lateral (
          select from outboxd.failures f where f.consumer_group = $1 and f.message_id = wanted.id limit 1
        ) found
        where (select a.consumer_group = $1 from outboxd.failures a
          where a.consumer_group >= $1 order by a.consumer_group limit 1)
        union all
        select null, wanted.place::integer
        from unnest($5::bytea[], $6::integer[]) with ordinality as wanted (key, topic, place)
        cross join lateral (
          select from outboxd.held_keys k
          where k.consumer_group = $1 and k.topic = ($7::text[])[wanted.topic] and k.key_digest = sha256(wanted.key) limit 1
        ) found
        where (select a.consumer_group = $1 from outboxd.held_keys a
          where a.consumer_group >= $1 order by a.consumer_group limit 1)";

    /// The fast way, for what nobody else has evidence of.
    NEW_EVIDENCE = "
        copy outboxd.handled (consumer_group, message_id, topic, partition, \"offset\", agent, attempt, duplicate_of, took)
        from stdin (format binary)";

    /// The topics are those that the messages name by their place.
    EVIDENCE = "
        insert into outboxd.handled
          (consumer_group, message_id, topic, partition, \"offset\", agent, attempt, duplicate_of, took)
        select $1, e.message_id, ($3::text[])[e.topic], e.partition, e.\"offset\", $2, e.attempt, e.duplicate_of,
          e.micros * interval '1 microsecond'
        from unnest($4::uuid[], $5::integer[], $6::integer[], $7::bigint[], $8::integer[], $9::uuid[], $10::bigint[])
          as e (message_id, topic, partition, \"offset\", attempt, duplicate_of, micros)
        on conflict (consumer_group, message_id) do nothing";

    /// What a transaction of several statements begins with. A process that is frozen in the middle of it must not keep
    /// others from the same messages.
    DURABLE = "select outboxd.durable(), set_config('idle_in_transaction_session_timeout', '10s', true)";

    /// Rises only, whoever is late; of another topic than it is of now it says nothing.
    MOVE = "
        insert into outboxd.group_positions as p (consumer_group, cluster_id, topic, partition, next_offset, topic_id)
        select $1, $2, at.topic, at.partition, at.next_offset, at.topic_id
        from unnest($3::text[], $4::integer[], $5::bigint[], $6::uuid[]) as at (topic, partition, next_offset, topic_id)
        order by at.topic, at.partition
        on conflict (consumer_group, cluster_id, topic, partition)
        do update set next_offset = excluded.next_offset, updated_at = clock_timestamp()
        where p.next_offset < excluded.next_offset and p.topic_id is not distinct from excluded.topic_id";
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

/// What a group knows of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    #[default]
    New,
    /// There is evidence of it, or it is among the failures.
    Known,
    /// Its key is held.
    Held,
}

/// A message to be looked up; without a key it is not asked whether that is held.
#[derive(Clone, Copy, Debug)]
pub struct LookedFor<'a> {
    pub id: Uuid,
    pub topic: &'a str,
    pub key: Option<&'a [u8]>,
}

/// What the group knows of each of these: one statement a batch.
pub async fn look_up(
    client: &Lent,
    group: &str,
    messages: &[LookedFor<'_>],
) -> Result<Vec<Standing>, PgError> {
    let mut order: Vec<usize> = (0..messages.len()).collect();
    order.sort_unstable_by_key(|place| messages[*place].id);
    let sorted = || order.iter().map(|place| &messages[*place]);
    let ids: Vec<Uuid> = sorted().map(|message| message.id).collect();
    let keys: Vec<Option<&[u8]>> = sorted().map(|message| message.key).collect();
    let (topics, places) = topics(sorted().map(|message| message.topic));
    let (first, last) = runs(&ids);
    let statement = client.prepare_cached(LOOK_UP).await?;
    let rows = client.query(&statement, &[&group, &ids, &first, &last, &keys, &places, &topics]).await?;
    let mut standings = vec![Standing::New; messages.len()];
    for row in rows {
        if let Some(id) = row.get::<_, Option<Uuid>>(0) {
            let first = ids.partition_point(|before| *before < id);
            let same = ids[first..].iter().take_while(|same| **same == id).count();
            for place in &order[first..first + same] {
                standings[*place] = Standing::Known;
            }
        } else if let Some(standing) = usize::try_from(row.get::<_, i32>(1) - 1)
            .ok()
            .and_then(|place| standings.get_mut(*order.get(place)?))
            && *standing == Standing::New
        {
            *standing = Standing::Held;
        }
    }
    Ok(standings)
}

/// The first and last place, from 1, of those that lie in the same hour: no leaf of the evidence ends within one.
fn runs(sorted: &[Uuid]) -> (Vec<i32>, Vec<i32>) {
    let hour = |id: &Uuid| millis_of(*id) / 3_600_000;
    let mut place = 0;
    let runs = sorted.chunk_by(|one, next| hour(one) == hour(next)).map(|run| {
        let first = place + 1;
        place += i32::try_from(run.len()).unwrap_or(i32::MAX);
        (first, place)
    });
    runs.unzip()
}

/// The different ones, and of each its place among them, from 1.
fn topics<'a>(all: impl Iterator<Item = &'a str>) -> (Vec<&'a str>, Vec<i32>) {
    let mut topics: Vec<&str> = Vec::new();
    let places = all.map(|topic| {
        let known = topics.iter().position(|known| *known == topic);
        let place = known.unwrap_or_else(|| {
            topics.push(topic);
            topics.len() - 1
        });
        i32::try_from(place + 1).unwrap_or(i32::MAX)
    });
    let places = places.collect();
    (topics, places)
}

/// Work that is written together.
#[derive(Debug, Default)]
pub struct Completion {
    pub finished: Vec<Finished>,
    pub failed: Vec<Failed>,
    /// Of the finished ones.
    pub claims: Vec<Claim>,
    /// Of those that came to nothing.
    pub released: Vec<Claim>,
    /// In doubt no more.
    pub cleared: Vec<Uuid>,
    pub positions: Vec<Position>,
}

/// How far a group is in a partition of that topic.
#[derive(Clone, Debug)]
pub struct Position {
    pub at: TopicPartition,
    pub topic_id: Option<Uuid>,
    pub next: i64,
}

impl Completion {
    pub fn is_empty(&self) -> bool {
        let has_messages = !self.finished.is_empty() || !self.failed.is_empty() || !self.cleared.is_empty();
        !has_messages && self.released.is_empty() && self.positions.is_empty()
    }
}

/// Writes what was finished: evidence, failures, keys and positions in one transaction. Says how many claims had been lost to
/// another agent meanwhile; their effects have happened, so the evidence stands.
pub async fn complete(
    client: &mut Lent,
    scope: Scope<'_>,
    completion: &Completion,
) -> Result<usize, PgError> {
    match try_complete(client, scope, completion, true).await {
        // Somebody was faster with one of them.
        Err(error) if error.is_duplicate() => try_complete(client, scope, completion, false).await,
        done => done,
    }
}

async fn try_complete(
    client: &mut Lent,
    scope: Scope<'_>,
    completion: &Completion,
    all_new: bool,
) -> Result<usize, PgError> {
    let transaction = client.transaction().await?;
    be_durable(&transaction).await?;
    if all_new {
        copy(&transaction, scope, &completion.finished).await?;
    } else {
        write(&transaction, scope, &completion.finished).await?;
    }
    failing::fail(&transaction, scope, &completion.failed).await?;
    let lost = claims::finish(&transaction, scope.group, &completion.claims).await?;
    claims::release(&transaction, scope.group, &completion.released).await?;
    starts::forget(&transaction, scope.group, &completion.cleared).await?;
    move_to(&transaction, scope, &completion.positions).await?;
    transaction.commit().await?;
    Ok(lost)
}

/// The commit waits for the flush, whatever the session says.
pub(super) async fn be_durable(transaction: &Transaction<'_>) -> Result<(), PgError> {
    let statement = transaction.prepare_cached(DURABLE).await?;
    transaction.query_one(&statement, &[]).await?;
    Ok(())
}

/// Inserts evidence where there is none; fails if there is.
async fn copy(transaction: &Transaction<'_>, scope: Scope<'_>, finished: &[Finished]) -> Result<(), PgError> {
    if finished.is_empty() {
        return Ok(());
    }
    let statement = transaction.prepare_cached(NEW_EVIDENCE).await?;
    let sink = transaction.copy_in(&statement).await?;
    let mut writer = pin!(BinaryCopyInWriter::new(sink, COLUMNS));
    let Scope { group, agent_name, .. } = scope;
    for message in finished {
        let took = message.took.map(Interval);
        let row: [&(dyn ToSql + Sync); 9] = [
            &group,
            &message.message_id,
            &&*message.topic,
            &message.partition,
            &message.offset,
            &agent_name,
            &message.attempt,
            &message.duplicate_of,
            &took,
        ];
        writer.as_mut().write(&row).await?;
    }
    writer.finish().await?;
    Ok(())
}

const COLUMNS: &[Type] = &[
    Type::TEXT,
    Type::UUID,
    Type::TEXT,
    Type::INT4,
    Type::INT8,
    Type::TEXT,
    Type::INT4,
    Type::UUID,
    Type::INTERVAL,
];

/// As the server has it: microseconds, days, months.
#[derive(Debug)]
struct Interval(Duration);

impl ToSql for Interval {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.put_i64(i64::try_from(self.0.as_micros())?);
        out.put_i64(0);
        Ok(IsNull::No)
    }

    accepts!(INTERVAL);
    to_sql_checked!();
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
    let (topics, places) = topics(finished.iter().map(|message| &*message.topic));
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
    positions: &[Position],
) -> Result<(), PgError> {
    if positions.is_empty() {
        return Ok(());
    }
    let topics: Vec<&str> = positions.iter().map(|position| &*position.at.0).collect();
    let partitions: Vec<i32> = positions.iter().map(|position| position.at.1).collect();
    let offsets: Vec<i64> = positions.iter().map(|position| position.next).collect();
    let ids: Vec<Option<Uuid>> = positions.iter().map(|position| position.topic_id).collect();
    let statement = transaction.prepare_cached(MOVE).await?;
    let Scope { group, cluster_id, .. } = scope;
    transaction.execute(&statement, &[&group, &cluster_id, &topics, &partitions, &offsets, &ids]).await?;
    Ok(())
}
