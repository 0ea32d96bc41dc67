//! A targeted retry on its way: what the outbox's `retry` column and the record's headers say of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::delivery::Record;

const TARGET: &str = "outboxd-retry-target";
const ORIGINAL_ID: &str = "outboxd-retry-original-id";
const ATTEMPT: &str = "outboxd-retry-attempt";
const GROUP: &str = "outboxd-retry-group";
const DEADLINE: &str = "outboxd-retry-deadline";
const DISPATCH: &str = "outboxd-retry-dispatch";

/// The group's own topic for its dispatches.
pub fn topic(group: &str) -> String {
    format!("{TOPIC_PREFIX}{group}")
}

pub const TOPIC_PREFIX: &str = "outboxd.retry.";

/// Asks one agent to try a message again. The message itself is in the database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dispatch {
    pub target: Uuid,
    pub group: String,
    #[serde(rename = "id")]
    pub message_id: Uuid,
    /// The number of the attempt to come, if it starts.
    pub attempt: u32,
    /// The fencing number: who starts or completes the attempt names it.
    #[serde(rename = "dispatch")]
    pub number: i64,
    /// How many milliseconds after its publication it may start.
    pub deadline: u64,
}

impl Dispatch {
    pub(super) fn headers(&self) -> [(&'static str, String); 6] {
        [
            (TARGET, self.target.to_string()),
            (ORIGINAL_ID, self.message_id.to_string()),
            (ATTEMPT, self.attempt.to_string()),
            (GROUP, self.group.clone()),
            (DEADLINE, self.deadline.to_string()),
            (DISPATCH, self.number.to_string()),
        ]
    }

    /// What a record of a retry topic says; nothing if it is none of ours.
    pub fn of(record: &Record) -> Option<Self> {
        Some(Self {
            target: record.text_header(TARGET)?.parse().ok()?,
            group: record.text_header(GROUP)?.to_owned(),
            message_id: record.text_header(ORIGINAL_ID)?.parse().ok()?,
            attempt: record.text_header(ATTEMPT)?.parse().ok()?,
            number: record.text_header(DISPATCH)?.parse().ok()?,
            deadline: record.text_header(DEADLINE)?.parse().ok()?,
        })
    }

    /// How long after its publication it may start.
    pub fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn column_and_headers_say_the_same() {
        let dispatch = Dispatch {
            target: Uuid::from_u128(1),
            group: "orders".into(),
            message_id: Uuid::from_u128(2),
            attempt: 3,
            number: 4,
            deadline: 60_000,
        };
        let column = serde_json::json!({
            "target": Uuid::from_u128(1), "group": "orders", "id": Uuid::from_u128(2), "attempt": 3, "dispatch": 4,
            "deadline": 60_000,
        });
        assert_eq!(serde_json::from_value::<Dispatch>(column).unwrap(), dispatch);
        let mut record = Record {
            topic: topic("orders").into(),
            partition: 0,
            offset: 0,
            timestamp: None,
            key: None,
            payload: None,
            headers: dispatch
                .headers()
                .into_iter()
                .map(|(name, value)| (name.to_owned(), Some(Bytes::from(value))))
                .collect(),
        };
        assert_eq!(Dispatch::of(&record), Some(dispatch));
        record.headers.pop();
        assert_eq!(Dispatch::of(&record), None);
    }
}
