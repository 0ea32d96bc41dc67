//! The second stage: messages whose turn it is claim their operations and are handled.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::attempt::End;
use super::message::Message;
use super::{Engine, Handled, Running, asking, attempt};
use crate::consumer::Tally;
use crate::consumer::handler::Handler;
use crate::domain::backoff::Backoff;
use crate::domain::delivery::Outcome;
use crate::pg::claims::Claimed;

/// While another message holds a key.
const BUSY: Backoff = Backoff { first: Duration::from_millis(50), max: Duration::from_secs(1) };

/// A key that is held for longer is told.
const BUSY_IS_LONG: u32 = 20;

impl Engine {
    /// Its turn has come.
    pub(super) fn proceed(&mut self, mut message: Box<Message>) {
        if message.ending.is_stopping() {
            return self.give_up(message);
        }
        if message.hold.is_some_and(|hold| self.held.contains(&hold)) {
            return self.hold(message);
        }
        if !take_operations(&mut self.operations, &mut message) {
            return self.wait_for_operation(message);
        }
        if message.suspicion.is_some() && !message.counted {
            return self.suspects.waiting.push_back(message);
        }
        let lacks_claims = !message.keys.is_empty() && !message.has_claims();
        let line = if message.counted { &mut self.suspects.line } else { &mut self.line };
        match self.group.handler {
            Handler::Outside(_) if lacks_claims => line.unclaimed.push_back(message),
            _ => line.startable.push_back(message),
        }
    }

    /// Another message of this engine has one of its keys.
    pub(super) fn wait_for_operation(&mut self, message: Box<Message>) {
        let taken = message.operations().find(|operation| self.operations.contains_key(operation));
        match taken.and_then(|operation| self.operations.get_mut(&operation)) {
            Some(waiting) => waiting.push(message),
            None => self.free.push_back(message),
        }
    }

    /// Claims for those that start now, and for no more than will soon.
    pub(super) fn begin_claim(&mut self) {
        let all = self.places();
        let line = self.suspects.line_or(&mut self.line);
        let places = all.saturating_sub(self.running.len() + line.startable.len());
        // Handlers that answer at once leave nothing running behind them.
        let is_fast = self.running.is_empty() && all == self.group.places.count() && !self.group.has_pace();
        let places = if is_fast { places.max(self.group.config().batch) } else { places };
        if self.claim.is_some() || line.unclaimed.is_empty() || places == 0 {
            return;
        }
        let count = places.min(line.unclaimed.len());
        let mut messages: Vec<Box<Message>> = line.unclaimed.drain(..count).collect();
        for message in &mut messages {
            self.begin(message);
        }
        let claim = asking::claim(Arc::clone(&self.group), messages);
        self.claim = Some(AbortOnDropHandle::new(tokio::spawn(claim)));
    }

    pub(super) fn claimed(&mut self, messages: Vec<Box<Message>>, claimed: Option<Vec<Claimed>>) {
        let Some(claimed) = claimed else { return self.free.extend(messages) };
        for (mut message, claimed) in messages.into_iter().zip(claimed) {
            match claimed {
                Claimed::All(claims) => {
                    message.claims = claims;
                    message.claimed_at = Some(Instant::now());
                    self.free.push_back(message);
                }
                Claimed::Done { by, same_payload } => self.duplicate(message, by, same_payload),
                Claimed::Busy => {
                    message.claims.clear();
                    self.acquit(&mut message);
                    self.wait_for_key(message);
                }
            }
        }
    }

    /// From now on its partition waits for it.
    pub(super) fn begin(&mut self, message: &mut Message) {
        if !message.begun
            && let Some(partition) = self.partitions.get_mut(&message.slot)
        {
            message.begun = true;
            partition.busy += 1;
            partition.changed = true;
        }
    }

    pub(super) fn start(&mut self, message: Box<Message>) {
        if message.ending.is_stopping() {
            return self.give_up(message);
        }
        if !message.claims.is_empty() && !message.has_claims() {
            return self.free.push_back(message);
        }
        let mut messages = self.with_company(message);
        for message in &mut messages {
            self.begin(message);
        }
        let (group, place) = (Arc::clone(&self.group), self.place.take());
        let mut running: Running = Box::pin(async move {
            let handled = attempt::run(group, messages).await;
            drop(place);
            handled
        });
        // A handler that answers at once needs no place among those that run.
        match (&mut running).now_or_never() {
            Some(handled) => self.handled(handled),
            None => self.running.push(running),
        }
    }

    pub(super) fn handled(&mut self, handled: Vec<Handled>) {
        for (message, end) in self.put_back(handled) {
            self.ended(message, end);
        }
    }

    fn ended(&mut self, mut message: Box<Message>, end: End) {
        self.let_off(&mut message, &end);
        if matches!(end, End::Done(_) | End::Applied | End::Failed(Outcome::Permanent { .. })) {
            self.group.control.answered();
        }
        match end {
            End::Done(took) => self.finish(message, Some(took), None),
            End::Applied => {
                self.group.status.count(Tally::Processed, 1);
                self.leave(&message);
            }
            End::Repeat => {
                self.group.status.count(Tally::Duplicate, 1);
                self.leave(&message);
            }
            End::Duplicate { by, same_payload } => self.duplicate(message, by, same_payload),
            End::Busy => self.wait_for_key(message),
            End::Failed(Outcome::Done) => self.finish(message, None, None),
            End::Failed(Outcome::Retry { reason, after }) => self.failed(message, reason, after, false),
            End::Failed(Outcome::Permanent { reason }) => self.failed(message, reason, None, true),
            End::Again | End::Suspect => self.free.push_back(message),
            End::Lost => self.give_up(message),
        }
    }

    /// Another agent's message holds a key.
    pub(super) fn wait_for_key(&mut self, mut message: Box<Message>) {
        message.busy += 1;
        if message.busy.is_multiple_of(BUSY_IS_LONG) {
            tracing::warn!(
                group = &*self.group.name,
                id = %message.id(),
                key = message.delivery.idempotency_key,
                "another message of the same operation has not come to its end; waiting for it, or for its claim to expire"
            );
        }
        let delay = BUSY.delay(message.busy, fastrand::f64());
        self.delay(message, delay);
    }

    pub(super) fn delay(&mut self, message: Box<Message>, delay: Duration) {
        self.dismiss_behind(&message);
        self.delayed.push(Box::pin(async move {
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = message.ending.stop.cancelled() => {}
            }
            message
        }));
    }
}

/// Makes its operations its own, unless another message of this engine has one of them.
pub(super) fn take_operations(
    operations: &mut HashMap<u64, Vec<Box<Message>>>,
    message: &mut Message,
) -> bool {
    if message.alone || message.keys.is_empty() {
        return true;
    }
    let wanted: Vec<u64> = message.operations().collect();
    message.alone = wanted.iter().all(|operation| !operations.contains_key(operation));
    if message.alone {
        operations.extend(wanted.into_iter().map(|operation| (operation, Vec::new())));
    }
    message.alone
}
