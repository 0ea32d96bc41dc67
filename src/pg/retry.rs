//! What waits for an operator's decision, whoever gave it up: the words that `outboxd retry` has for it.

use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio_postgres::Row;
use uuid::Uuid;

/// A line of `outboxd retry list`.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    pub id: Uuid,
    pub state: String,
    /// Whose handling failed; `None`: it is not published.
    pub group: Option<String>,
    pub topic: String,
    pub key: Option<String>,
    #[serde(rename = "type")]
    pub event_type: Option<String>,
    pub error: Option<String>,
    /// In this state.
    pub since: DateTime<Utc>,
    #[serde(skip)]
    pub place: Place,
}

/// Where an entry is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the outbox: refused by Kafka.
    Aside { priority: i16, seq: i64 },
    /// With what its group failed to handle.
    Failure { group: String, message_id: Uuid },
}

impl Place {
    /// Of one in the outbox.
    pub fn aside(&self) -> Option<(i16, i64)> {
        match self {
            Self::Aside { priority, seq } => Some((*priority, *seq)),
            Self::Failure { .. } => None,
        }
    }

    /// Of one that a group failed to handle.
    pub fn failure(&self) -> Option<(&str, Uuid)> {
        match self {
            Self::Aside { .. } => None,
            Self::Failure { group, message_id } => Some((group, *message_id)),
        }
    }
}

/// What an operator may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Replay,
    Discard,
}

/// Who decided about a message last.
#[derive(Clone, Debug, Serialize)]
pub struct Decided {
    pub operation: i64,
    pub command: String,
    pub database_user: String,
    pub os_user: String,
    pub host: String,
}

impl Decided {
    /// Five columns of a row, from this one on: the operation, which may be none, its command, and who did it.
    pub(super) fn of(row: &Row, first: usize) -> Option<Self> {
        row.get::<_, Option<i64>>(first).map(|operation| Self {
            operation,
            command: row.get(first + 1),
            database_user: row.get(first + 2),
            os_user: row.get(first + 3),
            host: row.get(first + 4),
        })
    }
}

/// What an operator narrows them down by; an entry must fit all that is given.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Filter {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
    /// A part of the error, in upper or lower case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// In its state since then, or later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<DateTime<Utc>>,
    /// In its state since before then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<DateTime<Utc>>,
    /// Only those that come behind this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<i64>,
}
