//! What a handler is given, and what it answers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use uuid::Uuid;

/// A partition of a topic.
pub type TopicPartition = (Arc<str>, i32);

/// A Kafka record as it was read: nothing decoded, headers in their order, repeated ones kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub topic: Arc<str>,
    pub partition: i32,
    pub offset: i64,
    pub timestamp: Option<DateTime<Utc>>,
    pub key: Option<Bytes>,
    /// `None` is a tombstone.
    pub payload: Option<Bytes>,
    pub headers: Vec<(String, Option<Bytes>)>,
}

impl Record {
    /// Bytes that it takes of a buffer.
    pub fn size(&self) -> usize {
        let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let headers = self.headers.iter().map(|(name, value)| name.len() + length(value));
        length(&self.key) + length(&self.payload) + headers.sum::<usize>()
    }

    /// The last header of that name, as Kafka's clients resolve repeated ones.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().rev().find(|(header, _)| header == name).and_then(|(_, value)| value.as_deref())
    }

    /// The last header of that name, if it is UTF-8 text.
    pub fn text_header(&self, name: &str) -> Option<&str> {
        self.header(name).and_then(|value| std::str::from_utf8(value).ok())
    }
}

/// One start of a handler for a message of a group.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub group: Arc<str>,
    pub message_id: Uuid,
    pub idempotency_key: Option<String>,
    /// 1 for the first try of this process.
    pub attempt: u32,
    pub record: Record,
}

impl Delivery {
    /// The event type: header `type`, else CloudEvents' `ce_type`.
    pub fn event_type(&self) -> Option<&str> {
        self.record.text_header("type").or_else(|| self.record.text_header("ce_type"))
    }
}

/// What a handler says of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// Try again, not before `after` if the handler named a time.
    Retry {
        reason: String,
        after: Option<Duration>,
    },
    /// The handler says that no further try can succeed.
    Permanent {
        reason: String,
    },
}
