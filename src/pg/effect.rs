//! The effect of an `sql` handler and its evidence: one transaction, so that it happens exactly once.

use deadpool_postgres::Transaction;
use serde_json::{Map, Value};

use super::claims::{self, Claimant, Claimed, OperationKey, Wanted};
use super::completing::{self, Finished, Scope};
use super::connect::{PgError, is_conflict, is_connection};
use super::pool::Lent;
use crate::domain::delivery::Delivery;

/// A message whose effect is a function of the database.
#[derive(Clone, Copy, Debug)]
pub struct Effect<'a> {
    /// An identifier that the configuration has checked.
    pub function: &'a str,
    /// In milliseconds, and never 0, which would be no limit.
    pub statement_timeout: i32,
    pub delivery: &'a Delivery,
    pub keys: &'a [OperationKey],
    pub payload_hash: i64,
}

/// What became of it; only `Done` has left anything behind.
#[derive(Debug)]
pub enum Affected {
    Done,
    /// There is evidence already.
    Repeat,
    /// Another message has done this operation.
    Duplicate {
        by: uuid::Uuid,
        same_payload: bool,
    },
    /// Another start holds a key now.
    Busy,
    /// The function refused, by an exception of its own or by its time.
    Failed(tokio_postgres::Error),
}

/// Does it. An error of the connection, or of COMMIT, leaves open whether it was done: the next try finds out, for the
/// evidence comes first and waits for whoever is inserting the same.
pub async fn apply(client: &mut Lent, scope: Scope<'_>, effect: Effect<'_>) -> Result<Affected, PgError> {
    let transaction = client.transaction().await?;
    let affected = perform(&transaction, scope, effect).await?;
    if matches!(affected, Affected::Done) {
        transaction.commit().await?;
    }
    Ok(affected)
}

/// Evidence, keys and effect, in this transaction, which is to be rolled back unless they are done.
pub(super) async fn perform(
    transaction: &Transaction<'_>,
    scope: Scope<'_>,
    effect: Effect<'_>,
) -> Result<Affected, PgError> {
    let Effect { delivery, keys, .. } = effect;
    let message_id = delivery.message_id;
    completing::be_durable(transaction).await?;
    let finished = Finished::new(message_id, &delivery.record, delivery.attempt);
    if completing::write(transaction, scope, &[finished]).await? == 0 {
        return Ok(Affected::Repeat);
    }
    if !keys.is_empty() {
        let claimant = Claimant { group: scope.group, agent: scope.agent };
        let wanted = Wanted { message_id, payload_hash: effect.payload_hash, keys };
        match claims::claim_done(transaction, claimant, wanted).await? {
            Claimed::All(_) => {}
            Claimed::Done { by, same_payload } => return Ok(Affected::Duplicate { by, same_payload }),
            Claimed::Busy => return Ok(Affected::Busy),
        }
    }
    transaction.batch_execute(&format!("set local statement_timeout = {}", effect.statement_timeout)).await?;
    let called = async {
        call(transaction, effect.function, delivery).await?;
        transaction.batch_execute("set constraints all immediate").await
    };
    if let Err(error) = called.await {
        if is_connection(&error) || is_conflict(&error) {
            return Err(error.into());
        }
        return Ok(Affected::Failed(error));
    }
    transaction.batch_execute("set local statement_timeout to default").await?;
    Ok(Affected::Done)
}

async fn call(
    transaction: &Transaction<'_>,
    function: &str,
    delivery: &Delivery,
) -> Result<(), tokio_postgres::Error> {
    let record = &delivery.record;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok().filter(|text| !text.contains('\0'));
    let headers: Map<String, Value> = record
        .headers
        .iter()
        .filter_map(|(name, value)| {
            Some((name.clone(), Value::String(value.as_deref().and_then(text)?)))
                .filter(|(name, _)| !name.contains('\0'))
        })
        .collect();
    let sql = format!(
        "select {function}(row($1::text, $2::uuid, $3::text, $4::text, $5::bytea, $6::text, $7::integer, $8::bigint, \
         $9::integer, $10::text, $11::jsonb, $12::bytea)::outboxd.delivery)"
    );
    let statement = transaction.prepare_cached(&sql).await?;
    transaction
        .query(
            &statement,
            &[
                &&*delivery.group,
                &delivery.message_id,
                &delivery.event_type().filter(|event_type| !event_type.contains('\0')),
                &record.key.as_deref().and_then(text),
                &record.key.as_deref(),
                &&*record.topic,
                &record.partition,
                &record.offset,
                &i32::try_from(delivery.attempt).unwrap_or(i32::MAX),
                &delivery.idempotency_key.as_deref().filter(|key| !key.contains('\0')),
                &Value::Object(headers),
                &record.payload.as_deref(),
            ],
        )
        .await?;
    Ok(())
}
