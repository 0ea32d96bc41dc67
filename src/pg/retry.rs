//! What waits for an operator's decision, whoever gave it up: the words that `outboxd retry` has for it.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio_postgres::Row;
use utoipa::ToSchema;
use uuid::Uuid;

use super::connect::{Connection, PgError};
use super::sql::statements;
use super::{failures, parked};

statements! {
    UNTIL_NOW = "select least($1::timestamptz, clock_timestamp())";
}

/// The states that a decision may be made about.
pub const STATES: [&str; 5] = ["parked", "held", "failing", "dead", "discarded"];

/// Of these, those that may be sent again: what is held goes by itself.
const REPLAYABLE: [&str; 4] = ["parked", "failing", "dead", "discarded"];

/// Of these, those that may be discarded.
const OPEN: [&str; 4] = ["parked", "held", "failing", "dead"];

/// Those that wait for one.
pub const WAITING: [&str; 2] = ["parked", "dead"];

/// Messages that are decided about in one transaction.
pub const BATCH: usize = 100;

/// A line of `outboxd retry list`.
#[derive(Clone, Debug, Serialize, ToSchema)]
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
    /// With what its group failed to handle, so many'th of all that failed.
    Failure { group: String, message_id: Uuid, number: i64 },
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
            Self::Failure { group, message_id, .. } => Some((group, *message_id)),
        }
    }
}

/// In the order in which they were refused, or failed: so they are decided about.
pub fn in_order(entries: Vec<Entry>) -> Vec<Place> {
    let mut places: Vec<Place> = entries.into_iter().map(|entry| entry.place).collect();
    places.sort_by_key(|place| match place {
        Place::Aside { seq, .. } => (0, *seq),
        Place::Failure { number, .. } => (1, *number),
    });
    places
}

/// What an operator may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Replay,
    Discard,
}

impl Decision {
    /// As it is on record, whoever asked for it in which way.
    pub fn command(self) -> &'static str {
        match self {
            Self::Replay => "retry run",
            Self::Discard => "retry discard",
        }
    }

    /// In which states a message may be named for it.
    pub fn states(self) -> &'static [&'static str] {
        match self {
            Self::Replay => &REPLAYABLE,
            Self::Discard => &OPEN,
        }
    }
}

/// Who decided about a message last.
#[derive(Clone, Debug, Serialize, ToSchema)]
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

impl Filter {
    /// Says why no message that fits can be decided about like that, if it is so.
    pub fn check(&self, decision: Decision) -> Result<(), String> {
        let states = decision.states();
        match self.states.iter().find(|state| !states.contains(&state.as_str())) {
            Some(state) => Err(format!(
                "`{}` is for messages that are {}, and not for those that are {state}",
                decision.command(),
                states.join(" or ")
            )),
            None => Ok(()),
        }
    }

    /// Does anything narrow them down? A state alone does not.
    pub fn is_narrow(&self) -> bool {
        let Self { group, topic, key, event_type, error, since, until, states: _, after: _, limit: _ } = self;
        [group, topic, key, event_type, error].into_iter().any(Option::is_some)
            || since.is_some()
            || until.is_some()
    }
}

/// How far a list has come: what Kafka refused is first, by its `seq`, then what groups failed to handle, by id. It holds
/// though the entry itself be gone.
#[derive(Clone, Copy, Debug)]
pub enum Behind {
    Refused(i64),
    Failed(Uuid),
}

impl From<&Place> for Behind {
    fn from(place: &Place) -> Self {
        match place {
            Place::Aside { seq, .. } => Self::Refused(*seq),
            Place::Failure { message_id, .. } => Self::Failed(*message_id),
        }
    }
}

/// Those that fit: what Kafka refused in the order of its inserts, then what groups failed to handle by id.
pub async fn list(client: &Connection, filter: &Filter) -> Result<Vec<Entry>, PgError> {
    let behind = match filter.after {
        Some(id) if !failures::find(client, &STATES, &[id]).await?.is_empty() => Behind::Failed(id),
        Some(id) => Behind::Refused(parked::seq_of(client, id).await?),
        None => Behind::Refused(0),
    };
    list_behind(client, filter, behind, filter.limit.unwrap_or(i64::MAX)).await
}

/// Up to `limit` of those that come then.
pub async fn list_behind(
    client: &Connection,
    filter: &Filter,
    behind: Behind,
    limit: i64,
) -> Result<Vec<Entry>, PgError> {
    let (mut entries, behind) = match behind {
        Behind::Refused(seq) => (parked::list(client, filter, seq, limit).await?, Uuid::nil()),
        Behind::Failed(id) => (Vec::new(), id),
    };
    let limit = limit - i64::try_from(entries.len()).unwrap_or(i64::MAX);
    entries.extend(failures::list(client, filter, behind, limit).await?);
    Ok(entries)
}

/// Of what is in its state by now: whatever changes from now on fits no more, so that its list has an end.
pub async fn until_now(client: &Connection, filter: Filter) -> Result<Filter, PgError> {
    let until = client.query_one(UNTIL_NOW, &[&filter.until]).await?.get(0);
    Ok(Filter { until: Some(until), ..filter })
}

/// Of that id, with each group that failed to handle it, in one of these states.
pub async fn find(client: &Connection, states: &[&str], ids: &[Uuid]) -> Result<Vec<Entry>, PgError> {
    let mut entries = parked::find(client, states, ids).await?;
    entries.extend(failures::find(client, states, ids).await?);
    Ok(entries)
}

/// All of these, each once; or one of them that is not there.
pub async fn find_each(
    client: &Connection,
    states: &[&str],
    ids: &[Uuid],
) -> Result<Result<Vec<Entry>, Uuid>, PgError> {
    let mut missing: BTreeSet<Uuid> = ids.iter().copied().collect();
    let ids: Vec<Uuid> = missing.iter().copied().collect();
    let entries = find(client, states, &ids).await?;
    for entry in &entries {
        missing.remove(&entry.id);
    }
    // One that has an id of its own is found by the derived one too.
    for id in missing {
        if find(client, states, &[id]).await?.is_empty() {
            return Ok(Err(id));
        }
    }
    Ok(Ok(entries))
}

/// Carries a decision out on these, in a transaction for either kind; says for how many.
pub async fn decide(
    client: &mut Connection,
    decision: Decision,
    operation: i64,
    places: &[Place],
) -> Result<i64, PgError> {
    let refused = places.iter().any(|place| place.aside().is_some());
    let of_outbox = if refused { parked::decide(client, decision, operation, places).await? } else { 0 };
    Ok(of_outbox + failures::decide(client, decision, operation, places).await?)
}
