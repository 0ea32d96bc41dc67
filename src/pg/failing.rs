//! What a group could not handle, written where its evidence would be: the failure with its whole record, the attempts
//! that failed, and the key that waits behind it.

use std::time::Duration;

use deadpool_postgres::GenericClient;
use futures_util::future::try_join_all;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::completing::{Scope, be_durable};
use super::connect::PgError;
use super::pool::Lent;
use super::sql::{millis, statements};
use crate::domain::delivery::Delivery;

statements! {
    /// Where there is no evidence; with the hold of its key, if it is to have one.
    FAIL = "
        with failed as (
          insert into outboxd.failures (consumer_group, message_id, state, topic, partition, \"offset\", recorded_at, key,
            payload, header_names, header_values, type, idempotency_key, attempts, last_agent, error, reason, failed_at,
            next_attempt_at)
          select $1, $2, case when $15::text is null then 'due' else 'dead' end, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12,
            $13, $14, $16, $15, clock_timestamp(),
            case when $15::text is null then clock_timestamp() + $17::bigint * interval '1 ms' end
          where not exists (select from outboxd.handled h where h.consumer_group = $1 and h.message_id = $2)
          on conflict (consumer_group, message_id) do nothing
          returning consumer_group, topic, key, message_id
        )
        insert into outboxd.held_keys (consumer_group, topic, key_digest, message_id)
        select consumer_group, topic, sha256(key), message_id from failed where $18 and key is not null
        on conflict do nothing";

    ATTEMPTS = "
        insert into outboxd.attempts (consumer_group, message_id, attempt, agent, error)
        select $1, a.message_id, a.attempt, $2, a.error
        from unnest($3::uuid[], $4::integer[], $5::text[]) as a (message_id, attempt, error)
        on conflict do nothing";

    /// Behind the hold of its key, if that is still there; the lock lets nobody free the key before this commits.
    HOLD = "
        with hold as (
          select from outboxd.held_keys
          where consumer_group = $1 and topic = $3 and key_digest = sha256($7::bytea) for share
        ), held as (
          insert into outboxd.failures (consumer_group, message_id, state, topic, partition, \"offset\", recorded_at, key,
            payload, header_names, header_values, type, idempotency_key)
          select $1, $2, 'held', $3, $4, $5, $6, $7, $8, $9, $10, $11, $12 from hold
          where not exists (select from outboxd.handled h where h.consumer_group = $1 and h.message_id = $2)
          on conflict (consumer_group, message_id) do nothing
        )
        select exists (select from hold)";
}

/// What is to become of a message that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is tried again, after that time.
    Due(Duration),
    /// It is given up.
    Dead(Reason),
}

/// Why a message is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Attempts,
    Starts,
    Permanent,
}

impl Reason {
    pub fn name(self) -> &'static str {
        match self {
            Self::Attempts => "attempts",
            Self::Starts => "starts",
            Self::Permanent => "permanent",
        }
    }
}

/// A message that failed.
#[derive(Clone, Debug)]
pub struct Failed {
    /// Its attempt is the last one.
    pub delivery: Delivery,
    pub fate: Fate,
    /// Of each attempt that failed, with its number.
    pub errors: Vec<(u32, String)>,
    /// Later messages of its key wait for it.
    pub holds_key: bool,
}

/// Writes failures; may only be part of a transaction that writes their positions too.
pub async fn fail(
    transaction: &impl GenericClient,
    scope: Scope<'_>,
    failed: &[Failed],
) -> Result<(), PgError> {
    if failed.is_empty() {
        return Ok(());
    }
    let statement = transaction.prepare_cached(FAIL).await?;
    try_join_all(failed.iter().map(async |failed| {
        let Failed { delivery, fate, errors, holds_key } = failed;
        let row = Row::of(delivery);
        let (reason, after) = match fate {
            Fate::Due(after) => (None, millis(*after)),
            Fate::Dead(reason) => (Some(reason.name()), 0),
        };
        let attempts = number(delivery.attempt);
        let error = errors.last().map(|(_, error)| storable(error));
        let outcome: [&(dyn ToSql + Sync); 6] = [&attempts, &scope.agent, &reason, &error, &after, holds_key];
        transaction.execute(&statement, &[&row.columns(&scope)[..], &outcome].concat()).await
    }))
    .await?;
    let all = || {
        failed.iter().flat_map(|failed| {
            failed.errors.iter().map(|(attempt, error)| (failed.delivery.message_id, *attempt, error))
        })
    };
    let ids: Vec<Uuid> = all().map(|(id, ..)| id).collect();
    let attempts: Vec<i32> = all().map(|(_, attempt, _)| number(attempt)).collect();
    let errors: Vec<String> = all().map(|(.., error)| storable(error)).collect();
    let statement = transaction.prepare_cached(ATTEMPTS).await?;
    transaction.execute(&statement, &[&scope.group, &scope.agent_name, &ids, &attempts, &errors]).await?;
    Ok(())
}

/// Copies messages behind the holds of their keys, in this order, in one transaction. Says of each whether its key is
/// still held; if not, nothing was written of it. Their positions may follow.
pub async fn hold(client: &mut Lent, scope: Scope<'_>, held: &[&Delivery]) -> Result<Vec<bool>, PgError> {
    let transaction = client.transaction().await?;
    be_durable(&transaction).await?;
    let statement = transaction.prepare_cached(HOLD).await?;
    let answers =
        try_join_all(held.iter().map(async |delivery| {
            transaction.query_one(&statement, &Row::of(delivery).columns(&scope)).await
        }));
    let answers = answers.await?;
    transaction.commit().await?;
    Ok(answers.iter().map(|row| row.get(0)).collect())
}

/// A message as its row begins; what of it needs another form.
struct Row<'a> {
    delivery: &'a Delivery,
    topic: &'a str,
    key: Option<&'a [u8]>,
    payload: Option<&'a [u8]>,
    names: Vec<&'a str>,
    values: Vec<Option<&'a [u8]>>,
    event_type: Option<&'a str>,
    idempotency_key: Option<&'a str>,
}

impl<'a> Row<'a> {
    fn of(delivery: &'a Delivery) -> Self {
        let record = &delivery.record;
        let (names, values) =
            record.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())).unzip();
        let is_text = |text: &&str| !text.contains('\0');
        let event_type = delivery.event_type().filter(is_text);
        let idempotency_key = delivery.idempotency_key.as_deref().filter(is_text);
        Self {
            delivery,
            topic: &record.topic,
            key: record.key.as_deref(),
            payload: record.payload.as_deref(),
            names,
            values,
            event_type,
            idempotency_key,
        }
    }

    fn columns<'b>(&'b self, scope: &'b Scope<'_>) -> [&'b (dyn ToSql + Sync); 12] {
        let record = &self.delivery.record;
        [
            &scope.group,
            &self.delivery.message_id,
            &self.topic,
            &record.partition,
            &record.offset,
            &record.timestamp,
            &self.key,
            &self.payload,
            &self.names,
            &self.values,
            &self.event_type,
            &self.idempotency_key,
        ]
    }
}

fn number(attempt: u32) -> i32 {
    i32::try_from(attempt).unwrap_or(i32::MAX)
}

/// PostgreSQL keeps no NUL.
fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
