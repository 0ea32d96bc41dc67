//! What is finished and the database does not know yet, of all partitions.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::Slot;
use super::message::Message;
use crate::consumer::Group;
use crate::consumer::wait::Wait;
use crate::domain::watermark::Ticket;
use crate::failpoint;
use crate::pg::claims::Claim;
use crate::pg::evidence::{Completion, Finished};

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
}

impl Trace {
    pub(super) fn of(message: &Message) -> Self {
        Self {
            slot: message.slot,
            ticket: Some(message.ticket),
            id: Some(message.id()),
            operations: if message.alone { message.operations().collect() } else { Vec::new() },
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Gathering {
    pub(super) completion: Completion,
    pub(super) traces: Vec<Trace>,
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

    /// Nothing is to be written of it but that it is passed.
    pub(super) fn leave(&mut self, trace: Trace) {
        self.traces.push(trace);
        self.since.get_or_insert_with(Instant::now);
    }

    pub(super) fn len(&self) -> usize {
        self.traces.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.traces.len() >= LARGEST
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
}

/// Writes it, however long that takes, in one transaction, which may be repeated if its outcome is unknown.
pub(super) async fn write(group: Arc<Group>, mut gathering: Gathering) -> Written {
    if gathering.completion.is_empty() {
        return Written { traces: gathering.traces, completion: gathering.completion };
    }
    // Side by side in the index, and in the same order as whoever else writes the same.
    gathering.completion.finished.sort_unstable_by_key(|finished| finished.message_id);
    failpoint::hit("consumer-before-complete");
    let mut wait = Wait::new(&group.name, &group.status, "completion");
    let lost = loop {
        match group.store.complete(&gathering.completion).await {
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
    Written { traces: gathering.traces, completion: gathering.completion }
}
