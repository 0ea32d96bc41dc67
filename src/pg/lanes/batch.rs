//! A part of a window, as a read with a limit in rows and bytes brings it.

use chrono::{DateTime, Utc};
use tokio_postgres::Row;

use super::LaneError;
use crate::domain::identity::Tag;
use crate::domain::message::Message;

/// What a row costs of a batch besides its payload, in bytes: its other columns, roughly.
pub(super) const ROW_OVERHEAD: i64 = 200;

/// How much one read brings.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub rows: i64,
    pub bytes: i64,
}

/// Some rows of a window, in order of `seq`.
#[derive(Debug, Default)]
pub struct Batch {
    pub messages: Vec<Message>,
    /// The window holds no row beyond these.
    pub last: bool,
}

impl Batch {
    /// What a read with that limit brought.
    pub(super) fn decode(rows: &[Row], tag: Tag, limit: Limit) -> Result<Self, LaneError> {
        let messages = rows.iter().map(|row| message(row, tag)).collect::<Result<Vec<_>, _>>()?;
        let bytes: i64 = messages
            .iter()
            .map(|message| {
                ROW_OVERHEAD
                    + message
                        .payload
                        .as_ref()
                        .map_or(0, |bytes| i64::try_from(bytes.len()).unwrap_or(i64::MAX))
            })
            .sum();
        let full = i64::try_from(rows.len()).is_ok_and(|rows| rows >= limit.rows)
            || bytes + ROW_OVERHEAD > limit.bytes;
        Ok(Self { messages, last: !full })
    }

    /// Both lists are in order of `seq`; what lies beyond the end of one that was cut short waits for the next read.
    pub(super) fn merge(self, other: Self) -> Self {
        if other.messages.is_empty() && other.last {
            return self;
        }
        let last = self.last && other.last;
        let horizon = [&self, &other]
            .into_iter()
            .filter(|batch| !batch.last)
            .filter_map(|batch| batch.messages.last().map(|message| message.seq))
            .min();
        let mut messages = self.messages;
        messages.extend(other.messages);
        messages.sort_by_key(|message| message.seq);
        if let Some(horizon) = horizon {
            messages.retain(|message| message.seq <= horizon);
        }
        Self { messages, last }
    }
}

fn message(row: &Row, tag: Tag) -> Result<Message, LaneError> {
    let seq = row.get(0);
    let created_at: DateTime<Utc> = row.get(9);
    let headers = match row.try_get::<_, serde_json::Value>(5)? {
        serde_json::Value::Object(map) => map
            .into_iter()
            .map(|(name, value)| (name, value.as_str().unwrap_or_default().to_owned()))
            .collect(),
        _ => Vec::new(),
    };
    Ok(Message {
        seq,
        message_id: tag.message_id(created_at, seq),
        own_id: row.get(1),
        topic: row.get(2),
        key: row.get(3),
        payload: row.get(4),
        headers,
        event_type: row.get(6),
        idempotency_key: row.get(7),
        is_scheduled: row.get(8),
    })
}
