//! Starts of an `sql` handler: a message, or a batch, whose effects and evidence are one transaction.

use super::Handled;
use super::attempt::End;
use super::message::Message;
use crate::consumer::Group;
use crate::consumer::handler::SqlHandler;
use crate::consumer::wait::Wait;
use crate::pg::effect::{Affected, Effect};

/// In one transaction as long as that goes well, else each in one of its own.
pub(super) async fn apply(group: &Group, handler: &SqlHandler, messages: Vec<Box<Message>>) -> Vec<Handled> {
    let mut unclear = false;
    if messages.len() > 1
        && let Some(ends) = apply_together(group, handler, &messages, &mut unclear).await
    {
        return messages.into_iter().zip(ends).collect();
    }
    let mut ended: Vec<Handled> = Vec::with_capacity(messages.len());
    let mut in_a_row = 0;
    for message in messages {
        let is_behind = message.chain.is_some()
            && ended.iter().any(|(other, end)| other.chain == message.chain && !end.is_done());
        let is_tried = !is_behind && in_a_row < group.config().breaker.failures;
        let end = if is_tried { apply_alone(group, handler, &message, unclear).await } else { End::Again };
        match &end {
            End::Failed(_) => in_a_row += 1,
            end if end.is_done() => in_a_row = 0,
            _ => {}
        }
        ended.push((message, end));
    }
    ended
}

impl End {
    /// What waits behind it may be handled.
    fn is_done(&self) -> bool {
        matches!(self, Self::Done(_) | Self::Applied | Self::Repeat | Self::Duplicate { .. })
    }
}

/// `None`: it has to be tried one by one. A conflict is given a second chance.
async fn apply_together(
    group: &Group,
    handler: &SqlHandler,
    messages: &[Box<Message>],
    unclear: &mut bool,
) -> Option<Vec<End>> {
    let effects: Vec<Effect<'_>> = messages.iter().map(|message| effect(message)).collect();
    for _ in 0..2 {
        match group.store.apply_together(handler.function(), &effects, group.config().breaker.failures).await
        {
            Ok(affected) => {
                let mut ends = Vec::with_capacity(messages.len());
                for (message, affected) in messages.iter().zip(affected?) {
                    ends.push(match affected {
                        Affected::Unjudged => apply_alone(group, handler, message, *unclear).await,
                        affected => end(affected, handler, *unclear),
                    });
                }
                return Some(ends);
            }
            Err(error) if error.is_conflict() => {}
            Err(error) => {
                tracing::warn!(
                    group = &*group.name,
                    "a batch of {} goes on one by one: {error}",
                    messages.len()
                );
                *unclear = true;
                return None;
            }
        }
    }
    None
}

/// Errors of the connection, and conflicts, are nobody's failure.
async fn apply_alone(group: &Group, handler: &SqlHandler, message: &Message, mut unclear: bool) -> End {
    let mut wait = Wait::new(&group.name, &group.status, "effects");
    loop {
        if message.ending.is_stopping() {
            return End::Lost;
        }
        let error = match group.store.apply(handler.function(), effect(message)).await {
            Ok(affected) => {
                wait.end();
                return end(affected, handler, unclear);
            }
            Err(error) => error,
        };
        unclear |= !error.is_conflict();
        let reason = error.to_string();
        tokio::select! {
            () = wait.pause(&reason) => {}
            () = message.ending.stop.cancelled() => return End::Lost,
        }
    }
}

fn effect(message: &Message) -> Effect<'_> {
    Effect {
        delivery: &message.delivery,
        chain: message.chain,
        keys: &message.keys,
        payload_hash: message.payload_hash,
    }
}

fn end(affected: Affected, handler: &SqlHandler, unclear: bool) -> End {
    match affected {
        Affected::Done => End::Applied,
        // After an unclear outcome, evidence means that it was this very try.
        Affected::Repeat if unclear => End::Applied,
        Affected::Repeat => End::Repeat,
        Affected::Duplicate { by, same_payload } => End::Duplicate { by, same_payload },
        Affected::Busy => End::Busy,
        Affected::Failed(error) => End::Failed(handler.failed(&error)),
        Affected::Untried | Affected::Unjudged => End::Again,
        Affected::Lost => End::Suspect,
    }
}
