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

    /// The headers of the record: the application's unchanged, then what outboxd adds.
    pub fn record_headers(&self) -> Vec<(&str, String)> {
        let key = self.key.as_deref().map(str::as_bytes);
        let sum = identity::sum(self.message_id, &self.topic, key, self.payload.as_deref());
        let mut headers: Vec<(&str, String)> =
            self.headers.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        headers.extend(self.event_type.as_ref().map(|event_type| ("type", event_type.clone())));
        headers.extend(self.idempotency_key.as_ref().map(|key| ("idempotency-key", key.clone())));
        headers.push(("id", self.own_id.unwrap_or(self.message_id).to_string()));
        headers.push((ID_HEADER, self.message_id.to_string()));
        headers.push((SUM_HEADER, sum));
        headers.extend(self.dispatch.iter().flat_map(|dispatch| dispatch.headers()));
        headers
    }

    /// Where a message without a key goes: a hash of its id, so that its repeat meets the agent that has it.
    pub fn keyless_partition(&self, partitions: i32) -> i32 {
        partition::of_id(self.message_id, partitions)
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
