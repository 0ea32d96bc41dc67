//! A message on its way into the outbox: what may be said before the database is asked.

mod json;

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

pub use json::NotAMessage;

use super::identity::{ID_HEADER, SUM_HEADER};
use super::message::is_topic_name;
use super::priority::Priority;

/// Names that begin so are outboxd's own.
const RESERVED_PREFIX: &str = "outboxd-";
const IDEMPOTENCY_KEY_LIMIT: usize = 1024;
/// Bytes of a UUID and of `outboxd-sum`, as text.
const UUID_TEXT: usize = 36;
const SUM_TEXT: usize = 16;
/// What librdkafka adds to key, payload and headers before it compares with `message.max.bytes`.
const RECORD_OVERHEAD: usize = 36;

/// A message to insert.
#[derive(Clone, Debug, PartialEq)]
pub struct NewMessage {
    pub topic: String,
    pub key: Option<String>,
    /// `None` is a tombstone.
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
    After(Duration),
}

/// Why the outbox, or the broker behind it, would refuse a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error(
        "topic `{0}` is no name that Kafka allows: 1 to 249 letters, digits, `.`, `_` or `-`, but not `.` or `..`"
    )]
    Topic(String),
    #[error("a header may not be named `{0}`: `id` and `outboxd-*` are outboxd's own")]
    HeaderName(String),
    #[error("header `{0}` is given twice")]
    HeaderTwice(String),
    #[error("an idempotency key has 1 to 1024 bytes, this one has {0}")]
    IdempotencyKey(usize),
    #[error("the {0} contains a NUL character, which text in PostgreSQL cannot")]
    Nul(&'static str),
    #[error(
        "the message takes {size} bytes as a record, more than `message.max.bytes` allows ({limit}): send a smaller \
         one, or raise the limit in [kafka.producer] and at the broker"
    )]
    TooLarge { size: usize, limit: usize },
}

impl NewMessage {
    /// A message of that topic and nothing else: a tombstone without a key.
    pub fn to(topic: impl Into<String>) -> Self {
        Self {
            topic: topic.into(),
            key: None,
            payload: None,
            headers: Vec::new(),
            event_type: None,
            idempotency_key: None,
            priority: Priority::Normal,
            due: Due::Now,
            id: None,
        }
    }

    /// Holds it against the constraints of the outbox, and against librdkafka's `message.max.bytes`.
    pub fn check(&self, max_bytes: usize) -> Result<(), Refused> {
        if !is_topic_name(&self.topic) {
            return Err(Refused::Topic(self.topic.clone()));
        }
        self.check_headers()?;
        if let Some(key) =
            self.idempotency_key.as_ref().filter(|key| !(1..=IDEMPOTENCY_KEY_LIMIT).contains(&key.len()))
        {
            return Err(Refused::IdempotencyKey(key.len()));
        }
        let texts =
            [("key", &self.key), ("type", &self.event_type), ("idempotency key", &self.idempotency_key)];
        if let Some((what, _)) =
            texts.into_iter().find(|(_, text)| text.as_ref().is_some_and(|text| text.contains('\0')))
        {
            return Err(Refused::Nul(what));
        }
        let size = self.record_bytes();
        if size > max_bytes { Err(Refused::TooLarge { size, limit: max_bytes }) } else { Ok(()) }
    }

    fn check_headers(&self) -> Result<(), Refused> {
        let mut seen = HashSet::new();
        for (name, value) in &self.headers {
            if name == "id" || name.starts_with(RESERVED_PREFIX) {
                return Err(Refused::HeaderName(name.clone()));
            }
            if !seen.insert(name) {
                return Err(Refused::HeaderTwice(name.clone()));
            }
            if name.contains('\0') || value.contains('\0') {
                return Err(Refused::Nul("header"));
            }
        }
        Ok(())
    }

    /// The size of the record that the relay will make of it, as librdkafka counts it.
    fn record_bytes(&self) -> usize {
        let own = self.headers.iter().map(|(name, value)| (name.len(), value.len()));
        let added = [
            Some(("id".len(), UUID_TEXT)),
            Some((ID_HEADER.len(), UUID_TEXT)),
            Some((SUM_HEADER.len(), SUM_TEXT)),
            self.event_type.as_ref().map(|text| ("type".len(), text.len())),
            self.idempotency_key.as_ref().map(|key| ("idempotency-key".len(), key.len())),
        ];
        let headers = own
            .chain(added.into_iter().flatten())
            .map(|(name, value)| varint_bytes(name) + name + varint_bytes(value) + value)
            .sum::<usize>();
        RECORD_OVERHEAD
            + self.key.as_ref().map_or(0, String::len)
            + self.payload.as_ref().map_or(0, Vec::len)
            + headers
    }
}

/// The bytes of a length in a record: zigzag, seven bits a byte.
fn varint_bytes(length: usize) -> usize {
    let bits = usize::BITS - (length << 1).leading_zeros();
    (bits.max(1) as usize).div_ceil(7)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 1_000_000;

    fn with_header(name: &str) -> NewMessage {
        NewMessage { headers: vec![(name.into(), "v".into())], ..NewMessage::to("orders") }
    }

    #[test]
    fn what_a_constraint_would_refuse_is_refused_before() {
        assert_eq!(NewMessage::to("orders").check(LIMIT), Ok(()));
        assert_eq!(NewMessage::to("a b").check(LIMIT), Err(Refused::Topic("a b".into())));
        for name in ["id", "outboxd-", "outboxd-id"] {
            assert_eq!(with_header(name).check(LIMIT), Err(Refused::HeaderName(name.into())));
        }
        for name in ["ID", "outboxd", "traceparent", "content-type"] {
            assert_eq!(with_header(name).check(LIMIT), Ok(()), "{name}");
        }
        let mut twice = with_header("a");
        twice.headers.push(("a".into(), "w".into()));
        assert_eq!(twice.check(LIMIT), Err(Refused::HeaderTwice("a".into())));
        for (length, fits) in [(0, false), (1, true), (1024, true), (1025, false)] {
            let message =
                NewMessage { idempotency_key: Some("k".repeat(length)), ..NewMessage::to("orders") };
            assert_eq!(message.check(LIMIT).is_ok(), fits, "{length}");
        }
        let nul = NewMessage { key: Some("a\0b".into()), ..NewMessage::to("orders") };
        assert_eq!(nul.check(LIMIT), Err(Refused::Nul("key")));
    }

    #[test]
    fn a_record_counts_with_its_headers_and_the_limit_itself_still_fits() {
        let message = NewMessage {
            key: Some("k".repeat(10)),
            payload: Some(vec![0; 100]),
            headers: vec![("h".into(), "v".repeat(64))],
            ..NewMessage::to("orders")
        };
        // 36 + key + payload, `h`, `id`, `outboxd-id`, `outboxd-sum`; a length of 64 takes two bytes.
        let size = 36 + 10 + 100 + (1 + 1 + 2 + 64) + (2 + 2 + 36) + (2 + 10 + 36) + (2 + 11 + 16);
        assert_eq!(message.check(size), Ok(()));
        assert_eq!(message.check(size - 1), Err(Refused::TooLarge { size, limit: size - 1 }));
    }

    #[test]
    fn lengths_take_the_bytes_of_their_zigzag() {
        for (length, bytes) in [(0, 1), (63, 1), (64, 2), (8191, 2), (8192, 3)] {
            assert_eq!(varint_bytes(length), bytes, "{length}");
        }
    }
}
