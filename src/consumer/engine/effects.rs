//! Starts of an `sql` handler: a message, or a batch, whose effects and evidence are one transaction.

use std::collections::VecDeque;
use std::time::Instant;

use super::Handled;
use super::attempt::End;
use super::message::Message;
use crate::consumer::Group;
use crate::consumer::handler::SqlHandler;
use crate::consumer::wait::Wait;
use crate::pg::effect::{Affected, Bounds, Effect, Together};

/// In one transaction as long as that goes well, else each in one of its own. Of a chain none behind one that is not done is
/// tried, and nothing once too many have failed in a row.
pub(super) async fn apply(group: &Group, handler: &SqlHandler, messages: Vec<Box<Message>>) -> Vec<Handled> {
    let mut left = VecDeque::from(messages);
    let mut ended = Ended::default();
    let mut unclear = false;
    while !left.is_empty() {
        let size = if unclear { 1 } else { group.batch_size().of(left.len()) };
        let mut part: Vec<Box<Message>> = left.drain(..size).collect();
        let is_over = ended.in_a_row >= group.config().breaker.failures;
        let untried: Vec<_> = part.extract_if(.., |message| is_over || ended.is_behind(message)).collect();
        for message in untried {
            ended.push(message, End::Again);
        }
        let tried = match part.len() {
            0 => continue,
            1 => Tried::Apart,
            _ => apply_together(group, handler, &part, ended.in_a_row, &mut unclear).await,
        };
        match tried {
            Tried::Ended(ends) => {
                for (message, end) in part.into_iter().zip(ends) {
                    ended.push(message, end);
                }
            }
            Tried::TooLong => part.into_iter().rev().for_each(|message| left.push_front(message)),
            Tried::Apart => {
                for message in part {
                    let is_tried =
                        ended.in_a_row < group.config().breaker.failures && !ended.is_behind(&message);
                    let begun = Instant::now();
                    let end = if is_tried {
                        apply_alone(group, handler, &message, unclear).await
                    } else {
                        End::Again
                    };
                    if matches!(end, End::Applied) {
                        group.batch_size().took(1, begun.elapsed(), handler.timeout);
                    }
                    ended.push(message, end);
                }
            }
        }
    }
    ended.all
}

/// Messages that have come to an end.
#[derive(Default)]
struct Ended {
    all: Vec<Handled>,
    /// Failures, up to the last of them.
    in_a_row: u32,
}

impl Ended {
    fn push(&mut self, message: Box<Message>, end: End) {
        match &end {
            End::Failed(_) => self.in_a_row += 1,
            end if end.is_done() => self.in_a_row = 0,
            _ => {}
        }
        self.all.push((message, end));
    }

    /// One before it in its chain is not done.
    fn is_behind(&self, message: &Message) -> bool {
        message.chain.is_some()
            && self.all.iter().any(|(other, end)| other.chain == message.chain && !end.is_done())
    }
}

impl End {
    /// What waits behind it may be handled.
    fn is_done(&self) -> bool {
        matches!(self, Self::Done(_) | Self::Applied | Self::Repeat | Self::Duplicate { .. })
    }
}

/// What came of a part that was tried in one transaction.
enum Tried {
    Ended(Vec<End>),
    /// Fewer at a time may come through.
    TooLong,
    /// One by one.
    Apart,
}

/// A conflict is given a second chance.
async fn apply_together(
    group: &Group,
    handler: &SqlHandler,
    messages: &[Box<Message>],
    in_a_row: u32,
    unclear: &mut bool,
) -> Tried {
    let effects: Vec<Effect<'_>> = messages.iter().map(|message| effect(message)).collect();
    let function = handler.function();
    let is_stopping = || messages.iter().any(|message| message.ending.is_stopping());
    for _ in 0..2 {
        let failures = group.config().breaker.failures.saturating_sub(in_a_row);
        let bounds = Bounds { failures, is_stopping: &is_stopping };
        match group.store.apply_together(function, &effects, bounds).await {
            Ok(Together::Ended(affected, calls)) => {
                for (size, time) in calls {
                    group.batch_size().took(size, time, function.limit());
                }
                let mut ends = Vec::with_capacity(messages.len());
                for (message, affected) in messages.iter().zip(affected) {
                    ends.push(match affected {
                        Affected::Unjudged => apply_alone(group, handler, message, *unclear).await,
                        affected => end(affected, handler, *unclear),
                    });
                }
                return Tried::Ended(ends);
            }
            Ok(Together::TooLong(size)) => {
                group.batch_size().too_long(size);
                tracing::warn!(
                    group = &*group.name,
                    "a call with {size} messages took longer than its timeout: fewer go in one"
                );
                return Tried::TooLong;
            }
            Ok(Together::Apart) => return Tried::Apart,
            Err(error) if error.is_conflict() => {}
            Err(error) => {
                tracing::warn!(
                    group = &*group.name,
                    "a batch of {} goes on one by one: {error}",
                    messages.len()
                );
                *unclear = true;
                return Tried::Apart;
            }
        }
    }
    Tried::Apart
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
