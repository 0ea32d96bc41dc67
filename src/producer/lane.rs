//! An owned lane at work: how far its open window is read, sent and acknowledged.

use std::collections::{HashMap, VecDeque};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Instant;

use tokio_util::task::AbortOnDropHandle;

use crate::pg::lanes::{Batch, LaneError, LaneStore, Limit, OwnedLane};

/// The state in memory. It is dropped, and taken from the lane row again, whenever something is unclear.
pub(super) struct Lane {
    pub(super) owned: OwnedLane,
    /// Rows of the open window up to this `seq` are read, and sent or set aside.
    pub(super) read_seq: i64,
    /// The open window has no row beyond `read_seq`.
    pub(super) drained: bool,
    /// Ticket and `seq` of what is sent and not acknowledged, in order of both.
    pub(super) sent: VecDeque<(u64, i64)>,
    /// The highest `seq` of the window such that all that was sent up to it is acknowledged.
    acknowledged_seq: i64,
    /// Rows of the open window may have been set aside before: by an earlier owner, or before we rewound.
    pub(super) look_aside: bool,
    /// Rows up to this `seq` are sent one at a time: one of them was refused, and which is not known.
    pub(super) suspect_until: i64,
    /// Topics whose messages wait, with the reason.
    pub(super) held: HashMap<String, String>,
    pub(super) written_at: Instant,
    /// The rows behind `read_seq`, on their way while those before are sent.
    ahead: Option<Ahead>,
}

struct Ahead {
    after: i64,
    reading: AbortOnDropHandle<Result<Batch, LaneError>>,
}

impl Lane {
    pub(super) fn new(owned: OwnedLane, held: HashMap<String, String>) -> Self {
        let mut lane = Self {
            owned,
            read_seq: 0,
            drained: false,
            sent: VecDeque::new(),
            acknowledged_seq: 0,
            look_aside: true,
            suspect_until: 0,
            held,
            written_at: Instant::now(),
            ahead: None,
        };
        lane.rewind();
        lane
    }

    /// Begins again at the committed cursor.
    pub(super) fn rewind(&mut self) {
        self.ahead = None;
        self.sent.clear();
        self.read_seq = self.owned.cursor.published_seq;
        self.acknowledged_seq = self.read_seq;
        self.drained = false;
        self.look_aside = true;
    }

    /// A window was closed, and the next opened if there is one.
    pub(super) fn turned(&mut self) {
        self.rewind();
        self.look_aside = false;
        self.suspect_until = 0;
        self.written_at = Instant::now();
    }

    /// The next rows of the open window. What comes after them is asked for at once.
    pub(super) async fn read(&mut self, store: &Arc<LaneStore>, limit: Limit) -> Result<Batch, LaneError> {
        let batch = match self.ahead.take().filter(|ahead| ahead.after == self.read_seq) {
            Some(ahead) => ahead.reading.await.unwrap_or_else(|error| resume_unwind(error.into_panic()))?,
            None => store.read(&self.owned, self.read_seq, limit).await?,
        };
        if let Some(after) = batch.messages.last().map(|message| message.seq).filter(|_| !batch.last) {
            let (store, owned) = (Arc::clone(store), self.owned.clone());
            let reading = tokio::spawn(async move { store.read(&owned, after, limit).await });
            self.ahead = Some(Ahead { after, reading: AbortOnDropHandle::new(reading) });
        }
        Ok(batch)
    }

    pub(super) fn window_is_open(&self) -> bool {
        self.owned.cursor.target.is_some()
    }

    /// The open window is published to its end.
    pub(super) fn is_finished(&self) -> bool {
        self.window_is_open() && self.drained && self.sent.is_empty()
    }

    /// Takes note of the acknowledged prefix; returns how many messages it covers newly.
    pub(super) fn acknowledge(&mut self, prefix: u64) -> u64 {
        let mut count = 0;
        while let Some((ticket, seq)) = self.sent.front().copied()
            && ticket < prefix
        {
            self.sent.pop_front();
            self.acknowledged_seq = seq;
            count += 1;
        }
        count
    }

    /// How far the cursor may move within the window, if it may.
    pub(super) fn progress(&self) -> Option<i64> {
        (self.window_is_open() && self.acknowledged_seq > self.owned.cursor.published_seq)
            .then_some(self.acknowledged_seq)
    }
}
