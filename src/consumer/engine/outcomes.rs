//! What becomes of a message, and of those that wait for its turn to end.

use std::time::Duration;

use uuid::Uuid;

use super::gathering::Trace;
use super::message::Message;
use super::{Engine, Report, Slot};
use crate::config::OnDead;
use crate::consumer::{Tally, in_words};
use crate::pg::failing::{Failed, Fate, Reason};

impl Engine {
    /// Nothing is called for it; the evidence names the message that did its operation.
    pub(super) fn duplicate(&mut self, mut message: Box<Message>, by: Uuid, same_payload: bool) {
        let (group, id) = (&*self.group.name, message.id());
        let key = message.delivery.idempotency_key.as_deref();
        if same_payload {
            tracing::debug!(group, %id, %by, key, "a duplicate, skipped");
        } else {
            tracing::warn!(group, %id, %by, key, "skipped as a duplicate, though its payload is another");
            self.group.status.count(Tally::OtherPayload, 1);
        }
        self.begin(&mut message);
        self.finish(message, None, Some(by));
    }

    /// There is evidence of it.
    pub(super) fn skip(&mut self, mut message: Box<Message>) {
        tracing::debug!(group = &*self.group.name, id = %message.id(), "a repeat, skipped");
        self.group.status.count(Tally::Duplicate, 1);
        self.begin(&mut message);
        let trace = Trace { id: None, ..Trace::of(&message) };
        self.gathering.leave(trace);
        self.let_go(message.slot, message.size);
    }

    pub(super) fn finish(
        &mut self,
        mut message: Box<Message>,
        took: Option<Duration>,
        duplicate_of: Option<Uuid>,
    ) {
        let mut finished = message.finished();
        (finished.took, finished.duplicate_of) = (took, duplicate_of);
        let claims = std::mem::take(&mut message.claims);
        self.gathering.finish(Trace::of(&message), finished, claims);
        self.end_of_turn(&message);
    }

    /// What is to be written of it is written already.
    pub(super) fn leave(&mut self, message: &Message) {
        self.gathering.leave(Trace::of(message));
        self.end_of_turn(message);
    }

    /// It waits behind one of its key that failed.
    pub(super) fn hold(&mut self, mut message: Box<Message>) {
        message.counted = false;
        self.begin(&mut message);
        self.end_of_turn(&message);
        self.gathering.hold(message);
    }

    pub(super) fn failed(
        &mut self,
        mut message: Box<Message>,
        reason: String,
        after: Option<Duration>,
        is_permanent: bool,
    ) {
        let retry = self.group.config().retry;
        let attempt = message.delivery.attempt;
        let delay = retry.delay(attempt, after, fastrand::f64());
        self.group.status.count(Tally::Failed, 1);
        if !is_permanent {
            self.group.control.failed(&reason);
        }
        let fate = if is_permanent {
            Fate::Dead(Reason::Permanent)
        } else if retry.is_over(attempt) {
            Fate::Dead(Reason::Attempts)
        } else {
            Fate::Due(delay)
        };
        let stays = attempt < retry.inline_attempts && matches!(fate, Fate::Due(_));
        tell_failure(&message, fate, stays, &reason);
        message.errors.push((attempt, reason));
        if stays {
            message.delivery.attempt += 1;
            return self.delay(message, delay);
        }
        self.leave_line(message, fate);
    }

    /// It counts as finished, and its failure is written with the rest.
    pub(super) fn leave_line(&mut self, message: Box<Message>, fate: Fate) {
        let retry = self.group.config().retry;
        let holds_key = match fate {
            Fate::Due(_) => message.hold.is_some(),
            Fate::Dead(_) => message.hold.is_some() && retry.on_dead == OnDead::Hold,
        };
        if holds_key {
            self.held.extend(message.hold);
        }
        if let Fate::Dead(reason) = fate {
            self.group.status.gave_up(reason.name());
        }
        let trace = Trace::of(&message);
        self.end_of_turn(&message);
        let Message { delivery, errors, claims, .. } = *message;
        self.gathering.fail(trace, Failed { delivery, fate, errors, holds_key }, claims);
    }

    /// It was not handled, and will not be by us.
    pub(super) fn give_up(&mut self, mut message: Box<Message>) {
        let claims = std::mem::take(&mut message.claims);
        let trace = Trace { ticket: None, ..Trace::of(&message) };
        if message.begun {
            self.gathering.release(trace, claims);
        } else {
            self.forget(trace);
        }
        self.end_of_turn(&message);
    }

    pub(super) fn end_of_turn(&mut self, message: &Message) {
        self.suspects.ended(message.id());
        if let Some(chain) = message.chain {
            self.free.extend(self.chains.leave(chain));
        }
        self.let_go(message.slot, message.size);
    }

    /// Its memory is free.
    pub(super) fn let_go(&mut self, slot: Slot, size: usize) {
        if let Some(partition) = self.partitions.get(&slot) {
            partition.level.release(size);
        }
        self.look_for_room(slot);
    }

    /// It is needed again.
    pub(super) fn take_up(&mut self, message: &Message) {
        if let Some(partition) = self.partitions.get(&message.slot) {
            partition.level.take_up(message.size);
        }
    }

    pub(super) fn look_for_room(&self, slot: Slot) {
        if self.partitions.get(&slot).is_some_and(|partition| partition.level.has_room()) {
            self.reporter.tell(Report::Room(slot));
        }
    }
}

pub(super) fn tell_failure(message: &Message, fate: Fate, stays: bool, reason: &str) {
    let (record, attempt) = (&message.delivery.record, message.delivery.attempt);
    // The first, the second, the fourth, the eighth: a message that keeps failing does not fill the log.
    if stays && !attempt.is_power_of_two() {
        return;
    }
    let (group, id, topic) = (&*message.delivery.group, message.id(), &*record.topic);
    let (partition, offset) = (record.partition, record.offset);
    match fate {
        Fate::Due(delay) => {
            let delay = in_words(delay);
            let words = format!("the handler failed, the message is tried again in {delay}");
            tracing::warn!(group, %id, topic, partition, offset, attempt, "{words}: {reason}");
        }
        // An operator decides.
        Fate::Dead(why) => {
            tracing::error!(group, %id, topic, partition, offset, attempt, "a dead letter ({}): {reason}", why.name());
        }
    }
}
