//! Keys whose messages wait behind a failed one, and how they go on: one after the other, in their order.

use tokio_postgres::{GenericClient, Transaction};
use uuid::Uuid;

use super::connect::PgError;
use super::sql::statements;

statements! {
    /// Waits for those who are just adding a message, and makes later ones look again.
    LOCK = "
        select h.consumer_group, h.topic, h.key_digest from outboxd.held_keys h
        join unnest($1::text[], $2::text[], $3::bytea[], $4::uuid[]) as w (consumer_group, topic, key_digest, message_id)
          using (consumer_group, topic, key_digest, message_id)
        where outboxd.durable() order by 1, 2, 3 for update of h";

    /// A statement of its own, so that it sees what they added.
    NEXT = "
        select w.place::integer, n.message_id
        from unnest($1::text[], $2::text[], $3::bytea[]) with ordinality as w (consumer_group, topic, key_digest, place)
        cross join lateral (
          select f.message_id from outboxd.failures f
          where f.consumer_group = w.consumer_group and f.topic = w.topic and f.key_digest = w.key_digest
            and f.state = 'held'
          order by f.place limit 1 for update
        ) n";

    LEAD = "
        update outboxd.held_keys h set message_id = w.message_id
        from unnest($1::text[], $2::text[], $3::bytea[], $4::uuid[]) as w (consumer_group, topic, key_digest, message_id)
        where h.consumer_group = w.consumer_group and h.topic = w.topic and h.key_digest = w.key_digest";

    LET_GO = "
        delete from outboxd.held_keys h
        using unnest($1::text[], $2::text[], $3::bytea[]) as w (consumer_group, topic, key_digest)
        where h.consumer_group = w.consumer_group and h.topic = w.topic and h.key_digest = w.key_digest";

    /// Due for any agent.
    DUE = "
        update outboxd.failures f set state = 'due', next_attempt_at = clock_timestamp(), changed_at = clock_timestamp()
        from unnest($1::text[], $2::uuid[]) as w (consumer_group, message_id)
        where f.consumer_group = w.consumer_group and f.message_id = w.message_id";

    /// Given to the agent that has just finished the one before.
    HAND_ON = "
        update outboxd.failures f set state = 'retrying', target = $3, dispatch = dispatch + 1, dispatch_seq = null,
          published_at = clock_timestamp(), expires_at = clock_timestamp() + $4::bigint * interval '1 ms',
          changed_at = clock_timestamp()
        from unnest($1::text[], $2::uuid[]) as w (consumer_group, message_id)
        where f.consumer_group = w.consumer_group and f.message_id = w.message_id
        returning f.message_id, f.dispatch";

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
}

/// By column.
pub(super) type Keys<'a> = (Vec<&'a str>, Vec<&'a str>, Vec<&'a [u8]>);

/// Lets the next message of each of these keys go now that its head is done with; after the last one the key is free.
/// Nothing for a key that is not held by this head. The transaction must be READ COMMITTED: each statement has to see what
/// committed before.
pub async fn release(
    transaction: &Transaction<'_>,
    heads: &[Head],
    successor: Successor,
) -> Result<Vec<Next>, PgError> {
    if heads.is_empty() {
        return Ok(Vec::new());
    }
    let (groups, topics, digests) =
        columns(heads.iter().map(|head| (&*head.group, &*head.topic, &*head.key_digest)));
    let ids: Vec<Uuid> = heads.iter().map(|head| head.message_id).collect();
    let locked = transaction.query(LOCK, &[&groups, &topics, &digests, &ids]).await?;
    if locked.is_empty() {
        return Ok(Vec::new());
    }
    let locked: Vec<(&str, &str, &[u8])> =
        locked.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    let (groups, topics, digests) = columns(locked.iter().copied());
    let mut waiting: Vec<Option<Uuid>> = vec![None; locked.len()];
    for row in transaction.query(NEXT, &[&groups, &topics, &digests]).await? {
        let place = usize::try_from(row.get::<_, i32>(0) - 1).unwrap_or(usize::MAX);
        if let Some(waiting) = waiting.get_mut(place) {
            *waiting = Some(row.get(1));
        }
    }
    let last = locked.iter().zip(&waiting).filter(|(_, next)| next.is_none()).map(|(key, _)| *key);
    let (groups, topics, digests) = columns(last);
    if !groups.is_empty() {
        transaction.execute(LET_GO, &[&groups, &topics, &digests]).await?;
    }
    let going_on = locked.iter().zip(&waiting).filter(|(_, next)| next.is_some()).map(|(key, _)| *key);
    let (groups, topics, digests) = columns(going_on);
    let ids: Vec<Uuid> = waiting.into_iter().flatten().collect();
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    transaction.execute(LEAD, &[&groups, &topics, &digests, &ids]).await?;
    match successor {
        Successor::Any => {
            transaction.execute(DUE, &[&groups, &ids]).await?;
            Ok(Vec::new())
        }
        Successor::Agent { id, deadline } => {
            let rows = transaction.query(HAND_ON, &[&groups, &ids, &id, &deadline]).await?;
            Ok(rows.iter().map(|row| Next { message_id: row.get(0), dispatch: row.get(1) }).collect())
        }
    }
}

/// Makes these the heads of their keys, which are held, and locked.
pub(super) async fn lead<'a>(
    transaction: &Transaction<'_>,
    heads: impl Iterator<Item = ((&'a str, &'a str, &'a [u8]), Uuid)>,
) -> Result<(), PgError> {
    let (keys, ids): (Vec<_>, Vec<Uuid>) = heads.unzip();
    let (groups, topics, digests) = columns(keys.into_iter());
    transaction.execute(LEAD, &[&groups, &topics, &digests, &ids]).await?;
    Ok(())
}

pub(super) fn columns<'a>(keys: impl Iterator<Item = (&'a str, &'a str, &'a [u8])>) -> Keys<'a> {
    let mut columns = Keys::default();
    for (group, topic, digest) in keys {
        columns.0.push(group);
        columns.1.push(topic);
        columns.2.push(digest);
    }
    columns
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
