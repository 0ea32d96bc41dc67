//! Messages as the reads of a window, or of what is set aside, bring them.

use std::collections::VecDeque;
use std::error::Error;
use std::ops::ControlFlow;

use chrono::{DateTime, Utc};
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Json, ToSql, Type};

use super::LaneError;
use crate::domain::identity::Tag;
use crate::domain::message::Message;
use crate::pg::connect::{Connection, Prepared};

/// Some messages, in order.
#[derive(Debug, Default)]
pub struct Batch {
    pub messages: Vec<Message>,
    /// There is nothing beyond these.
    pub last: bool,
}

/// What a read may bring.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of a batch, but for a row that is larger.
    pub batch_bytes: usize,
    /// Of a payload that is read at all: what is larger fits no record, and might not fit our memory.
    pub payload_bytes: i32,
}

/// What a read of messages brought.
pub(in crate::pg) struct Rows {
    pub messages: VecDeque<Message>,
    pub bytes: usize,
    /// There was enough before the statement's end.
    pub was_cut: bool,
}

/// Reads until the statement is done or there are enough bytes.
pub(in crate::pg) async fn rows(
    connection: &Connection,
    statement: &Prepared,
    params: &[&(dyn ToSql + Sync)],
    tag: Tag,
    enough: usize,
) -> Result<Rows, LaneError> {
    let mut rows = Rows { messages: VecDeque::new(), bytes: 0, was_cut: false };
    let take = |row: &Row| -> Result<_, LaneError> {
        let message = message(row, tag)?;
        rows.bytes += message.size();
        rows.messages.push_back(message);
        rows.was_cut = rows.bytes >= enough;
        Ok(if rows.was_cut { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    };
    connection.read(statement, params, take).await?;
    Ok(rows)
}

/// A message from the twelve columns that every read of messages selects, in their order.
fn message(row: &Row, tag: Tag) -> Result<Message, LaneError> {
    let seq = row.get(0);
    let created_at: DateTime<Utc> = row.get(9);
    Ok(Message {
        seq,
        message_id: tag.message_id(created_at, seq),
        own_id: row.get(1),
        topic: row.get(2),
        key: row.get(3),
        payload: row.get(4),
        unread: row.get(11),
        headers: row.try_get::<_, Headers>(5)?.0,
        event_type: row.get(6),
        idempotency_key: row.get(7),
        is_scheduled: row.get(8),
        // What cannot be read was not written by us, and must not stop the lane: no agent is told anything by it.
        dispatch: row.try_get::<_, Option<Json<_>>>(10).ok().flatten().map(|Json(dispatch)| dispatch),
    })
}

/// A flat object of strings.
struct Headers(Vec<(String, String)>);

impl<'a> FromSql<'a> for Headers {
    fn from_sql(kind: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        // Most messages have none: no parser is asked. jsonb begins with its version.
        if raw == b"\x01{}" {
            return Ok(Self(Vec::new()));
        }
        let headers = match serde_json::Value::from_sql(kind, raw)? {
            serde_json::Value::Object(map) => map
                .into_iter()
                .map(|(name, value)| (name, value.as_str().unwrap_or_default().to_owned()))
                .collect(),
            _ => Vec::new(),
        };
        Ok(Self(headers))
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::JSONB
    }
}
