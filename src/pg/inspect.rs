//! What `messages`, `lanes` and the like show. Bounded reads: none is ever the database's biggest query.

use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use utoipa::ToSchema;
use uuid::Uuid;

use super::connect::{Connection, PgError};
use super::sql::statements;
use crate::domain::identity::Tag;
use crate::domain::payload::Payload;
use crate::domain::priority::{NotAPriority, Priority};

statements! {
    /// A look must not become the database's biggest query.
    BOUND = "set statement_timeout = '30s'";

    TAG = "select tag_high, tag_low from outboxd.outbox";

    /// Each lane from its newest message down, by the primary keys, until enough pass the filter; what is set aside may
    /// be found twice. What outboxd itself sends to name the agent of a retry is shown to who asks for its topic. A time beyond the years of RFC 3339 (Postgres knows infinity) is shown as their end.
    MESSAGES = "
        select distinct on (m.seq) m.id, m.seq, m.priority, m.topic, m.key, m.type, m.idempotency_key, m.created_at,
          case when m.deliver_after is not null then least(greatest(m.deliver_after, '0001-01-01 utc'), '9999-12-31 utc') end,
          m.state, m.reason
        from (values (-1::smallint), (0::smallint), (1::smallint)) as lanes (priority)
        cross join lateral (
          (select * from outboxd.message_states_in_outbox s
           where s.priority = lanes.priority and s.seq < $4::bigint
             and (topic = $1 or $1::text is null and topic not like 'outboxd.retry.%') and ($2::text is null or key = $2) and ($3::text is null or state = $3)
           order by s.seq desc limit $5)
          union all
          (select * from outboxd.message_states_aside s
           where s.priority = lanes.priority and s.seq < $4::bigint
             and (topic = $1 or $1::text is null and topic not like 'outboxd.retry.%') and ($2::text is null or key = $2) and ($3::text is null or state = $3)
           order by s.seq desc limit $5)
        ) m
        order by m.seq desc limit $5";

    /// Newest first: what was sent again carries the old id.
    MESSAGE = "
        select m.id, m.seq, m.priority, m.topic, m.key, m.type, m.idempotency_key, m.created_at,
          case when m.deliver_after is not null then least(greatest(m.deliver_after, '0001-01-01 utc'), '9999-12-31 utc') end,
          m.state, m.reason
        from (
          select s.* from outboxd.message_states_in_outbox s where s.priority in (-1, 0, 1) and s.seq = $1
          union all
          select s.* from outboxd.message_states_aside s where s.priority in (-1, 0, 1) and s.seq = $1
          union all
          select s.* from outboxd.messages o join outboxd.message_states_in_outbox s using (priority, seq) where o.id = $2
          union all
          select s.* from outboxd.message_states_aside s where s.id = $2
        ) m
        order by m.seq desc";

    CONTENT = "
        select headers, payload from outboxd.messages where priority = $1 and seq = $2
        union all
        select headers, payload from outboxd.set_aside where priority = $1 and seq = $2
        limit 1";

    PUBLICATION = "
        select agent, began_at, ended_at, partition, highest_offset from outboxd.message_publications
        where priority = $1 and seq = $2 order by began_at desc, partition";

    HANDLED_BY = "
        select consumer_group, topic, partition, \"offset\", agent, attempt, duplicate_of, handled_at,
          extract(epoch from took)::float8
        from outboxd.handled where message_id = $1 order by handled_at";

    FAILING = "
        select consumer_group, state, attempts, reason, error, failed_at, next_attempt_at
        from outboxd.failure_states where message_id = $1 order by consumer_group";

    FAILED_ATTEMPTS = "
        select consumer_group, attempt, agent, error, failed_at
        from outboxd.attempts where message_id = $1 order by consumer_group, attempt";

    LANES = "
        select priority, name,
          case when stopped_at_seq is not null then 'stopped' when owned then 'owned' else 'free' end, agent, lease_expires_at, epoch, \"window\", moved_at, pending, oldest_pending_at,
          extract(epoch from clock_timestamp() - oldest_pending_at)::float8, scheduled, held, parked, stopped_at_seq,
          stopped_reason
        from outboxd.lane_status order by priority desc";
}

/// How many pending messages of a lane are counted at most.
pub const PENDING_LIMIT: i64 = 10_000;

