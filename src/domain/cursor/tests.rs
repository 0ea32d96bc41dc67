//! The cursor against a model of Postgres: writers that interleave, roll back, take an xid early or stay open, a
//! relay that crashes, a database that crashes. Each trap of the algorithm is also sown as a fault, and must be found.

use std::collections::{BTreeMap, HashMap, HashSet};

use fastrand::Rng;

use super::*;

/// What the relay (or the table) does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// The next xid is read before the sequence.
    XidBeforeSeq,
    /// The floor is adopted although `done` has not reached the pair's xid.
    FloorAtOnce,
    /// A plain select from the sequence sees values that another session is about to log.
    LastValueAhead,
    /// `age()` inside a transaction that has an xid answers with that xid.
    OwnXid,
    /// The pair is kept in memory over a crash of the database, in which the sequence went back.
    PairInMemory,
    /// What was in progress at `done` is not looked for.
    NoStragglers,
    /// A last id instead of a snapshot.
    LastId,
    /// The row's seq is drawn before its transaction has an xid (columns in the wrong order).
    SeqBeforeXid,
    /// A close-and-open whose answer was lost is repeated, and the write does not name the window.
    TurnTwice,
    /// A `published_seq` of the last window arrives late, and the write does not name the window.
    LateProgress,
    /// A window is sent by txid instead of seq.
    ByTxid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    Committed,
    Aborted,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    txid: u64,
    seq: i64,
    key: u8,
}

/// Postgres, as far as it matters here.
#[derive(Default)]
struct World {
    next_xid: u64,
    latest_completed: u64,
    last_seq: i64,
    flushed_seq: i64,
    transactions: BTreeMap<u64, State>,
    /// An application that keeps the order of a key locks something of its own until it commits.
    locks: HashMap<u8, u64>,
    rows: Vec<Row>,
    /// Seqs drawn by sessions that have no xid yet, with their key (only with the columns in the wrong order).
    drawn: Vec<(i64, u8)>,
}

impl World {
    fn new() -> Self {
        Self { next_xid: 100, latest_completed: 99, ..Self::default() }
    }

    fn running(&self) -> Vec<u64> {
        self.transactions.iter().filter(|(_, state)| **state == State::Running).map(|(xid, _)| *xid).collect()
    }

    fn snapshot(&self) -> Snapshot {
        let xmax = self.latest_completed + 1;
        let xip: Vec<u64> = self.running().into_iter().filter(|xid| *xid < xmax).collect();
        Snapshot::new(xip.first().copied().unwrap_or(xmax), xmax, xip)
    }

    fn begin(&mut self) -> u64 {
        let xid = self.next_xid;
        self.next_xid += 1;
        self.transactions.insert(xid, State::Running);
        xid
    }

    fn draw(&mut self) -> i64 {
        self.last_seq += 1;
        self.last_seq
    }

    fn end(&mut self, xid: u64, state: State) {
        self.transactions.insert(xid, state);
        self.latest_completed = self.latest_completed.max(xid);
        self.locks.retain(|_, holder| *holder != xid);
        if state == State::Committed {
            self.flushed_seq = self.last_seq;
        }
    }

    /// One random step of the applications.
    fn step(&mut self, rng: &mut Rng, fault: Fault) {
        let running = self.running();
        let key = rng.u8(0..4);
        match rng.u8(0..10) {
            0..=1 if running.len() < 5 => {
                self.begin();
            }
            2..=6 if fault == Fault::SeqBeforeXid && rng.bool() => {
                // Draws first; the xid, and with it the row, comes with a later step.
                if let Some((seq, key)) = self.drawn.pop() {
                    let txid = self.begin();
                    self.rows.push(Row { txid, seq, key });
                    self.end(txid, State::Committed);
                } else {
                    let seq = self.draw();
                    self.drawn.push((seq, key + 100));
                }
            }
            2..=6 => {
                let Some(txid) = rng.choice(running) else { return };
                if *self.locks.entry(key).or_insert(txid) == txid {
                    let seq = self.draw();
                    self.rows.push(Row { txid, seq, key });
                }
            }
            7 => {
                if let Some(xid) = rng.choice(running) {
                    self.end(xid, State::Aborted);
                }
            }
            _ => {
                if let Some(xid) = rng.choice(running) {
                    self.end(xid, State::Committed);
                }
            }
        }
    }

    /// Transactions in progress are gone, and so is what the sequence gave them and nobody flushed.
    fn crash(&mut self) {
        for xid in self.running() {
            self.end(xid, State::Aborted);
        }
        self.rows.retain(|row| self.transactions[&row.txid] == State::Committed);
        self.last_seq = self.flushed_seq;
        self.drawn.clear();
    }

