//! What groups did: positions, evidence, and the operations they claim. A database that does not answer is an error
//! here, never an empty answer.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio_postgres::{Client, GenericClient, Row, Transaction};
use uuid::Uuid;

use super::connect::PgError;
use super::sql::statements;
use crate::domain::delivery::TopicPartition;

statements! {
    DECLARE = "
        insert into outboxd.groups (name, kafka_group, cluster_id) values ($1, $2, $3)
        on conflict (name) do nothing returning name";

    DECLARED = "select kafka_group, cluster_id from outboxd.groups where name = $1";

    SUBSCRIBE = "update outboxd.groups set topics = $2 where name = $1 and topics <> $2";

    OWNER_OF_KAFKA_GROUP = "select name from outboxd.groups where cluster_id = $1 and kafka_group = $2";

    START_AT = "
        insert into outboxd.group_positions (consumer_group, cluster_id, topic, partition, next_offset)
        select $1, $2, at.topic, at.partition, at.next_offset
        from unnest($3::text[], $4::integer[], $5::bigint[]) as at (topic, partition, next_offset)
        on conflict do nothing";

    POSITIONS = "
        select topic, partition, next_offset from outboxd.group_positions
        where consumer_group = $1 and cluster_id = $2 and topic = any($3)";

    /// The shape leaves the planner nothing but the primary key: with few rows it would choose a sequential scan.
    LOOK_UP = "
        select found.message_id from unnest($2::uuid[]) as wanted (id)
        cross join lateral (
          select message_id from outboxd.handled h where h.consumer_group = $1 and h.message_id = wanted.id limit 1
        ) found";

    /// Takes keys that are free, whose claim has ended, or that an earlier start of this message left behind: it died, or
    /// its partition was taken from it. Sorted, all in one statement; shows the others.
    CLAIM = "
        with wanted as (
          select namespace, key from unnest($3::text[], $4::text[]) as w (namespace, key)
          where outboxd.durable() order by namespace, key
        ), taken as (
          insert into outboxd.idempotency_keys as k
            (consumer_group, namespace, key, message_id, payload_hash, state, owner, expires_at)
          select $1, w.namespace, w.key, $2, $5, 'claimed', $6, clock_timestamp() + $7::bigint * interval '1 ms'
          from wanted w
          on conflict (consumer_group, namespace, key) do update set message_id = excluded.message_id,
            payload_hash = excluded.payload_hash, claim = excluded.claim, owner = excluded.owner,
            expires_at = excluded.expires_at
          where k.state = 'claimed' and (k.expires_at < clock_timestamp() or k.message_id = excluded.message_id)
          returning k.namespace, k.key, k.claim
        )
        select w.namespace, w.key, t.claim, k.state, k.message_id, k.payload_hash = $5
        from wanted w
        left join taken t using (namespace, key)
        left join outboxd.idempotency_keys k
          on k.consumer_group = $1 and k.namespace = w.namespace and k.key = w.key and t.claim is null";

    /// As `CLAIM`, but finished at once: for an effect in the same transaction.
    CLAIM_DONE = "
        insert into outboxd.idempotency_keys as k
          (consumer_group, namespace, key, message_id, payload_hash, state, owner, done_at)
        select $1, w.namespace, w.key, $2, $5, 'done', $6, clock_timestamp()
        from unnest($3::text[], $4::text[]) as w (namespace, key) order by w.namespace, w.key
        on conflict (consumer_group, namespace, key) do update set message_id = excluded.message_id,
          payload_hash = excluded.payload_hash, state = 'done', claim = excluded.claim, owner = excluded.owner,
          expires_at = null, done_at = excluded.done_at
        where k.state = 'claimed' and (k.expires_at < clock_timestamp() or k.message_id = excluded.message_id)";

    FIND_KEYS = "
        select k.namespace, k.key, null::bigint, k.state, k.message_id, k.payload_hash = $4
        from unnest($2::text[], $3::text[]) as w (namespace, key)
        join outboxd.idempotency_keys k
          on k.consumer_group = $1 and k.namespace = w.namespace and k.key = w.key";

    RELEASE_CLAIMS = "
        delete from outboxd.idempotency_keys k using unnest($2::text[], $3::text[], $4::bigint[]) as c (namespace, key, claim)
        where k.consumer_group = $1 and k.namespace = c.namespace and k.key = c.key and k.claim = c.claim
          and k.state = 'claimed'";

    EVIDENCE = "
        insert into outboxd.handled
          (consumer_group, message_id, topic, partition, \"offset\", agent, attempt, duplicate_of, took)
        select $1, e.message_id, $2, $3, e.\"offset\", $4, e.attempt, e.duplicate_of, e.micros * interval '1 microsecond'
        from unnest($5::uuid[], $6::bigint[], $7::integer[], $8::uuid[], $9::bigint[])
          as e (message_id, \"offset\", attempt, duplicate_of, micros)
        where outboxd.durable()
        on conflict (consumer_group, message_id) do nothing
        returning message_id";

    FINISH_CLAIMS = "
        update outboxd.idempotency_keys k set state = 'done', done_at = clock_timestamp(), expires_at = null
        from unnest($2::text[], $3::text[], $4::bigint[]) as c (namespace, key, claim)
        where k.consumer_group = $1 and k.namespace = c.namespace and k.key = c.key and k.claim = c.claim
          and k.state = 'claimed'";

    /// Rises only, whoever is late.
    MOVE = "
        insert into outboxd.group_positions as p (consumer_group, cluster_id, topic, partition, next_offset)
        values ($1, $2, $3, $4, $5)
        on conflict (consumer_group, cluster_id, topic, partition)
        do update set next_offset = excluded.next_offset, updated_at = clock_timestamp()
        where p.next_offset < excluded.next_offset";

    FUNCTION_EXISTS = "select to_regprocedure($1 || '(outboxd.delivery)') is not null";

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
    client: &mut Client,
    group: &str,
    kafka_group: &str,
    cluster_id: &str,
    starts: &[(TopicPartition, i64)],
) -> Result<Declared, PgError> {
    let transaction = client.transaction().await?;
    if transaction.query_opt(DECLARE, &[&group, &kafka_group, &cluster_id]).await?.is_none() {
        return standing(&transaction, group, kafka_group, cluster_id).await;
    }
    let topics: Vec<&str> = starts.iter().map(|((topic, _), _)| topic.as_str()).collect();
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

/// Where the group stands, by topic and partition.
pub async fn positions(
    client: &impl GenericClient,
    group: &str,
    cluster_id: &str,
    topics: &[String],
) -> Result<HashMap<TopicPartition, i64>, PgError> {
    let rows = client.query(POSITIONS, &[&group, &cluster_id, &topics]).await?;
    Ok(rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect())
}

/// Which of these messages the group has handled: one statement a batch.
pub async fn look_up(
    client: &impl GenericClient,
    group: &str,
    ids: &[Uuid],
) -> Result<HashSet<Uuid>, PgError> {
    let rows = client.query(LOOK_UP, &[&group, &ids]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// An operation as a group knows it: an idempotency key, or a message's own id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OperationKey {
    pub namespace: &'static str,
    pub key: String,
}

/// A key that this agent holds until it completes or releases it.
#[derive(Clone, Debug)]
pub struct Claim {
    pub key: OperationKey,
    pub number: i64,
}

/// What became of an attempt to claim the keys of a message.
#[derive(Debug)]
pub enum Claimed {
    All(Vec<Claim>),
    /// Another message has done this operation.
    Done {
        by: Uuid,
        same_payload: bool,
    },
    /// Another start holds a key now; nothing is held by this one.
    Busy,
}

/// Who claims, for which message.
#[derive(Clone, Copy, Debug)]
pub struct Claimant<'a> {
    pub group: &'a str,
    pub agent: Uuid,
    pub message_id: Uuid,
    pub payload_hash: i64,
}

/// Claims all keys of a message or none. A claim that nobody completes ends after `ttl`.
pub async fn claim(
    client: &impl GenericClient,
    claimant: Claimant<'_>,
    keys: &[OperationKey],
    ttl: Duration,
) -> Result<Claimed, PgError> {
    let (namespaces, names) = columns(keys);
    let ttl = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
    let Claimant { group, agent, message_id, payload_hash } = claimant;
    let rows =
        client.query(CLAIM, &[&group, &message_id, &namespaces, &names, &payload_hash, &agent, &ttl]).await?;
    let claims: Vec<Claim> = rows
        .iter()
        .filter_map(|row| {
            let (namespace, name, number): (&str, &str, Option<i64>) = (row.get(0), row.get(1), row.get(2));
            let key = keys.iter().find(|key| key.namespace == namespace && key.key == name)?;
            Some(Claim { key: key.clone(), number: number? })
        })
        .collect();
    if claims.len() == keys.len() {
        return Ok(Claimed::All(claims));
    }
    let outcome = done(&rows).unwrap_or(Claimed::Busy);
    release(client, group, &claims).await?;
    Ok(outcome)
}

/// The message that finished one of these keys. If it is this very message, its evidence has gone by retention: state and
/// evidence commit together.
fn done(rows: &[Row]) -> Option<Claimed> {
    let row = rows.iter().find(|row| row.get::<_, Option<&str>>(3) == Some("done"))?;
    Some(Claimed::Done { by: row.get(4), same_payload: row.get(5) })
}

fn columns(keys: &[OperationKey]) -> (Vec<&'static str>, Vec<&str>) {
    keys.iter().map(|key| (key.namespace, key.key.as_str())).unzip()
}

/// Gives claims back, so that a later message of that operation can do it.
pub async fn release(client: &impl GenericClient, group: &str, claims: &[Claim]) -> Result<(), PgError> {
    if claims.is_empty() {
        return Ok(());
    }
    let (namespaces, names, numbers) = claim_columns(claims);
    client.execute(RELEASE_CLAIMS, &[&group, &namespaces, &names, &numbers]).await?;
    Ok(())
}

fn claim_columns(claims: &[Claim]) -> (Vec<&'static str>, Vec<&str>, Vec<i64>) {
    let namespaces = claims.iter().map(|claim| claim.key.namespace).collect();
    let names = claims.iter().map(|claim| claim.key.key.as_str()).collect();
    let numbers = claims.iter().map(|claim| claim.number).collect();
    (namespaces, names, numbers)
}

/// A message that is finished, and what the evidence says of it.
#[derive(Clone, Debug)]
pub struct Finished {
    pub message_id: Uuid,
    pub offset: i64,
    pub attempt: i32,
    pub duplicate_of: Option<Uuid>,
    /// How long the handler took; `None` if it was not called, or is about to be.
    pub took: Option<Duration>,
    pub claims: Vec<Claim>,
}

/// Where a completion belongs.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub group: &'a str,
    pub cluster_id: &'a str,
    pub topic: &'a str,
    pub partition: i32,
    pub agent_name: &'a str,
}

/// Writes what was finished: evidence, keys and position in one transaction. Says how many claims had been lost to
/// another agent meanwhile; their effects have happened, so the evidence stands.
pub async fn complete(
    client: &mut Client,
    place: Place<'_>,
    finished: &[Finished],
    next_offset: i64,
) -> Result<usize, PgError> {
    let transaction = client.transaction().await?;
    evidence(&transaction, place, finished).await?;
    let claims: Vec<Claim> = finished.iter().flat_map(|message| message.claims.clone()).collect();
    let lost = finish(&transaction, place.group, &claims).await?;
    move_to(&transaction, place, next_offset).await?;
    transaction.commit().await?;
    Ok(lost)
}

/// Their operations are done. Says how many of the claims had been lost to another agent.
pub async fn finish(client: &impl GenericClient, group: &str, claims: &[Claim]) -> Result<usize, PgError> {
    if claims.is_empty() {
        return Ok(0);
    }
    let (namespaces, names, numbers) = claim_columns(claims);
    let kept = client.execute(FINISH_CLAIMS, &[&group, &namespaces, &names, &numbers]).await?;
    Ok(claims.len().saturating_sub(usize::try_from(kept).unwrap_or(usize::MAX)))
}

/// Inserts evidence; returns the messages that had none before.
pub async fn evidence(
    transaction: &Transaction<'_>,
    place: Place<'_>,
    finished: &[Finished],
) -> Result<HashSet<Uuid>, PgError> {
    let ids: Vec<Uuid> = finished.iter().map(|message| message.message_id).collect();
    let offsets: Vec<i64> = finished.iter().map(|message| message.offset).collect();
    let attempts: Vec<i32> = finished.iter().map(|message| message.attempt).collect();
    let duplicates: Vec<Option<Uuid>> = finished.iter().map(|message| message.duplicate_of).collect();
    let micros: Vec<Option<i64>> = finished
        .iter()
        .map(|message| message.took.map(|took| i64::try_from(took.as_micros()).unwrap_or(i64::MAX)))
        .collect();
    let Place { group, topic, partition, agent_name, .. } = place;
    let rows = transaction
        .query(
            EVIDENCE,
            &[&group, &topic, &partition, &agent_name, &ids, &offsets, &attempts, &duplicates, &micros],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Moves the group's position in that partition up to there.
pub async fn move_to(
    transaction: &Transaction<'_>,
    place: Place<'_>,
    next_offset: i64,
) -> Result<(), PgError> {
    let Place { group, cluster_id, topic, partition, .. } = place;
    transaction.execute(MOVE, &[&group, &cluster_id, &topic, &partition, &next_offset]).await?;
    Ok(())
}

/// Finishes the keys of a message whose effect is part of this transaction.
pub async fn claim_done(
    transaction: &Transaction<'_>,
    claimant: Claimant<'_>,
    keys: &[OperationKey],
) -> Result<Claimed, PgError> {
    let (namespaces, names) = columns(keys);
    let Claimant { group, agent, message_id, payload_hash } = claimant;
    let taken = transaction
        .execute(CLAIM_DONE, &[&group, &message_id, &namespaces, &names, &payload_hash, &agent])
        .await?;
    if usize::try_from(taken).is_ok_and(|taken| taken == keys.len()) {
        return Ok(Claimed::All(Vec::new()));
    }
    let rows = transaction.query(FIND_KEYS, &[&group, &namespaces, &names, &payload_hash]).await?;
    Ok(done(&rows).unwrap_or(Claimed::Busy))
}

/// Is there a function of that name that takes an `outboxd.delivery`?
pub async fn function_exists(client: &impl GenericClient, function: &str) -> Result<bool, PgError> {
    Ok(client.query_one(FUNCTION_EXISTS, &[&function]).await?.get(0))
}

/// Forgets which cluster each group began with.
pub async fn forget_groups(client: &Client) -> Result<(), PgError> {
    client.execute(FORGET_GROUPS, &[]).await?;
    Ok(())
}
