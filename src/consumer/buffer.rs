//! What waits between polling and handling, per partition: bounded by records and by bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::mpsc;

use crate::domain::delivery::Record;

/// A partition with this much waiting is paused, and goes on below the lower mark.
const HIGH_BYTES: usize = 16 << 20;
const LOW_BYTES: usize = 4 << 20;

/// The same in batches.
const HIGH_BATCHES: usize = 4;

#[derive(Debug, Default)]
struct Level {
    records: AtomicUsize,
    bytes: AtomicUsize,
    paused: AtomicBool,
}

/// The end that is filled.
pub(super) struct Inlet {
    sender: mpsc::UnboundedSender<Record>,
    level: Arc<Level>,
    high_records: usize,
}

/// The end that is emptied.
pub(super) struct Outlet {
    receiver: mpsc::UnboundedReceiver<Record>,
    level: Arc<Level>,
    batch: usize,
}

pub(super) fn buffer(batch: usize) -> (Inlet, Outlet) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let level = Arc::new(Level::default());
    let inlet = Inlet { sender, level: Arc::clone(&level), high_records: batch * HIGH_BATCHES };
    (inlet, Outlet { receiver, level, batch })
}

impl Inlet {
    /// Says whether the partition is to be paused now.
    pub(super) fn push(&self, record: Record) -> bool {
        let size = record.size();
        let records = self.level.records.fetch_add(1, Ordering::SeqCst) + 1;
        let bytes = self.level.bytes.fetch_add(size, Ordering::SeqCst) + size;
        let is_high = records >= self.high_records || bytes >= HIGH_BYTES;
        // Before it is sent: whoever takes the last record must see that it is waited for.
        let pause = is_high && !self.level.paused.swap(true, Ordering::SeqCst);
        // The other end is gone only with the partition itself.
        let _ = self.sender.send(record);
        pause
    }

    pub(super) fn is_paused(&self) -> bool {
        self.level.paused.load(Ordering::SeqCst)
    }

    /// Says whether a paused partition is to go on now.
    pub(super) fn has_room(&self, batch: usize) -> bool {
        self.level.has_room(batch) && self.level.paused.swap(false, Ordering::SeqCst)
    }
}

impl Level {
    fn has_room(&self, batch: usize) -> bool {
        self.records.load(Ordering::SeqCst) <= batch && self.bytes.load(Ordering::SeqCst) <= LOW_BYTES
    }
}

impl Outlet {
    /// Waits for records and takes up to a batch; empty if there will be none any more.
    pub(super) async fn take(&mut self) -> Vec<Record> {
        let mut records = Vec::with_capacity(self.batch.min(self.receiver.len().max(1)));
        self.receiver.recv_many(&mut records, self.batch).await;
        let bytes: usize = records.iter().map(Record::size).sum();
        self.level.records.fetch_sub(records.len(), Ordering::SeqCst);
        self.level.bytes.fetch_sub(bytes, Ordering::SeqCst);
        records
    }

    /// Whether the one who fills should be told that there is room.
    pub(super) fn is_waited_for(&self) -> bool {
        self.level.paused.load(Ordering::SeqCst) && self.level.has_room(self.batch)
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

    #[tokio::test]
    async fn many_records_or_many_bytes_pause_once_and_resume_once() {
        let (inlet, mut outlet) = buffer(2);
        let pauses: Vec<bool> = (0..9).map(|_| inlet.push(record(1))).collect();
        assert_eq!(pauses.iter().filter(|pause| **pause).count(), 1);
        assert!(pauses[7]);
        while outlet.level.records.load(Ordering::SeqCst) > 2 {
            assert!(!outlet.is_waited_for() && !inlet.has_room(2));
            outlet.take().await;
        }
        assert!(outlet.is_waited_for() && inlet.has_room(2) && !inlet.has_room(2));
        assert!(!outlet.is_waited_for());
        assert!(inlet.push(record(HIGH_BYTES)), "one huge record is enough");
    }
}