    fn committed(&self, row: &Row) -> bool {
        self.transactions[&row.txid] == State::Committed
    }
}

/// What the relay reads between two windows, statement by statement, while the applications go on.
#[derive(Default)]
struct Reading {
    last_seq: Option<i64>,
    next_xid: Option<u64>,
}

struct Model {
    world: World,
    rng: Rng,
    fault: Fault,
    /// The lane row.
    cursor: Cursor,
    reading: Reading,
    sent: Vec<Row>,
    crashes: u32,
    late_progress: Option<i64>,
    last_id: i64,
}

impl Model {
    fn new(seed: u64, fault: Fault) -> Self {
        Self {
            world: World::new(),
            rng: Rng::with_seed(seed),
            fault,
            cursor: Cursor::new(),
            reading: Reading::default(),
            sent: Vec::new(),
            crashes: 0,
            late_progress: None,
            last_id: 0,
        }
    }

    fn step(&mut self) {
        match self.rng.u8(0..20) {
            0..=13 => self.world.step(&mut self.rng, self.fault),
            14..=18 => self.relay(),
            _ if self.rng.u8(0..10) == 0 => {
                self.world.crash();
                self.crashes += 1;
                if self.fault != Fault::PairInMemory {
                    self.reading = Reading::default();
                }
            }
            // The relay alone.
            _ if self.rng.u8(0..5) == 0 => {
                self.reading = Reading::default();
                self.crashes += 1;
            }
            _ => {}
        }
    }

    fn read_seq(&mut self) {
        let ahead = if self.fault == Fault::LastValueAhead { self.rng.i64(0..4) } else { 0 };
        self.reading.last_seq = Some(self.world.last_seq + ahead);
    }

    fn read_xid(&mut self) {
        let running = self.world.running();
        let own = running.first().filter(|_| self.fault == Fault::OwnXid).copied();
        self.reading.next_xid = Some(own.unwrap_or(self.world.next_xid));
    }

    fn relay(&mut self) {
        let xid_first = self.fault == Fault::XidBeforeSeq;
        if self.reading.last_seq.is_none() && (!xid_first || self.reading.next_xid.is_some()) {
            return self.read_seq();
        }
        if self.reading.next_xid.is_none() {
            return self.read_xid();
        }
        let (Some(last_seq), Some(next_xid)) = (self.reading.last_seq, self.reading.next_xid) else { return };
        if self.drain_some() {
            return;
        }
        self.reading = Reading::default();
        let fresh = FloorCandidate { last_seq, next_xid };
        let snapshot = self.world.snapshot();
        let rows = self.has_rows(&snapshot);
        let next = if rows || self.cursor.target.is_some() {
            self.cursor.turn(rows.then_some(snapshot), fresh)
        } else if self.cursor.worth_advancing(&snapshot, last_seq) {
            self.cursor.advance(snapshot, fresh)
        } else {
            return;
        };
        // Nobody sets a sequence back here but a crash, and a stored pair is older than what the crash left.
        let Ok(mut next) = next else {
            assert!(
                matches!(self.fault, Fault::PairInMemory | Fault::LastValueAhead),
                "the floor outran the sequence"
            );
            return;
        };
        if self.fault == Fault::FloorAtOnce {
            next.floor = next.floor.max(last_seq);
        }
        let late = self.cursor.target.as_ref().map(|_| self.last_of_window());
        self.write(next);
        if self.fault == Fault::TurnTwice && self.rng.u8(0..10) == 0 {
            // The same statement again: what is `target` now becomes `done`, though nothing of it was sent.
            let again = self.cursor.turn(self.cursor.target.clone(), fresh);
            if let Ok(again) = again {
                self.write(again);
            }
        }
        self.late_progress = late.flatten();
    }

    /// A durable write: it flushes everything before it.
    fn write(&mut self, next: Cursor) {
        self.cursor = next;
        self.world.flushed_seq = self.world.last_seq;
    }

    fn last_of_window(&self) -> Option<i64> {
        self.sent.last().map(|row| row.seq)
    }

    fn has_rows(&self, snapshot: &Snapshot) -> bool {
        let seen_from = Cursor { target: Some(snapshot.clone()), published_seq: 0, ..self.cursor.clone() };
        let seen_from = match &self.cursor.target {
            Some(target) => Cursor { done: target.clone(), ..seen_from },
            None => seen_from,
        };
        !self.select(&seen_from).is_empty()
    }

