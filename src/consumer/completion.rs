//! What a partition has finished and the database does not know yet.

use std::time::Duration;

use tokio::time::Instant;

use super::wait::Wait;
use super::{Group, Tally};
use crate::domain::delivery::TopicPartition;
use crate::domain::watermark::Watermark;
use crate::failpoint;
use crate::pg::consuming::Finished;

/// Finished work waits at most this long for company.
const GATHER: Duration = Duration::from_millis(50);

pub(super) struct Completion {
    at: TopicPartition,
    watermark: Watermark,
    finished: Vec<Finished>,
    /// The position that the database has.
    written: i64,
    /// When the oldest unwritten work was finished.
    since: Option<Instant>,
}

impl Completion {
    pub(super) fn new(at: TopicPartition, start: i64) -> Self {
        Self { at, watermark: Watermark::new(start), finished: Vec::new(), written: start, since: None }
    }

    pub(super) fn deliver(&mut self, offset: i64) {
        self.watermark.deliver(offset);
    }

    /// Its evidence is still to be written.
    pub(super) fn finish(&mut self, finished: Finished) {
        self.watermark.finish(finished.offset);
        self.finished.push(finished);
        self.since.get_or_insert_with(Instant::now);
    }

    /// There is evidence already: only the position moves.
    pub(super) fn skip(&mut self, offset: i64) {
        self.watermark.finish(offset);
        self.since.get_or_insert_with(Instant::now);
    }

    /// The position once this message is finished too.
    pub(super) fn next_with(&self, offset: i64) -> i64 {
        self.watermark.next_with(offset)
    }

    /// The transaction of its effect has written evidence and position.
    pub(super) fn applied(&mut self, offset: i64) -> i64 {
        self.watermark.finish(offset);
        self.written = self.watermark.next();
        self.written
    }

    /// When what is finished has to be written, if anything is.
    pub(super) fn due(&self) -> Option<Instant> {
        self.since.map(|since| since + GATHER)
    }

    /// Writes what is finished, however long that takes: evidence, keys and position in one transaction, which may be
    /// repeated if its outcome is unknown. Returns the position if it has moved.
    pub(super) async fn write(&mut self, group: &Group) -> Option<i64> {
        let next = self.watermark.next();
        if self.finished.is_empty() && next == self.written {
            self.since = None;
            return None;
        }
        failpoint::hit("consumer-before-complete");
        let mut wait = Wait::new(&group.name, &group.status);
        let lost = loop {
            match group.store.complete(&self.at, &self.finished, next).await {
                Ok(lost) => break lost,
                Err(error) => wait.pause(&error.to_string()).await,
            }
        };
        wait.end();
        failpoint::hit("consumer-after-complete");
        if lost > 0 {
            tracing::warn!(
                group = group.name,
                topic = self.at.0,
                partition = self.at.1,
                "{lost} idempotency keys had been taken over meanwhile: their operations may have been done twice"
            );
        }
        group.status.completed(&self.at, next, self.finished.len() as u64);
        for finished in self.finished.drain(..) {
            let tally = if finished.duplicate_of.is_some() { Tally::Duplicate } else { Tally::Processed };
            group.status.count(tally);
        }
        self.written = next;
        self.since = None;
        Some(next)
    }
}
