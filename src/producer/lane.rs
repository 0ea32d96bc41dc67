//! An owned lane at work: it opens windows, publishes their rows in order, and moves its cursor behind the broker's
//! acknowledgements.

mod progress;
mod sending;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use self::progress::{Progress, WRITE_EVERY};
use super::poison::{Holding, Stopped};
use super::trial::Trial;
use super::work::{Stop, Work};
use crate::domain::cursor::SequenceSetBack;
use crate::domain::key_lines::KeyLines;
use crate::domain::priority::Priority;
use crate::failpoint;
use crate::kafka::publish::{Incarnation, LINES, Sender};
use crate::pg::lanes::{LaneError, OwnedLane, Poll};
use sending::Ahead;

/// An idle lane moves on at most this often.
const ADVANCE_EVERY: Duration = Duration::from_secs(1);

/// A wait is told in the log this often.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// What could not be done is tried again after this long.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// However long it is to wait for a firing: it lives.
const TURN_AT_LEAST: Duration = Duration::from_secs(1);

/// Records under way at the most, over all lanes.
const MOST_IN_FLIGHT: u64 = 56_000;

/// The part of it that a lane may have: higher ones more, lower ones never none. As the broker takes what is under way
/// in the order of its coming, these are the lanes' shares of it too.
fn share(priority: Priority) -> u64 {
    let sevenths = match priority {
        Priority::High => 4,
        Priority::Normal => 2,
        Priority::Low => 1,
    };
    MOST_IN_FLIGHT * sevenths / 7
}

/// The state in memory. It is dropped, and taken from the lane row again, whenever something is unclear.
pub(super) struct Lane {
    pub(super) owned: OwnedLane,
    pub(super) sender: Sender,
    /// Rows of the open window up to this `seq` are sent, or set aside.
    pub(super) read_seq: i64,
    /// The open window has no row beyond `read_seq`.
    is_read: bool,
    /// There was a look since that was found out.
    has_looked: bool,
    ahead: Option<Ahead>,
    pub(super) progress: Progress,
    /// Of rows that were set aside and are sent: ticket and `seq`.
    pub(super) aside_tickets: Vec<(u64, i64)>,
    /// Rows of the open window may have been set aside before: by an earlier owner, or before we rewound.
    look_aside: bool,
    /// They came back with an error that may be theirs: each is tried alone.
    pub(super) suspects: HashSet<i64>,
    /// Topics whose messages wait, with the reason.
    pub(super) held: HashMap<String, String>,
    /// Keys whose messages wait behind one that is parked.
    pub(super) lines: KeyLines,
    /// Nothing is sent until what is parked there is decided.
    pub(super) stopped: Option<Stopped>,
    pub(super) looked_at_held: Instant,
    /// Of these, the ones whose messages go now, with their partitions.
    pub(super) releasing: VecDeque<(String, i32)>,
    pub(super) trial: Trial,
    /// Firings of the relay's job that were seen to: nothing was left.
    seen_firings: u64,
    told_at: Option<Instant>,
}

impl Lane {
    pub(super) fn new(
        owned: OwnedLane,
        held: HashMap<String, String>,
        holding: Holding,
        incarnation: &Arc<Incarnation>,
    ) -> Self {
        let (read_seq, sender) = (owned.cursor.published_seq, sender(&owned, incarnation));
        Self {
            progress: Progress::start(),
            owned,
            sender,
            read_seq,
            is_read: false,
            has_looked: false,
            ahead: None,
            aside_tickets: Vec::new(),
            look_aside: true,
            suspects: HashSet::new(),
            held,
            lines: holding.lines,
            stopped: holding.stopped,
            looked_at_held: Instant::now(),
            releasing: VecDeque::new(),
            trial: Trial::default(),
            seen_firings: 0,
            told_at: None,
        }
    }

    /// Goes on with another incarnation, from the committed cursor. The former one has come to its end.
    pub(super) async fn restart(
        &mut self,
        work: &Work<'_>,
        incarnation: &Arc<Incarnation>,
    ) -> Result<(), LaneError> {
        self.acknowledge(work);
        let suspects = self.sender.suspects();
        self.suspects.extend(self.progress.seqs_of(&suspects));
        let aside = std::mem::take(&mut self.aside_tickets);
        self.suspects
            .extend(aside.iter().filter(|(ticket, _)| suspects.contains(ticket)).map(|(_, seq)| *seq));
        self.write_down(work).await?;
        self.sender = sender(&self.owned, incarnation);
        self.progress = Progress::start();
        // They are tried again first.
        self.releasing.clear();
        self.read_again(self.owned.cursor.published_seq);
        Ok(())
    }

    fn read_again(&mut self, behind: i64) {
        self.ahead = None;
        self.read_seq = behind;
        self.is_read = false;
        self.has_looked = false;
        self.look_aside = true;
    }

