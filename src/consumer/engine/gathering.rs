//! What is finished and the database does not know yet, of all partitions.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::Slot;
use super::message::Message;
use crate::consumer::Group;
use crate::consumer::wait::Wait;
use crate::domain::delivery::Delivery;
use crate::domain::watermark::Ticket;
use crate::failpoint;
use crate::pg::claims::Claim;
use crate::pg::completing::{Completion, Finished};
use crate::pg::failing::Failed;

/// Finished work waits at most this long for company.
const GATHER: Duration = Duration::from_millis(20);

/// Rows of one transaction: more only make it long.
const LARGEST: usize = 5_000;

/// What is to be let go once it is recorded.
#[derive(Debug)]
pub(super) struct Trace {
    pub(super) slot: Slot,
    /// `None`: it came to nothing, and only its claims are given back.
    pub(super) ticket: Option<Ticket>,
    pub(super) id: Option<Uuid>,
    pub(super) operations: Vec<u64>,
    /// To be cleared of it, once finished.
    pub(super) in_doubt: bool,
}

impl Trace {
    pub(super) fn of(message: &Message) -> Self {
        Self {
            slot: message.slot,
            ticket: Some(message.ticket),
            id: Some(message.id()),
            in_doubt: message.in_doubt,
            operations: if message.alone { message.operations().collect() } else { Vec::new() },
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Gathering {
    pub(super) completion: Completion,
    pub(super) traces: Vec<Trace>,
    /// To be copied behind the holds of their keys, in this order.
    pub(super) held: Vec<Box<Message>>,
    /// When the oldest was finished.
    since: Option<Instant>,
}

impl Gathering {
    pub(super) fn finish(&mut self, trace: Trace, finished: Finished, claims: Vec<Claim>) {
        self.completion.finished.push(finished);
        self.completion.claims.extend(claims);
        self.leave(trace);
    }

    pub(super) fn release(&mut self, trace: Trace, claims: Vec<Claim>) {
        self.completion.released.extend(claims);
        self.leave(trace);
    }

    pub(super) fn fail(&mut self, trace: Trace, failed: Failed, claims: Vec<Claim>) {
        self.completion.failed.push(failed);
        self.release(trace, claims);
    }

    pub(super) fn hold(&mut self, message: Box<Message>) {
        self.held.push(message);
        self.since.get_or_insert_with(Instant::now);
    }

    /// Nothing is to be written of it but that it is passed.
    pub(super) fn leave(&mut self, trace: Trace) {
        self.traces.push(trace);
        self.since.get_or_insert_with(Instant::now);
    }

    pub(super) fn len(&self) -> usize {
        self.traces.len() + self.held.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= LARGEST
    }

    /// When it has to be written, if there is anything.
    pub(super) fn due(&self) -> Option<Instant> {
        self.since.map(|since| since + GATHER)
    }
}

/// What has been written.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) traces: Vec<Trace>,
    pub(super) completion: Completion,
    /// Copied, and their positions may follow.
    pub(super) held: Vec<Box<Message>>,
    /// Their keys are held no more.
    pub(super) freed: Vec<Box<Message>>,
}

/// Writes it, however long that takes: what is finished in one transaction, which may be repeated if its outcome is
/// unknown; then what is held, which may be behind a failure of that transaction.
pub(super) async fn write(group: Arc<Group>, gathering: Gathering) -> Written {
    let Gathering { mut completion, traces, held, .. } = gathering;
    if !completion.is_empty() {
        // Side by side in the index, and in the same order as whoever else writes the same.
        completion.finished.sort_unstable_by_key(|finished| finished.message_id);
        complete(&group, &completion).await;
    }
    let still_held = if held.is_empty() { Vec::new() } else { hold(&group, &held).await };
    let (held, freed): (Vec<_>, Vec<_>) = held.into_iter().zip(still_held).partition(|(_, still)| *still);
    let messages = |pairs: Vec<(Box<Message>, bool)>| pairs.into_iter().map(|(message, _)| message).collect();
    Written { traces, completion, held: messages(held), freed: messages(freed) }
}

async fn hold(group: &Group, held: &[Box<Message>]) -> Vec<bool> {
    let deliveries: Vec<&Delivery> = held.iter().map(|message| &message.delivery).collect();
    let mut wait = Wait::new(&group.name, &group.status, "held");
    loop {
        match group.store.hold(&deliveries).await {
            Ok(still_held) => {
                wait.end();
                return still_held;
            }
            Err(error) => wait.pause(&error.to_string()).await,
        }
    }
}

async fn complete(group: &Group, completion: &Completion) {
    failpoint::hit("consumer-before-complete");
    let mut wait = Wait::new(&group.name, &group.status, "completion");
    let lost = loop {
        match group.store.complete(completion).await {
            Ok(lost) => break lost,
            Err(error) => wait.pause(&error.to_string()).await,
        }
    };
    wait.end();
    failpoint::hit("consumer-after-complete");
    if lost > 0 {
        tracing::warn!(
            group = &*group.name,
            "{lost} idempotency keys had been taken over meanwhile: their operations may have been done twice"
        );
    }
}