/// A line of `messages list`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct MessageState {
    pub id: Uuid,
    pub seq: i64,
    #[schema(value_type = String)]
    pub priority: Priority,
    pub topic: String,
    pub key: Option<String>,
    #[serde(rename = "type")]
    pub event_type: Option<String>,
    pub idempotency_key: Option<String>,
    pub created_at: DateTime<Utc>,
    pub deliver_after: Option<DateTime<Utc>>,
    pub state: String,
    pub reason: Option<String>,
}

/// What a group did with a message.
#[derive(Clone, Debug, Serialize, ToSchema)]
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

/// What a group failed to do with it, so far or for good.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Failing {
    pub group: String,
    /// `due`, `retrying`, `running`, `held` behind another of its key, `dead`, `discarded`.
    pub state: String,
    pub attempts: i32,
    pub reason: Option<String>,
    pub error: Option<String>,
    pub failed_at: Option<DateTime<Utc>>,
    pub next_attempt_at: Option<DateTime<Utc>>,
}

/// An attempt of a group that failed, whatever came of it later.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FailedAttempt {
    pub group: String,
    pub attempt: i32,
    pub agent: String,
    pub error: String,
    pub failed_at: DateTime<Utc>,
}

/// What is in a message.
#[derive(Clone, Debug, Serialize)]
pub struct Content {
    pub headers: serde_json::Value,
    #[serde(flatten)]
    pub payload: Payload,
}

/// `Content` as JSON shows it: text, or bytes, or neither if this user may not look into it.
#[derive(ToSchema)]
#[allow(dead_code, reason = "describes JSON")]
struct ContentSchema {
    headers: Option<std::collections::BTreeMap<String, String>>,
    payload: Option<String>,
    payload_base64: Option<String>,
}

/// When a message was published, and where it may lie.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Publication {
    /// Who published the end of what it was published with.
    pub agent: Option<String>,
    pub began_at: DateTime<Utc>,
    /// `None`: it goes on.
    pub ended_at: Option<DateTime<Utc>>,
    /// One of these.
    pub places: Vec<PublishedTo>,
}

/// A partition that something was published to meanwhile, and the highest offset of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct PublishedTo {
    pub partition: i32,
    pub offset_at_most: i64,
}

/// A message with its content and its time line.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct MessageStory {
    #[serde(flatten)]
    pub message: MessageState,
    /// The id that the record carries, derived; differs from `message.id` if the application brought its own.
    pub message_id: Uuid,
    /// `None`: this user may look at messages, but not into them.
    #[serde(flatten)]
    #[schema(value_type = ContentSchema)]
    pub content: Option<Content>,
    /// As long as it is known: of a delayed message it never is.
    pub publication: Option<Publication>,
    pub handled: Vec<Handled>,
    pub failing: Vec<Failing>,
    pub failed_attempts: Vec<FailedAttempt>,
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

/// Ends every later statement of this connection that takes longer than a look may.
pub async fn bound(client: &Connection) -> Result<(), PgError> {
    Ok(client.set(BOUND).await?)
}

/// What message ids are made with.
pub(super) async fn tag(client: &Connection) -> Result<Tag, PgError> {
    let tag = client.query_one(TAG, &[]).await?;
    Ok(Tag::new(tag.get(0), tag.get(1)))
}

/// The `seq` of the message of that id.
pub async fn seq_of(client: &Connection, id: Uuid) -> Result<Option<i64>, PgError> {
    Ok(tag(client).await?.seq_of(id))
}

/// The newest messages that pass the filter, newest first.
pub async fn messages(client: &Connection, filter: &MessageFilter) -> Result<Vec<MessageState>, PgError> {
    let before = filter.before.unwrap_or(i64::MAX);
    let rows =
        client.query(MESSAGES, &[&filter.topic, &filter.key, &filter.state, &before, &filter.limit]).await?;
    rows.iter().map(message_state).collect()
}

/// The message of that id, derived or own.
pub async fn message(client: &Connection, id: Uuid) -> Result<Option<MessageStory>, PgError> {
    let tag = tag(client).await?;
    let seq = tag.seq_of(id).unwrap_or(0);
    let rows = client.query(MESSAGE, &[&seq, &Some(id)]).await?;
    let found: Vec<_> = rows.iter().map(message_state).collect::<Result<_, _>>()?;
    // Another outbox's id decodes to a `seq` as well.
    let is_meant =
        |message: &MessageState| message.id == id || tag.message_id(message.created_at, message.seq) == id;
    let Some(message) = found.into_iter().find(is_meant) else {
        return Ok(None);
    };
    let message_id = tag.message_id(message.created_at, message.seq);
    let content = content(client, &message).await?;
    let publication = match (message.state.as_str(), message.deliver_after) {
        ("published", None) => publication(client, &message).await?,
        _ => None,
    };
    let handled = client.query(HANDLED_BY, &[&message_id]).await?;
    let failing = failing(client, message_id).await?;
    let failed_attempts = failed_attempts(client, message_id).await?;
    Ok(Some(MessageStory {
        message,
        message_id,
        content,
        publication,
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
        failing,
        failed_attempts,
    }))
}