    /// Publishes until it is told to leave, and has then nothing under way.
    pub(super) async fn run(&mut self, work: &Work<'_>, leave: &CancellationToken) -> Result<(), Stop> {
        while !leave.is_cancelled() {
            match self.step(work, leave).await {
                Ok(()) => {
                    self.told_at = None;
                    work.relay.status.lane_turns(self.owned.priority);
                }
                Err(Stop::Away(reason)) => {
                    self.tell(work, reason);
                    self.read_again(self.read_seq);
                    tokio::select! {
                        () = tokio::time::sleep(TRY_AGAIN_AFTER) => {}
                        () = self.sender.broken() => return Err(Stop::Broken),
                        () = leave.cancelled() => {}
                    }
                }
                Err(stop) => return Err(stop),
            }
        }
        self.ahead = None;
        self.settle(work, self.sender.next_ticket()).await?;
        Ok(self.write_down(work).await?)
    }

    /// Says what is waited for, now and then.
    pub(super) fn tell(&mut self, work: &Work<'_>, reason: String) {
        if self.told_at.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            let lane = self.owned.priority.name();
            tracing::warn!(lane, "{reason}; what is committed waits in the outbox");
            self.told_at = Some(Instant::now());
        }
        work.relay.status.lane_waits_for(self.owned.priority, reason);
    }

    async fn step(&mut self, work: &Work<'_>, leave: &CancellationToken) -> Result<(), Stop> {
        if self.stopped.is_some() {
            return self.look_at_stop(work).await;
        }
        let gate = &work.relay.gate;
        if !self.window_is_open() && !gate.is_open(self.seen_firings) {
            tokio::select! {
                () = gate.opens(self.seen_firings) => {}
                () = tokio::time::sleep(TURN_AT_LEAST) => {}
                () = self.sender.broken() => return Err(Stop::Broken),
                () = leave.cancelled() => {}
            }
            return Ok(());
        }
        let firings = gate.firings();
        if self.window_is_open() && !self.is_read {
            self.publish_batch(work).await?;
        } else {
            // A window that is read to its end is waited for, so that it can be closed and the next one opened.
            self.settle(work, self.sender.next_ticket()).await?;
            // Not before: what is committed while the broker answers would have to wait for the look after.
            let asking = work.outlook.ask(self.owned.owner, self.window_is_open() && !self.has_looked);
            let poll = tokio::select! {
                poll = asking.answer() => poll,
                () = self.sender.broken() => return Err(Stop::Broken),
                () = leave.cancelled() => return Ok(()),
            };
            drop(asking);
            self.has_looked = true;
            self.turn(work, &poll).await?;
            if poll.lanes.get(&self.owned.priority).is_some_and(|seen| seen.has_due) {
                self.publish_due(work).await?;
            }
            if !self.window_is_open() {
                self.seen_firings = firings;
            }
        }
        self.look_at_held(work).await
    }

    fn window_is_open(&self) -> bool {
        self.owned.cursor.target.is_some()
    }

    /// Closes a window that is published, opens the next if there are rows, moves an idle lane on now and then.
    async fn turn(&mut self, work: &Work<'_>, poll: &Poll) -> Result<(), Stop> {
        let Some(seen) = poll.lanes.get(&self.owned.priority) else { return Ok(()) };
        let set_back = |error: SequenceSetBack| {
            Stop::Away(format!(
                "the {} lane stops: {error}; run `outboxd rebase --after restore`",
                self.owned.priority
            ))
        };
        let cursor = &self.owned.cursor;
        cursor.stands_with(poll.candidate.last_seq).map_err(set_back)?;
        if self.window_is_open() && !seen.has_rows && self.progress.moved_at.elapsed() < WRITE_EVERY {
            // What comes next would wait for that write; with its own, it is one.
            return Ok(());
        }
        let next = if self.window_is_open() || seen.has_rows {
            cursor.turn(seen.has_rows.then(|| poll.snapshot.clone()), poll.candidate)
        } else if self.progress.moved_at.elapsed() >= ADVANCE_EVERY
            && cursor.worth_advancing(&poll.snapshot, poll.candidate.last_seq)
        {
            cursor.advance(poll.snapshot.clone(), poll.candidate)
        } else {
            return Ok(self.record_now_and_then(work).await?);
        };
        let next = next.map_err(set_back)?;
        self.progress.written(&mut self.owned).await?;
        // Read while the write is under way: nothing is sent before that is acknowledged.
        self.ahead = Ahead::of(work, &self.owned, &next, 0);
        let published = self.progress.take(work, &self.sender);
        failpoint::hit("relay-before-window");
        work.store.turn(&mut self.owned, next, &published).await?;
        work.confirmed.note(&self.owned);
        failpoint::hit("relay-after-window");
        self.progress.moved_at = Instant::now();
        self.record_now_and_then(work).await?;
        self.read_seq = 0;
        self.is_read = false;
        self.has_looked = false;
        self.look_aside = false;
        self.suspects.clear();
        self.trial.end().await;
        Ok(())
    }
}

fn sender(lane: &OwnedLane, incarnation: &Arc<Incarnation>) -> Sender {
    let place = lane.priority.place();
    debug_assert!(place < LINES, "a line for each priority");
    Sender::new(incarnation, place)
}
