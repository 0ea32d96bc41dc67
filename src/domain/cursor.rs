//! The arithmetic of a lane's cursor: what is published, what the open window holds, and how one follows the other.
//!
//! A cursor is a snapshot, not a last id. A window is what became visible between two snapshots, in order of `seq`;
//! `docs/architecture.md` tells why each rule here is as it is, and what was lost where it was not.

use super::snapshot::Snapshot;

/// Read in two statements, in this order: the sequence's last value, then the next xid. Every row with
/// `seq <= last_seq` has a txid below `next_xid`, because a row's xid exists before its seq does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloorCandidate {
    pub last_seq: i64,
    pub next_xid: u64,
}

/// The durable state of a lane, without its lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Everything visible in it is published.
    pub done: Snapshot,
    /// Rows at or below it are published, or belong to a transaction in `done`'s xip.
    pub floor: i64,
    /// Stored by a durable write, adopted by a later one; never kept in memory over a lost connection.
    pub candidate: Option<FloorCandidate>,
    /// The end of the open window, if one is open.
    pub target: Option<Snapshot>,
    /// Rows of the open window up to this `seq` are published.
    pub published_seq: i64,
}

/// The sequence was set back below the floor: rows that come now would never be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the sequence stands at {last_seq}, below the lane's floor {floor}: it was set back")]
pub struct SequenceSetBack {
    pub last_seq: i64,
    pub floor: i64,
}

/// Where the rows of the open window are found: two index scans, merged by `seq`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan<'a> {
    /// Main rows: `seq` above this ...
    pub after_seq: i64,
    /// ... and txid at or above this.
    pub min_txid: u64,
    /// Stragglers: rows of these transactions ...
    pub stragglers: &'a [u64],
    /// ... with `seq` above this.
    pub stragglers_after_seq: i64,
    /// Both: only what is visible in it.
    pub target: &'a Snapshot,
}

impl Scan<'_> {
    /// Does the window still hold this (committed) row?
    pub fn selects(&self, txid: u64, seq: i64) -> bool {
        let main = seq > self.after_seq && txid >= self.min_txid;
        let straggler = seq > self.stragglers_after_seq && self.stragglers.contains(&txid);
        (main || straggler) && self.target.sees(txid)
    }
}

impl Cursor {
    /// Of a lane that never published anything.
    pub fn new() -> Self {
        Self { done: Snapshot::nothing(), floor: 0, candidate: None, target: None, published_seq: 0 }
    }

    /// What the open window holds behind `seq`: its `published_seq`, or how far a reader is ahead of that.
    pub fn scan(&self, seq: i64) -> Option<Scan<'_>> {
        self.target.as_ref().map(|target| Scan {
            after_seq: self.floor.max(seq),
            min_txid: self.done.xmax(),
            stragglers: self.done.xip(),
            stragglers_after_seq: seq,
            target,
        })
    }

    /// Rows that a sequence below the floor numbers from now on would never be read: asked at every look.
    pub fn stands_with(&self, last_seq: i64) -> Result<(), SequenceSetBack> {
        if last_seq < self.floor { Err(SequenceSetBack { last_seq, floor: self.floor }) } else { Ok(()) }
    }

    /// Closes the open window, whose rows are all published, and opens the next up to `target` if there is one.
    ///
    /// A stored candidate becomes the floor once `done` has reached its xid; until then it is kept, because a newer
    /// pair would be as far ahead of `done` and none would ever be adopted. `fresh` takes its place afterwards.
    pub fn turn(&self, target: Option<Snapshot>, fresh: FloorCandidate) -> Result<Self, SequenceSetBack> {
        self.stands_with(fresh.last_seq)?;
        let done = self.target.as_ref().unwrap_or(&self.done).clone();
        let (floor, candidate) = match self.candidate {
            Some(stored) if done.xmax() >= stored.next_xid => (stored.last_seq.max(self.floor), fresh),
            Some(stored) => (self.floor, stored),
            None => (self.floor, fresh),
        };
        Ok(Self { done, floor, candidate: Some(candidate), target, published_seq: 0 })
    }

    /// Moves an idle lane on to `seen`, a snapshot in which it has no rows beyond `done`.
    pub fn advance(&self, seen: Snapshot, fresh: FloorCandidate) -> Result<Self, SequenceSetBack> {
        debug_assert!(self.target.is_none(), "a lane with an open window is not idle");
        Self { target: Some(seen), ..self.clone() }.turn(None, fresh)
    }

    /// Would moving an idle lane on make its next reads cheaper or let a partition go? Asked so that an idle
    /// database stays idle: each move is a write, and itself uses up an xid.
    pub fn worth_advancing(&self, seen: &Snapshot, last_seq: i64) -> bool {
        self.target.is_none() && *seen != self.done && (last_seq > self.floor || !self.done.xip().is_empty())
    }
}

impl Default for Cursor {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
