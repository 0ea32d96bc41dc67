//! A row of the outbox, and the record it becomes.

use uuid::Uuid;

use super::dispatch::Dispatch;
use super::identity::{self, ID_HEADER, SUM_HEADER};
use super::partition;

/// The longest topic name that Kafka takes.
const TOPIC_NAME_LIMIT: usize = 249;

/// What the relay needs of a row to publish it.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    pub seq: i64,
    /// Derived; `own_id` is the application's.
    pub message_id: Uuid,
    pub own_id: Option<Uuid>,
    pub topic: String,
    pub key: Option<String>,
    pub payload: Option<Vec<u8>>,
    /// Bytes of a payload that was not read, because no record may be so large.
    pub unread: Option<i32>,
    pub headers: Vec<(String, String)>,
    pub event_type: Option<String>,
    pub idempotency_key: Option<String>,
    /// It has a `deliver_after`, past or to come.
    pub is_scheduled: bool,
    /// It tells an agent to try again what its group failed to handle.
    pub dispatch: Option<Box<Dispatch>>,
}

impl Message {
    /// About how many bytes of memory it takes.
    pub fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        size_of::<Self>()
            + self.topic.len()
            + self.key.as_ref().map_or(0, String::len)
            + self.payload.as_ref().map_or(0, Vec::len)
            + headers
    }

    /// Hands the headers of the record to `take`: the application's unchanged, then what outboxd adds. One by one, because
    /// to collect them would cost several allocations a record.
    pub fn each_header(&self, mut take: impl FnMut(&str, &str)) {
        self.headers.iter().for_each(|(name, value)| take(name, value));
        self.event_type.iter().for_each(|event_type| take("type", event_type));
        self.idempotency_key.iter().for_each(|key| take("idempotency-key", key));
        let mut text = Uuid::encode_buffer();
        take("id", self.own_id.unwrap_or(self.message_id).hyphenated().encode_lower(&mut text));
        take(ID_HEADER, self.message_id.hyphenated().encode_lower(&mut text));
        let key = self.key.as_deref().map(str::as_bytes);
        take(SUM_HEADER, &identity::sum(self.message_id, &self.topic, key, self.payload.as_deref()));
        for (name, value) in self.dispatch.iter().flat_map(|dispatch| dispatch.headers()) {
            take(name, &value);
        }
    }

    /// Where it goes.
    pub fn partition(&self, partitions: i32) -> i32 {
        partition::of(self.key.as_deref(), self.message_id, partitions)
    }
}

/// Would Kafka take this as a topic's name? The same rule as the outbox's constraint.
pub fn is_topic_name(name: &str) -> bool {
    (1..=TOPIC_NAME_LIMIT).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_names_are_kafkas() {
        for name in ["a", "orders.v1", "a_b-C9", &"x".repeat(249)] {
            assert!(is_topic_name(name), "{name}");
        }
        for name in ["", ".", "..", "a b", "a/b", "ä", &"x".repeat(250)] {
            assert!(!is_topic_name(name), "{name}");
        }
    }
}