async fn failing(client: &Connection, message_id: Uuid) -> Result<Vec<Failing>, PgError> {
    let rows = client.query(FAILING, &[&message_id]).await?;
    Ok(rows
        .iter()
        .map(|row| Failing {
            group: row.get(0),
            state: row.get(1),
            attempts: row.get(2),
            reason: row.get(3),
            error: row.get(4),
            failed_at: row.get(5),
            next_attempt_at: row.get(6),
        })
        .collect())
}

async fn failed_attempts(client: &Connection, message_id: Uuid) -> Result<Vec<FailedAttempt>, PgError> {
    let rows = client.query(FAILED_ATTEMPTS, &[&message_id]).await?;
    Ok(rows
        .iter()
        .map(|row| FailedAttempt {
            group: row.get(0),
            attempt: row.get(1),
            agent: row.get(2),
            error: row.get(3),
            failed_at: row.get(4),
        })
        .collect())
}

async fn content(client: &Connection, message: &MessageState) -> Result<Option<Content>, PgError> {
    match client.query_one(CONTENT, &[&message.priority.number(), &message.seq]).await {
        Ok(row) => {
            Ok(Some(Content { headers: row.get(0), payload: row.get::<_, Option<Vec<u8>>>(1).into() }))
        }
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn publication(client: &Connection, message: &MessageState) -> Result<Option<Publication>, PgError> {
    let rows = client.query(PUBLICATION, &[&message.priority.number(), &message.seq]).await?;
    let Some(first) = rows.first() else { return Ok(None) };
    let began_at: DateTime<Utc> = first.get(1);
    let place = |row: &Row| {
        let partition: Option<i32> = row.get(3);
        partition.map(|partition| PublishedTo { partition, offset_at_most: row.get(4) })
    };
    let same = rows.iter().take_while(|row| row.get::<_, DateTime<Utc>>(1) == began_at);
    Ok(Some(Publication {
        agent: first.get(0),
        // What it was published with may have begun before it came.
        began_at: began_at.max(message.created_at),
        ended_at: first.get(2),
        places: same.filter_map(place).collect(),
    }))
}

fn message_state(row: &Row) -> Result<MessageState, PgError> {
    let priority: i16 = row.get(2);
    Ok(MessageState {
        id: row.get(0),
        seq: row.get(1),
        priority: priority.try_into().map_err(|error: NotAPriority| PgError::Setup(error.to_string()))?,
        topic: row.get(3),
        key: row.get(4),
        event_type: row.get(5),
        idempotency_key: row.get(6),
        created_at: row.get(7),
        deliver_after: row.get(8),
        state: row.get(9),
        reason: row.get(10),
    })
}

/// A line of `lanes list`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct LaneStatus {
    pub priority: i16,
    pub name: String,
    /// `owned`, `free`, or `stopped`, whoever owns it.
    pub state: String,
    pub agent: Option<String>,
    pub lease_expires_at: Option<DateTime<Utc>>,
    pub epoch: i64,
    pub window: i64,
    pub moved_at: Option<DateTime<Utc>>,
    /// Up to `PENDING_LIMIT` are counted.
    pub pending: i64,
    pub oldest_pending_at: Option<DateTime<Utc>>,
    pub oldest_pending_seconds: Option<f64>,
    pub scheduled: i64,
    pub held: i64,
    pub parked: i64,
    /// Of the message that Kafka refused and that nothing is sent behind.
    pub stopped_at_seq: Option<i64>,
    pub stopped_reason: Option<String>,
}

pub async fn lanes(client: &Connection) -> Result<Vec<LaneStatus>, PgError> {
    let rows = client.query(&client.prepare_once(LANES).await?, &[]).await?;
    Ok(rows
        .iter()
        .map(|row| LaneStatus {
            priority: row.get(0),
            name: row.get(1),
            state: row.get(2),
            agent: row.get(3),
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
            stopped_at_seq: row.get(14),
            stopped_reason: row.get(15),
        })
        .collect())
}
