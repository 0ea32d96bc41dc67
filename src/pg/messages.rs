//! Inserting into the outbox, for `send`.

use serde_json::Value;
use uuid::Uuid;

use super::connect::{Connection, PgError};
use super::sql::statements;
pub use crate::domain::new_message::{Due, NewMessage};

statements! {
    /// In the order given: `seq` is drawn as the sorted rows come by.
    INSERT = "
        insert into outboxd.messages
          (topic, key, payload, headers, type, idempotency_key, priority, deliver_after, id)
        select topic, key, payload, headers, type, idempotency_key, priority,
          coalesce(due, clock_timestamp() + delay_ms * interval '1 ms'), id
        from unnest($1::text[], $2::text[], $3::bytea[], $4::jsonb[], $5::text[], $6::text[], $7::smallint[],
            $8::timestamptz[], $9::bigint[], $10::uuid[]) with ordinality
          as m (topic, key, payload, headers, type, idempotency_key, priority, due, delay_ms, id, place)
        order by place
        returning seq, coalesce(id, outboxd.message_id(created_at, seq))";
}

/// Inserts one message and returns its id.
pub async fn enqueue(client: &Connection, message: &NewMessage) -> Result<Uuid, PgError> {
    let ids = enqueue_all(client, std::slice::from_ref(message)).await?;
    ids.first()
        .copied()
        .ok_or_else(|| PgError::Setup("the insert was suppressed by a rule or a trigger".into()))
}

/// Inserts them in one statement, in their order, and returns their ids in the same.
pub async fn enqueue_all(client: &Connection, messages: &[NewMessage]) -> Result<Vec<Uuid>, PgError> {
    let column = |of: fn(&NewMessage) -> &Option<String>| messages.iter().map(of).collect::<Vec<_>>();
    let topics: Vec<_> = messages.iter().map(|message| &message.topic).collect();
    let payloads: Vec<_> = messages.iter().map(|message| message.payload.as_deref()).collect();
    let headers: Vec<_> = messages.iter().map(headers).collect();
    let priorities: Vec<_> = messages.iter().map(|message| message.priority.number()).collect();
    let due: Vec<_> = messages
        .iter()
        .map(|message| if let Due::At(time) = message.due { Some(time) } else { None })
        .collect();
    let delays: Vec<_> = messages.iter().map(|message| delay_ms(message.due)).collect();
    let own_ids: Vec<_> = messages.iter().map(|message| message.id).collect();
    let rows = client
        .query(
            INSERT,
            &[
                &topics,
                &column(|message| &message.key),
                &payloads,
                &headers,
                &column(|message| &message.event_type),
                &column(|message| &message.idempotency_key),
                &priorities,
                &due,
                &delays,
                &own_ids,
            ],
        )
        .await?;
    let mut inserted: Vec<(i64, Uuid)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    inserted.sort_unstable();
    Ok(inserted.into_iter().map(|(_, id)| id).collect())
}

fn headers(message: &NewMessage) -> Value {
    message.headers.iter().map(|(name, value)| (name.clone(), Value::from(value.clone()))).collect()
}

fn delay_ms(due: Due) -> Option<i64> {
    match due {
        Due::After(delay) => Some(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX)),
        Due::Now | Due::At(_) => None,
    }
}
