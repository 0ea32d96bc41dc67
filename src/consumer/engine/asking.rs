//! What the engine asks the database before anything is handled. Without an answer nothing is.

use std::collections::HashMap;
use std::sync::Arc;

use uuid::Uuid;

use super::Asked;
use super::message::{Message, Taken};
use super::suspects::Counted;
use crate::consumer::Group;
use crate::consumer::wait::Wait;
use crate::domain::suspicion::Suspicion;
use crate::pg::PgError;
use crate::pg::claims::Wanted;
use crate::pg::completing::{LookedFor, Standing};

/// A batch, and what the group knows of it.
pub(super) type LookedUp = Vec<(Box<Message>, Standing)>;

/// `again` are those that were looked up before something changed.
pub(super) async fn look_up(group: Arc<Group>, again: Vec<Box<Message>>, taken: Vec<Taken>) -> LookedUp {
    let mut messages = again;
    messages.extend(taken.into_iter().map(|taken| Box::new(Message::new(&group, taken))));
    let mut wait = Wait::new(&group.name, &group.status, "look-up");
    loop {
        let wanted: Vec<LookedFor<'_>> = messages
            .iter()
            .map(|message| LookedFor {
                id: message.id(),
                topic: &message.delivery.record.topic,
                key: message.hold.and(message.delivery.record.key.as_deref()),
            })
            .collect();
        match look_up_once(&group, &wanted, &messages).await {
            Ok((standings, noted)) => {
                wait.end();
                for (message, standing) in messages.iter_mut().zip(&standings) {
                    message.in_doubt &= *standing == Standing::New;
                    message.suspicion = noted.get(&message.id()).copied();
                    // Each start that is counted was an attempt.
                    message.delivery.attempt = message.suspicion.unwrap_or_default().starts + 1;
                }
                return messages.into_iter().zip(standings).collect();
            }
            Err(error) => wait.pause(&error.to_string()).await,
        }
    }
}

/// With those that were noted before.
async fn look_up_once(
    group: &Group,
    wanted: &[LookedFor<'_>],
    messages: &[Box<Message>],
) -> Result<(Vec<Standing>, HashMap<Uuid, Suspicion>), PgError> {
    let standings = group.store.look_up(wanted).await?;
    let new = messages.iter().zip(&standings).filter(|(_, standing)| **standing == Standing::New);
    let in_doubt: Vec<Uuid> =
        new.filter(|(message, _)| message.in_doubt).map(|(message, _)| message.id()).collect();
    let noted = if in_doubt.is_empty() { HashMap::new() } else { group.store.note(&in_doubt).await? };
    Ok((standings, noted))
}

/// Counts a start of each of these, however long that takes; the last one of a message once it is alone in its process.
/// Gives those back that start first.
pub(super) async fn count_starts(
    group: Arc<Group>,
    first: Vec<Box<Message>>,
    all: Vec<Uuid>,
    is_last: bool,
) -> Counted {
    let alone = if is_last { Some(group.places.alone().await) } else { None };
    if is_last && first.iter().any(|message| message.ending.is_stopping()) {
        return (first, None);
    }
    let mut wait = Wait::new(&group.name, &group.status, "starts");
    loop {
        match group.store.count_starts(&all, is_last).await {
            Ok(_) => {
                wait.end();
                return (first, alone);
            }
            Err(error) => wait.pause(&error.to_string()).await,
        }
    }
}

/// Each message with what became of its claims; `None` if one of their partitions is at its end, and it is to be seen
/// anew who starts.
pub(super) async fn claim(group: Arc<Group>, messages: Vec<Box<Message>>) -> Asked {
    let ttl = group.claim_time();
    let mut wait = Wait::new(&group.name, &group.status, "claims");
    loop {
        let wanted: Vec<Wanted<'_>> = messages
            .iter()
            .map(|message| Wanted {
                message_id: message.id(),
                payload_hash: message.payload_hash,
                keys: &message.keys,
            })
            .collect();
        match group.store.claim(&wanted, ttl).await {
            Ok(claimed) => {
                wait.end();
                return (messages, Some(claimed));
            }
            Err(error) => wait.pause(&error.to_string()).await,
        }
        if messages.iter().any(|message| message.ending.is_stopping()) {
            return (messages, None);
        }
    }
}
