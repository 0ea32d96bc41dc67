//! How much of a partition is polled and not finished: bounded by records and by bytes, and so is the span above its
//! position, which one slow message can hold open.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::domain::delivery::Record;

/// A partition with this much is full, and has room again below the lower mark.
const HIGH_BYTES: usize = 16 << 20;
const LOW_BYTES: usize = 8 << 20;

/// The same in batches, which may be small.
const HIGH_BATCHES: usize = 4;
const LEAST_HIGH: usize = 1_000;

/// Finished or not, counted from the oldest that is not. A dead process leaves as much in doubt.
pub(super) const HIGH_SPAN: usize = 2_000;
const LOW_SPAN: usize = 1_500;

/// Filled by whoever polls, emptied by the engine.
#[derive(Debug)]
pub(super) struct Level {
    high_records: usize,
    records: AtomicUsize,
    bytes: AtomicUsize,
    span: AtomicUsize,
    full: AtomicBool,
}

impl Level {
    pub(super) fn new(batch: usize) -> Self {
        let (records, bytes, span) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        let high_records = (batch * HIGH_BATCHES).max(LEAST_HIGH);
        Self { high_records, records, bytes, span, full: AtomicBool::new(false) }
    }

    /// Says whether that made it full.
    pub(super) fn push(&self, record: &Record) -> bool {
        let size = record.size();
        let records = self.records.fetch_add(1, Ordering::SeqCst) + 1;
        let bytes = self.bytes.fetch_add(size, Ordering::SeqCst) + size;
        let span = self.span.fetch_add(1, Ordering::SeqCst) + 1;
        let is_high = records >= self.high_records || bytes >= HIGH_BYTES || span >= HIGH_SPAN;
        is_high && !self.full.swap(true, Ordering::SeqCst)
    }

    /// A record of that size needs no memory any more.
    pub(super) fn release(&self, size: usize) {
        self.records.fetch_sub(1, Ordering::SeqCst);
        self.bytes.fetch_sub(size, Ordering::SeqCst);
    }

    /// One that was let go is needed again.
    pub(super) fn take_up(&self, size: usize) {
        self.records.fetch_add(1, Ordering::SeqCst);
        self.bytes.fetch_add(size, Ordering::SeqCst);
    }

    /// The position has passed so many.
    pub(super) fn pass(&self, count: usize) {
        self.span.fetch_sub(count, Ordering::SeqCst);
    }

    /// Says whether it was full and has room now.
    pub(super) fn has_room(&self) -> bool {
        let below = |level: &AtomicUsize, mark| level.load(Ordering::SeqCst) <= mark;
        self.full.load(Ordering::SeqCst)
            && below(&self.records, self.high_records / 2)
            && below(&self.bytes, LOW_BYTES)
            && below(&self.span, LOW_SPAN)
            && self.full.swap(false, Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn record(size: usize) -> Record {
        Record {
            topic: "orders".into(),
            partition: 0,
            offset: 0,
            timestamp: None,
            key: None,
            payload: Some(Bytes::from(vec![0; size])),
            headers: Vec::new(),
        }
    }

    #[test]
    fn many_records_many_bytes_or_a_long_span_fill_it_once_and_it_has_room_once() {
        let level = Level::new(2);
        let filled = (0..=LEAST_HIGH).filter(|_| level.push(&record(1))).count();
        assert_eq!(filled, 1);
        for _ in 0..LEAST_HIGH / 2 {
            level.release(1);
            assert!(!level.has_room());
        }
        level.release(1);
        assert!(level.has_room() && !level.has_room());
        assert!(level.push(&record(HIGH_BYTES)), "one huge record is enough");
        let level = Level::new(HIGH_SPAN);
        let filled = (0..HIGH_SPAN).filter(|_| {
            let filled = level.push(&record(0));
            level.release(0);
            filled
        });
        assert_eq!(filled.count(), 1, "finished or not");
        level.pass(HIGH_SPAN - LOW_SPAN - 1);
        assert!(!level.has_room());
        level.pass(1);
        assert!(level.has_room());
    }
}
