//! What groups failed to handle, as an operator sees it: looked at, tried again, given up.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};
use tokio_postgres::{IsolationLevel, Row};
use uuid::Uuid;

use super::connect::{Connection, PgError};
use super::held::{self, Head, Successor};
use super::reopening;
use super::retry::{Decided, Decision, Entry, Filter, Place};
use super::sql::{millis, statements};
use crate::domain::payload::Payload;

statements! {
    /// What waits behind another is not decided about.
    /// Each group by the primary key, as far as is asked for. A page holds all groups of its last id: the next begins
    /// behind that.
    LIST = "
        with recursive known (name) as (
          select min(consumer_group) from outboxd.failures
          union all
          select (select min(f.consumer_group) from outboxd.failures f where f.consumer_group > known.name)
          from known where known.name is not null
        ), page as (
          select f.* from known
          cross join lateral (
            select message_id, stage, consumer_group, topic, key, type, error, changed_at, place
            from (
              select *, case when f.state in ('dead', 'discarded') then f.state else 'failing' end as stage
              from outboxd.failures f where f.state <> 'held' and f.consumer_group = known.name
            ) f
            where stage = any($1::text[]) and ($2::text is null or known.name = $2)
              and ($3::text is null or topic = $3) and ($4::text is null or key = convert_to($4, 'UTF8'))
              and ($5::text is null or type = $5) and ($6::text is null or strpos(lower(error), lower($6)) > 0)
              and ($7::timestamptz is null or changed_at >= $7) and ($8::timestamptz is null or changed_at < $8)
              and message_id > $9
            order by message_id limit $10
          ) f
          order by f.message_id fetch first ($10) rows with ties
        )
        select * from page order by message_id, consumer_group";

    /// Each group by the primary key.
    FIND_FAILURES = "
        with recursive known (name) as (
          select min(consumer_group) from outboxd.failures
          union all
          select (select min(f.consumer_group) from outboxd.failures f where f.consumer_group > known.name)
          from known where known.name is not null
        )
        select message_id, stage, consumer_group, topic, key, type, error, changed_at, place
        from known cross join unnest($2::uuid[]) as wanted (id)
        cross join lateral (
          select *, case when f.state in ('dead', 'discarded') then f.state else 'failing' end as stage
          from outboxd.failures f
          where f.consumer_group = known.name and f.message_id = wanted.id and f.state <> 'held'
          offset 0
        ) f
        where stage = any($1::text[])
        order by message_id, consumer_group";

    DETAIL = "
        select f.idempotency_key, f.state, f.attempts, f.reason, f.failed_at, f.next_attempt_at, f.partition, f.\"offset\",
          f.recorded_at, f.header_names, f.header_values, f.payload,
          (select count(*) from outboxd.failures b join outboxd.held_keys h on h.consumer_group = b.consumer_group
            and h.topic = b.topic and h.key_digest = b.key_digest
            where h.consumer_group = f.consumer_group and h.message_id = f.message_id and b.state = 'held'),
          o.id, o.command, o.database_user, o.os_user, o.host
        from outboxd.failures f left join outboxd.operations o on o.id = f.operation
        where f.consumer_group = $1 and f.message_id = $2";

    ATTEMPTS = "
        select attempt, agent, error, failed_at from outboxd.attempts
        where consumer_group = $1 and message_id = $2 order by attempt";

    /// One that runs is left to run.
    DISCARD = "
        with picked as materialized (
          select f.consumer_group, f.message_id from unnest($2::text[], $3::uuid[]) as w (consumer_group, message_id)
          join outboxd.failures f using (consumer_group, message_id)
          where outboxd.durable() and f.state in ('due', 'retrying', 'dead')
          order by 1, 2 for update of f
        ), discarded as (
          update outboxd.failures f set state = 'discarded', reason = coalesce(f.reason, 'operator'), target = null,
            next_attempt_at = null, expires_at = null, operation = $1, changed_at = clock_timestamp()
          from picked p where f.consumer_group = p.consumer_group and f.message_id = p.message_id
          returning f.consumer_group, f.message_id, f.topic, f.key_digest
        ), noted as (
          update outboxd.operations set messages = messages + (select count(*) from picked) where id = $1
        )
        select consumer_group, message_id, topic, key_digest from discarded";

    /// In steps, and only these: their attempts go by the time of evidence.
    FORGET_DEAD = "
        delete from outboxd.failures where ctid = any(array(
          select ctid from outboxd.failures
          where state = 'dead' and changed_at < clock_timestamp() - $1::bigint * interval '1 ms'
          order by changed_at limit $2)) and state = 'dead'";

    FORGET_DISCARDED = "
        delete from outboxd.failures where ctid = any(array(
          select ctid from outboxd.failures
          where state = 'discarded' and changed_at < clock_timestamp() - $1::bigint * interval '1 ms'
          order by changed_at limit $2))";
}

/// One attempt that failed.
#[derive(Clone, Debug, Serialize)]
pub struct Attempt {
    pub attempt: i32,
    pub agent: String,
    pub error: String,
    pub failed_at: DateTime<Utc>,
}

