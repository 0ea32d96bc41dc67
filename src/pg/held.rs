//! Keys whose messages wait behind a failed one, and how they go on: one after the other, in their order.

use tokio_postgres::{GenericClient, Transaction};
use uuid::Uuid;

use super::connect::PgError;
use super::sql::statements;

statements! {
    /// Waits for those who are just adding a message, and makes later ones look again.
    LOCK = "
        select from outboxd.held_keys
        where outboxd.durable() and consumer_group = $1 and topic = $2 and key_digest = $3 and message_id = $4 for update";

    /// A statement of its own, so that it sees what they added.
    NEXT = "
        select message_id from outboxd.failures
        where consumer_group = $1 and topic = $2 and key_digest = $3 and state = 'held' order by place limit 1 for update";

    LEAD = "
        update outboxd.held_keys set message_id = $4
        where consumer_group = $1 and topic = $2 and key_digest = $3";

    LET_GO = "delete from outboxd.held_keys where consumer_group = $1 and topic = $2 and key_digest = $3";

    /// Due for any agent.
    DUE = "
        update outboxd.failures set state = 'due', next_attempt_at = clock_timestamp(), changed_at = clock_timestamp()
        where consumer_group = $1 and message_id = $2";

    /// Given to the agent that has just finished the one before.
    HAND_ON = "
        update outboxd.failures set state = 'retrying', target = $3, dispatch = dispatch + 1, dispatch_seq = null,
          published_at = clock_timestamp(), expires_at = clock_timestamp() + $4::bigint * interval '1 ms',
          changed_at = clock_timestamp()
        where consumer_group = $1 and message_id = $2 returning dispatch, attempts + 1";

    /// Heads that are not open any more, whoever closed them: nobody else would look at their keys again.
    FORSAKEN = "
        select h.consumer_group, h.topic, h.key_digest, h.message_id from outboxd.held_keys h
        where h.held_at < clock_timestamp() - interval '1 minute' and not exists (select from outboxd.failures f
          where f.consumer_group = h.consumer_group and f.message_id = h.message_id)
        limit 100";
}

/// A key of a group that may be held, and the message at its head.
#[derive(Clone, Debug)]
pub struct Head {
    pub group: String,
    pub topic: String,
    pub key_digest: Vec<u8>,
    pub message_id: Uuid,
}

/// Who tries the next message of the key.
#[derive(Clone, Copy, Debug)]
pub enum Successor {
    /// Whoever is chosen.
    Any,
    /// This agent, at once: it has so many milliseconds to start.
    Agent { id: Uuid, deadline: i64 },
}

/// The next message of a key, given to the agent that asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    pub message_id: Uuid,
    pub dispatch: i64,
    pub attempt: i32,
}

/// Lets the next message of the key go now that its head is done with; after the last one the key is free. Nothing if the
/// key is not held by this head. The transaction must be READ COMMITTED: each statement has to see what committed before.
pub async fn release(
    transaction: &Transaction<'_>,
    head: &Head,
    successor: Successor,
) -> Result<Option<Next>, PgError> {
    let Head { group, topic, key_digest, message_id } = head;
    if transaction.query_opt(LOCK, &[group, topic, key_digest, message_id]).await?.is_none() {
        return Ok(None);
    }
    let Some(next) = transaction.query_opt(NEXT, &[group, topic, key_digest]).await? else {
        transaction.execute(LET_GO, &[group, topic, key_digest]).await?;
        return Ok(None);
    };
    let next: Uuid = next.get(0);
    transaction.execute(LEAD, &[group, topic, key_digest, &next]).await?;
    match successor {
        Successor::Any => {
            transaction.execute(DUE, &[group, &next]).await?;
            Ok(None)
        }
        Successor::Agent { id, deadline } => {
            let row = transaction.query_one(HAND_ON, &[group, &next, &id, &deadline]).await?;
            Ok(Some(Next { message_id: next, dispatch: row.get(0), attempt: row.get(1) }))
        }
    }
}

/// Keys that would wait for ever.
pub async fn forsaken(client: &impl GenericClient) -> Result<Vec<Head>, PgError> {
    let rows = client.query(FORSAKEN, &[]).await?;
    Ok(rows
        .iter()
        .map(|row| Head {
            group: row.get(0),
            topic: row.get(1),
            key_digest: row.get(2),
            message_id: row.get(3),
        })
        .collect())
}
