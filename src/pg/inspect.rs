//! What `messages`, `lanes` and the like show. Bounded reads: none is ever the database's biggest query.

use chrono::{DateTime, Utc};
use tokio_postgres::Client;
use uuid::Uuid;

use super::connect::PgError;
use super::sql::statements;
use crate::domain::identity::Tag;

statements! {
    TAG = "select tag_high, tag_low from outboxd.outbox";

    MESSAGES = "
        select id, seq, priority, topic, key, type, idempotency_key, created_at, deliver_after, state, reason
        from outboxd.message_states
        where ($1::text is null or topic = $1) and ($2::text is null or key = $2) and ($3::text is null or state = $3)
          and ($4::bigint is null or seq < $4)
        order by seq desc limit $5";

    MESSAGE = "
        select id, seq, priority, topic, key, type, idempotency_key, created_at, deliver_after, state, reason
        from outboxd.message_states s
        where s.priority in (-1, 0, 1) and s.seq = $1
        union all
        select s.id, s.seq, s.priority, s.topic, s.key, s.type, s.idempotency_key, s.created_at, s.deliver_after, s.state, s.reason
        from outboxd.messages m join outboxd.message_states s using (priority, seq)
        where m.id = $2";

    CONTENT = "select headers, payload from outboxd.messages where priority = $1 and seq = $2";

    HANDLED_BY = "
        select consumer_group, topic, partition, \"offset\", agent, attempt, duplicate_of, handled_at,
          extract(epoch from took)::float8
        from outboxd.handled where message_id = $1 order by handled_at";

    LANES = "
        select priority, name, agent, owned, lease_expires_at, epoch, \"window\", moved_at, pending, oldest_pending_at,
          extract(epoch from clock_timestamp() - oldest_pending_at)::float8, scheduled, held, parked
        from outboxd.lane_status order by priority desc";
}

/// A line of `messages list`.
#[derive(Clone, Debug)]
pub struct MessageState {
    pub id: Uuid,
    pub seq: i64,
    pub priority: i16,
    pub topic: String,
    pub key: Option<String>,
    pub event_type: Option<String>,
    pub idempotency_key: Option<String>,
    pub created_at: DateTime<Utc>,
    pub deliver_after: Option<DateTime<Utc>>,
    pub state: String,
    pub reason: Option<String>,
}

/// What a group did with a message.
#[derive(Clone, Debug)]
pub struct Handled {
    pub group: String,
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub agent: String,
    pub attempt: i32,
    pub duplicate_of: Option<Uuid>,
    pub handled_at: DateTime<Utc>,
    pub took_seconds: Option<f64>,
}

/// A message with its content and its time line.
#[derive(Clone, Debug)]
pub struct MessageStory {
    pub message: MessageState,
    /// The id that the record carries, derived; differs from `message.id` if the application brought its own.
    pub message_id: Uuid,
    pub headers: serde_json::Value,
    pub payload: Option<Vec<u8>>,
    pub handled: Vec<Handled>,
}

/// Filters of `messages list`.
#[derive(Clone, Debug, Default)]
pub struct MessageFilter {
    pub topic: Option<String>,
    pub key: Option<String>,
    pub state: Option<String>,
    /// Older than this `seq`.
    pub before: Option<i64>,
    pub limit: i64,
}

/// The newest messages that pass the filter, newest first.
pub async fn messages(client: &Client, filter: &MessageFilter) -> Result<Vec<MessageState>, PgError> {
    let rows = client
        .query(MESSAGES, &[&filter.topic, &filter.key, &filter.state, &filter.before, &filter.limit])
        .await?;
    Ok(rows.iter().map(message_state).collect())
}

/// The message of that id, derived or own.
pub async fn message(client: &Client, id: Uuid) -> Result<Option<MessageStory>, PgError> {
    let tag = client.query_one(TAG, &[]).await?;
    let tag = Tag::new(tag.get(0), tag.get(1));
    let seq = tag.seq_of(id).unwrap_or(0);
    let rows = client.query(MESSAGE, &[&seq, &Some(id)]).await?;
    let found = rows
        .iter()
        .map(message_state)
        .find(|message| message.id == id || tag.message_id(message.created_at, message.seq) == id);
    let Some(message) = found else {
        return Ok(None);
    };
    let message_id = tag.message_id(message.created_at, message.seq);
    let content = client.query_one(CONTENT, &[&message.priority, &message.seq]).await?;
    let handled = client.query(HANDLED_BY, &[&message_id]).await?;
    Ok(Some(MessageStory {
        message,
        message_id,
        headers: content.get(0),
        payload: content.get(1),
        handled: handled
            .iter()
            .map(|row| Handled {
                group: row.get(0),
                topic: row.get(1),
                partition: row.get(2),
                offset: row.get(3),
                agent: row.get(4),
                attempt: row.get(5),
                duplicate_of: row.get(6),
                handled_at: row.get(7),
                took_seconds: row.get(8),
            })
            .collect(),
    }))
}

fn message_state(row: &tokio_postgres::Row) -> MessageState {
    MessageState {
        id: row.get(0),
        seq: row.get(1),
        priority: row.get(2),
        topic: row.get(3),
        key: row.get(4),
        event_type: row.get(5),
        idempotency_key: row.get(6),
        created_at: row.get(7),
        deliver_after: row.get(8),
        state: row.get(9),
        reason: row.get(10),
    }
}

/// A line of `lanes list`.
#[derive(Clone, Debug)]
pub struct LaneStatus {
    pub priority: i16,
    pub name: String,
    pub agent: Option<String>,
    pub owned: bool,
    pub lease_expires_at: Option<DateTime<Utc>>,
    pub epoch: i64,
    pub window: i64,
    pub moved_at: Option<DateTime<Utc>>,
    /// Up to 10,000 are counted.
    pub pending: i64,
    pub oldest_pending_at: Option<DateTime<Utc>>,
    pub oldest_pending_seconds: Option<f64>,
    pub scheduled: i64,
    pub held: i64,
    pub parked: i64,
}

pub async fn lanes(client: &Client) -> Result<Vec<LaneStatus>, PgError> {
    let rows = client.query(LANES, &[]).await?;
    Ok(rows
        .iter()
        .map(|row| LaneStatus {
            priority: row.get(0),
            name: row.get(1),
            agent: row.get(2),
            owned: row.get(3),
            lease_expires_at: row.get(4),
            epoch: row.get(5),
            window: row.get(6),
            moved_at: row.get(7),
            pending: row.get(8),
            oldest_pending_at: row.get(9),
            oldest_pending_seconds: row.get(10),
            scheduled: row.get(11),
            held: row.get(12),
            parked: row.get(13),
        })
        .collect())
}