    /// The rows of the window in the order in which they are sent.
    fn select(&self, cursor: &Cursor) -> Vec<Row> {
        let mut scan = cursor.scan(cursor.published_seq).expect("a window");
        if self.fault == Fault::NoStragglers {
            scan.stragglers = &[];
        }
        let selects = |row: &Row| match self.fault {
            Fault::LastId => row.seq > self.last_id && scan.target.sees(row.txid),
            _ => scan.selects(row.txid, row.seq),
        };
        let mut rows: Vec<Row> =
            self.world.rows.iter().filter(|row| self.world.committed(row) && selects(row)).copied().collect();
        match self.fault {
            Fault::ByTxid => rows.sort_by_key(|row| (row.txid, row.seq)),
            _ => rows.sort_by_key(|row| row.seq),
        }
        rows
    }

    /// Publishes a part of the open window; false if nothing of it is left.
    fn drain_some(&mut self) -> bool {
        if self.cursor.target.is_none() {
            return false;
        }
        if self.fault == Fault::LateProgress
            && let Some(seq) = self.late_progress.take()
        {
            self.cursor.published_seq = self.cursor.published_seq.max(seq);
        }
        let rows = self.select(&self.cursor.clone());
        let count =
            if self.fault == Fault::ByTxid { rows.len() } else { rows.len().min(self.rng.usize(1..4)) };
        for row in &rows[..count] {
            self.sent.push(*row);
            self.last_id = self.last_id.max(row.seq);
        }
        let Some(seq) = rows[..count].iter().map(|row| row.seq).max() else { return false };
        // A crash of the relay here loses the write: what was sent is sent again.
        if self.rng.u8(0..20) == 0 {
            self.crashes += 1;
        } else {
            self.cursor.published_seq = seq;
        }
        true
    }

    /// Lets everything end, publishes the rest, and says what is wrong with the result.
    fn verdict(mut self) -> Result<(), String> {
        for xid in self.world.running() {
            self.world.end(xid, State::Committed);
        }
        for _ in 0..300 {
            self.relay();
        }
        let mut seen = HashSet::new();
        let mut last_of_key: HashMap<u8, i64> = HashMap::new();
        let mut repeats = 0;
        for row in &self.sent {
            if !self.world.committed(row) {
                return Err(format!("a ghost: {row:?}"));
            }
            if !seen.insert(row.seq) {
                repeats += 1;
                continue;
            }
            let last = last_of_key.insert(row.key, row.seq).unwrap_or(0);
            if row.seq < last && row.key < 100 {
                return Err(format!("an inversion: {row:?} after {last}"));
            }
        }
        if let Some(lost) =
            self.world.rows.iter().find(|row| self.world.committed(row) && !seen.contains(&row.seq))
        {
            return Err(format!("lost: {lost:?}"));
        }
        if repeats > 0 && self.crashes == 0 {
            return Err(format!("{repeats} repeats without a crash"));
        }
        Ok(())
    }
}

fn run(seed: u64, fault: Fault) -> Result<(), String> {
    let mut model = Model::new(seed, fault);
    for _ in 0..600 {
        model.step();
    }
    model.verdict()
}

#[test]
fn nothing_is_lost_inverted_or_repeated_without_a_crash() {
    for seed in 0..1_500 {
        if let Err(wrong) = run(seed, Fault::None) {
            panic!("seed {seed}: {wrong}");
        }
    }
}

#[test]
fn the_model_finds_each_trap() {
    for fault in [
        Fault::XidBeforeSeq,
        Fault::FloorAtOnce,
        Fault::LastValueAhead,
        Fault::OwnXid,
        Fault::PairInMemory,
        Fault::NoStragglers,
        Fault::LastId,
        Fault::SeqBeforeXid,
        Fault::TurnTwice,
        Fault::LateProgress,
        Fault::ByTxid,
    ] {
        let found = (0..3_000).find_map(|seed| run(seed, fault).err());
        assert!(found.is_some(), "{fault:?} goes unnoticed");
    }
}

#[test]
fn an_idle_lane_is_left_alone() {
    let mut cursor = Cursor::new();
    let mut next_xid = 20;
    let mut writes = 0;
    loop {
        let seen = Snapshot::new(next_xid, next_xid, vec![]);
        if !cursor.worth_advancing(&seen, 9) {
            break;
        }
        cursor = cursor.advance(seen, FloorCandidate { last_seq: 9, next_xid }).unwrap();
        // Each move is a write, which itself uses up an xid.
        next_xid += 1;
        writes += 1;
    }
    assert_eq!((cursor.floor, cursor.target, writes), (9, None, 2));
}

#[test]
fn a_sequence_that_was_set_back_stops_the_lane() {
    let cursor = Cursor { floor: 50, ..Cursor::new() };
    let fresh = FloorCandidate { last_seq: 7, next_xid: 20 };
    assert_eq!(cursor.turn(None, fresh), Err(SequenceSetBack { last_seq: 7, floor: 50 }));
}
