//! Inserting into the outbox, for `send`.

use chrono::{DateTime, Utc};
use serde_json::Value;
use tokio_postgres::GenericClient;
use uuid::Uuid;

use super::connect::PgError;
use super::sql::statements;
use crate::domain::priority::Priority;

statements! {
    ENQUEUE = "
        select outboxd.enqueue($1::text, $2::bytea, key => $3, type => $4, headers => $5, idempotency_key => $6,
          priority => $7::smallint, deliver_after => coalesce($8, clock_timestamp() + $9::bigint * interval '1 ms'), id => $10)";
}

/// A message to insert.
#[derive(Clone, Debug, PartialEq)]
pub struct NewMessage {
    pub topic: String,
    pub key: Option<String>,
    pub payload: Option<Vec<u8>>,
    pub headers: Vec<(String, String)>,
    pub event_type: Option<String>,
    pub idempotency_key: Option<String>,
    pub priority: Priority,
    pub due: Due,
    pub id: Option<Uuid>,
}

/// When a message may be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Now,
    At(DateTime<Utc>),
    /// By the database's clock.
    After(std::time::Duration),
}

/// Inserts one message and returns its id.
pub async fn enqueue(client: &impl GenericClient, message: &NewMessage) -> Result<Uuid, PgError> {
    let headers: Value =
        message.headers.iter().map(|(name, value)| (name.clone(), Value::from(value.clone()))).collect();
    let (at, after) = match message.due {
        Due::Now => (None, None),
        Due::At(time) => (Some(time), None),
        Due::After(delay) => (None, Some(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX))),
    };
    let row = client
        .query_one(
            ENQUEUE,
            &[
                &message.topic,
                &message.payload,
                &message.key,
                &message.event_type,
                &headers,
                &message.idempotency_key,
                &message.priority.number(),
                &at,
                &after,
                &message.id,
            ],
        )
        .await?;
    Ok(row.get(0))
}
