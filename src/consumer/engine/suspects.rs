//! Messages that may have killed a process: one by one, counted before, and nothing beside them.

use std::sync::Arc;

use tokio_util::task::AbortOnDropHandle;

use super::message::Message;
use super::outcomes::tell_failure;
use super::{Engine, asking};
use crate::pg::failing::{Fate, Reason};

impl Engine {
    /// When nothing else runs, and what ran before is recorded: else the next one's death would be blamed on it too.
    pub(super) fn begin_suspect(&mut self) {
        let is_busy = self.counting.is_some() || self.suspect.is_some() || !self.running.is_empty();
        let is_recorded = self.completion.is_none() && self.gathering.len() == 0;
        if is_busy || !is_recorded || self.closed.is_some() || self.breaker.places(1) == 0 {
            return;
        }
        if let Some(message) = self.suspects.pop_front() {
            let count = asking::count_start(Arc::clone(&self.group), message);
            self.counting = Some(AbortOnDropHandle::new(tokio::spawn(count)));
        }
    }

    pub(super) fn counted(&mut self, mut message: Box<Message>, starts: u32) {
        message.suspect = false;
        if message.ending.is_stopping() {
            return self.give_up(message);
        }
        if starts > self.group.config.retry.max_starts {
            let attempt = message.delivery.attempt;
            let reason = format!("its process ended while it ran, {} times", starts - 1);
            tell_failure(&message, Fate::Dead(Reason::Starts), false, &reason);
            message.errors.push((attempt, reason));
            self.begin(&mut message);
            return self.leave_line(message, Fate::Dead(Reason::Starts));
        }
        self.suspect = Some(message.id());
        self.run_handler(message);
    }
}