/// A failure with all that is known.
#[derive(Clone, Debug, Serialize)]
pub struct Story {
    #[serde(flatten)]
    pub entry: Entry,
    pub idempotency_key: Option<String>,
    /// As it is kept: `due`, `retrying`, `running`, `held`, `dead`, `discarded`.
    pub stage: String,
    pub attempts: i32,
    /// Why it was given up: `attempts`, `starts`, `permanent`, `undeliverable`, `operator`.
    pub reason: Option<String>,
    pub failed_at: Option<DateTime<Utc>>,
    pub next_attempt_at: Option<DateTime<Utc>>,
    pub partition: i32,
    pub offset: i64,
    pub recorded_at: Option<DateTime<Utc>>,
    /// In the order of the record: `name`, and `value` or `value_base64`.
    pub headers: Vec<Value>,
    #[serde(flatten)]
    pub payload: Payload,
    /// Later messages of its key that wait for it.
    pub held_behind: i64,
    pub history: Vec<Attempt>,
    pub decided: Option<Decided>,
}

/// Those behind that id that fit the filter, by id.
pub async fn list(
    client: &Connection,
    filter: &Filter,
    behind: Uuid,
    limit: i64,
) -> Result<Vec<Entry>, PgError> {
    let rows = client
        .query(
            LIST,
            &[
                &filter.states,
                &filter.group,
                &filter.topic,
                &filter.key,
                &filter.event_type,
                &filter.error,
                &filter.since,
                &filter.until,
                &behind,
                &limit,
            ],
        )
        .await?;
    Ok(rows.iter().map(entry).collect())
}

/// Those of these ids that are in one of these states, of every group.
pub async fn find(client: &Connection, states: &[&str], ids: &[Uuid]) -> Result<Vec<Entry>, PgError> {
    Ok(client.query(FIND_FAILURES, &[&states, &ids]).await?.iter().map(entry).collect())
}

/// All about one, if it is still there.
pub async fn show(client: &Connection, entry: &Entry) -> Result<Option<Story>, PgError> {
    let Some((group, message_id)) = entry.place.failure() else { return Ok(None) };
    let Some(row) = client.query_opt(DETAIL, &[&group, &message_id]).await? else { return Ok(None) };
    let history = attempts(client, group, message_id).await?;
    let names: Vec<String> = row.get(9);
    let values: Vec<Option<Vec<u8>>> = row.get(10);
    Ok(Some(Story {
        entry: entry.clone(),
        idempotency_key: row.get(0),
        stage: row.get(1),
        attempts: row.get(2),
        reason: row.get(3),
        failed_at: row.get(4),
        next_attempt_at: row.get(5),
        partition: row.get(6),
        offset: row.get(7),
        recorded_at: row.get(8),
        headers: names.into_iter().zip(values).map(header).collect(),
        payload: row.get::<_, Option<Vec<u8>>>(11).into(),
        held_behind: row.get(12),
        history,
        decided: Decided::of(&row, 13),
    }))
}

fn header((name, value): (String, Option<Vec<u8>>)) -> Value {
    match Payload::from(value) {
        Payload::Text(text) => json!({ "name": name, "value": text }),
        Payload::Base64(bytes) => json!({ "name": name, "value_base64": bytes }),
    }
}

/// Every attempt that failed, in their order.
pub async fn attempts(client: &Connection, group: &str, message_id: Uuid) -> Result<Vec<Attempt>, PgError> {
    let rows = client.query(ATTEMPTS, &[&group, &message_id]).await?;
    let attempt = |row: &Row| Attempt {
        attempt: row.get(0),
        agent: row.get(1),
        error: row.get(2),
        failed_at: row.get(3),
    };
    Ok(rows.iter().map(attempt).collect())
}

/// Carries a decision out, in one transaction; says for how many: those that have changed meanwhile are left alone.
pub async fn decide(
    client: &mut Connection,
    decision: Decision,
    operation: i64,
    places: &[Place],
) -> Result<i64, PgError> {
    let (groups, ids): (Vec<&str>, Vec<Uuid>) = places.iter().filter_map(Place::failure).unzip();
    if groups.is_empty() {
        return Ok(0);
    }
    if decision == Decision::Replay {
        return reopening::reopen(client, operation, &groups, &ids).await;
    }
    let transaction =
        client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?;
    let discarded = transaction.query(DISCARD, &[&operation, &groups, &ids]).await?;
    let heads = discarded.iter().filter_map(|row| {
        let key_digest = row.get::<_, Option<Vec<u8>>>(3)?;
        Some(Head { group: row.get(0), message_id: row.get(1), topic: row.get(2), key_digest })
    });
    held::release(&transaction, &heads.collect::<Vec<_>>(), Successor::Any).await?;
    transaction.commit().await?;
    Ok(i64::try_from(discarded.len()).unwrap_or(i64::MAX))
}

/// Forgets those that were discarded longer ago, up to `limit`; says how many.
pub async fn forget_discarded(client: &Connection, discarded: Duration, limit: i64) -> Result<u64, PgError> {
    let discarded = millis(discarded);
    Ok(client.execute(FORGET_DISCARDED, &[&discarded, &limit]).await?)
}

/// Forgets dead letters that are older, up to `limit`; says how many. A key that one of them held is let go as one whose
/// head is gone.
pub async fn forget_dead(client: &Connection, age: Duration, limit: i64) -> Result<u64, PgError> {
    Ok(client.execute(FORGET_DEAD, &[&millis(age), &limit]).await?)
}

fn entry(row: &Row) -> Entry {
    let (id, group): (Uuid, String) = (row.get(0), row.get(2));
    Entry {
        id,
        state: row.get(1),
        group: Some(group.clone()),
        topic: row.get(3),
        key: row.get::<_, Option<Vec<u8>>>(4).and_then(|key| String::from_utf8(key).ok()),
        event_type: row.get(5),
        error: row.get(6),
        since: row.get(7),
        place: Place::Failure { group, message_id: id, number: row.get(8) },
    }
}
