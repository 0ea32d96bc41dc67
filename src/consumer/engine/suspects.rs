//! Messages that may have killed a process: in groups, each start counted before it, and nothing else of the group beside
//! them. The last start of one is alone in the whole process, until what came of it is written.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::attempt::End;
use super::gathering::Trace;
use super::message::Message;
use super::outcomes::tell_failure;
use super::turns::take_operations;
use super::{Engine, Line, Slot, Work, asking};
use crate::consumer::places::Alone;
use crate::domain::suspicion::{Lineup, Suspicion};
use crate::pg::failing::{Fate, Reason};

/// Counted, and whether the one that starts is alone.
pub(super) type Counted = (Vec<Box<Message>>, Option<Alone>);

/// While there are any, no other message starts.
#[derive(Default)]
pub(super) struct Suspects {
    /// Their turn has come, and their operations are their own.
    pub(super) waiting: VecDeque<Box<Message>>,
    /// The first of those that are to start together.
    pub(super) counting: Work<Counted>,
    /// Counted, and not at their end.
    lineup: HashSet<Uuid>,
    /// Of these.
    pub(super) line: Line,
    proof: Option<Proof>,
}

/// A last start.
struct Proof {
    alone: Alone,
    id: Uuid,
    slot: Slot,
    /// It ended its connection: what was counted stands.
    stands: bool,
    /// Else it is taken off.
    cleared: bool,
}

impl Suspects {
    /// From which messages are started now.
    pub(super) fn line_or<'a>(&'a mut self, line: &'a mut Line) -> &'a mut Line {
        let are_there = self.counting.is_some() || !self.lineup.is_empty() || !self.waiting.is_empty();
        if are_there || self.proof.is_some() { &mut self.line } else { line }
    }

    /// Of the one that starts, if it has to be.
    pub(super) fn alone(&self) -> Option<&Alone> {
        self.proof.as_ref().map(|proof| &proof.alone)
    }

    fn admit(&mut self, message: &mut Message, suspicion: Suspicion, was_alone: bool) {
        message.suspicion = Some(Suspicion { starts: suspicion.starts + 1, was_alone });
        message.counted = true;
        self.lineup.insert(message.id());
    }

    pub(super) fn ended(&mut self, id: Uuid) {
        self.lineup.remove(&id);
    }
}

impl Engine {
    /// When nothing else runs, and what ran before is recorded: else the next death would be blamed on it too.
    pub(super) fn begin_lineup(&mut self) {
        let is_busy =
            self.suspects.counting.is_some() || !self.suspects.lineup.is_empty() || !self.running.is_empty();
        let is_recorded = self.completion.is_none() && self.gathering.len() == 0;
        let is_proving = self.suspects.proof.is_some();
        if self.suspects.waiting.is_empty() || is_busy || is_proving || !is_recorded || self.places() == 0 {
            return;
        }
        let max_starts = self.group.config().retry.max_starts;
        let mut lineup = Lineup::new(max_starts);
        let mut first = Vec::new();
        let mut is_last = false;
        while let Some(mut message) = self.suspects.waiting.pop_front() {
            let suspicion = message.suspicion.unwrap_or_default();
            if suspicion.is_proven(max_starts) {
                self.give_up_culprit(message, suspicion.starts);
                continue;
            }
            if !lineup.admit(suspicion) {
                self.suspects.waiting.push_front(message);
                break;
            }
            is_last = suspicion.is_last(max_starts);
            self.suspects.admit(&mut message, suspicion, is_last);
            self.admit_behind(&message, &mut lineup);
            first.push(message);
        }
        if first.is_empty() {
            return;
        }
        let all = self.suspects.lineup.iter().copied().collect();
        let count = asking::count_starts(Arc::clone(&self.group), first, all, is_last);
        self.suspects.counting = Some(AbortOnDropHandle::new(tokio::spawn(count)));
    }

    pub(super) fn counted(&mut self, (messages, alone): Counted) {
        if let (Some(alone), [message]) = (alone, &*messages) {
            let (id, slot) = (message.id(), message.slot);
            self.suspects.proof = Some(Proof { alone, id, slot, stands: false, cleared: false });
        }
        self.free.extend(messages);
    }

    /// Others may start again once it is written that it came through: else it would be blamed for their deaths.
    pub(super) fn end_proof(&mut self) {
        let Some(proof) = &mut self.suspects.proof else { return };
        if !self.suspects.lineup.is_empty() {
            return;
        }
        if !proof.stands && !std::mem::replace(&mut proof.cleared, true) {
            if let Some(partition) = self.partitions.get_mut(&proof.slot) {
                partition.busy += 1;
            }
            self.gathering.completion.cleared.push(proof.id);
            let slot = proof.slot;
            self.gathering.leave(Trace {
                slot,
                ticket: None,
                id: None,
                operations: Vec::new(),
                in_doubt: false,
            });
        } else if self.completion.is_none() && self.gathering.len() == 0 {
            self.suspects.proof = None;
        }
    }

    /// Those that follow it in its chain, else chains would go one by one: up to the first that waits for anything but
    /// these.
    fn admit_behind(&mut self, message: &Message, lineup: &mut Lineup) {
        let max_starts = self.group.config().retry.max_starts;
        let Some(chain) = message.chain else { return };
        for next in self.chains.waiting(chain) {
            let Some(suspicion) = next.suspicion.filter(|suspicion| !suspicion.is_proven(max_starts)) else {
                return;
            };
            if !take_operations(&mut self.operations, next) || !lineup.admit(suspicion) {
                return;
            }
            self.suspects.admit(next, suspicion, false);
        }
    }

    /// It has come through, or it is not known when it will start.
    pub(super) fn acquit(&mut self, message: &mut Message) {
        (message.suspicion, message.counted) = (None, false);
        self.suspects.ended(message.id());
    }

    /// Its start is over; whether it is under suspicion now, its end says.
    pub(super) fn let_off(&mut self, message: &mut Message, end: &End) {
        match end {
            End::Suspect => {}
            // It was not tried: what it was suspected of is as open as before.
            End::Again if message.counted => {
                let starts = message.suspicion.unwrap_or_default().starts.saturating_sub(1);
                (message.suspicion, message.counted) = (Some(Suspicion { starts, was_alone: false }), false);
                return self.suspects.ended(message.id());
            }
            _ => return self.acquit(message),
        }
        if let Some(proof) = self.suspects.proof.as_mut().filter(|proof| proof.id == message.id()) {
            proof.stands = true;
        }
        (message.suspicion, message.counted) = (Some(message.suspicion.unwrap_or_default()), false);
        self.suspects.ended(message.id());
        if let Some(partition) = self.partitions.get_mut(&message.slot) {
            message.in_doubt = true;
            partition.noted.insert(message.id());
        }
    }

    /// Those behind one that stays are not to be waited for: they have been counted and do not start.
    pub(super) fn dismiss_behind(&mut self, message: &Message) {
        let Some(chain) = message.chain else { return };
        for next in self.chains.waiting(chain).filter(|next| next.counted) {
            next.counted = false;
            self.suspects.ended(next.id());
        }
    }

    fn give_up_culprit(&mut self, mut message: Box<Message>, starts: u32) {
        let attempt = starts;
        message.delivery.attempt = attempt;
        let reason = format!(
            "its process, or its connection to the database, ended while it ran, {starts} times, at last with no other beside it"
        );
        tell_failure(&message, Fate::Dead(Reason::Starts), false, &reason);
        message.errors.push((attempt, reason));
        self.begin(&mut message);
        self.leave_line(message, Fate::Dead(Reason::Starts));
    }
}
