//! Messages that may have killed a process: in groups, each start counted before it, and nothing else beside them.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::attempt::End;
use super::message::Message;
use super::outcomes::tell_failure;
use super::turns::take_operations;
use super::{Engine, Line, Work, asking};
use crate::domain::suspicion::{Lineup, is_culprit};
use crate::pg::failing::{Fate, Reason};

/// While there are any, no other message starts.
#[derive(Default)]
pub(super) struct Suspects {
    /// Their turn has come, and their operations are their own.
    pub(super) waiting: VecDeque<Box<Message>>,
    /// The first of those that are to start together.
    pub(super) counting: Work<Vec<Box<Message>>>,
    /// Counted, and not at their end.
    lineup: HashSet<Uuid>,
    /// Of these.
    pub(super) line: Line,
}

impl Suspects {
    /// From which messages are started now.
    pub(super) fn line_or<'a>(&'a mut self, line: &'a mut Line) -> &'a mut Line {
        let are_there = self.counting.is_some() || !self.lineup.is_empty() || !self.waiting.is_empty();
        if are_there { &mut self.line } else { line }
    }

    fn admit(&mut self, message: &mut Message, starts: u32) {
        (message.starts, message.counted) = (Some(starts + 1), true);
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
        if self.suspects.waiting.is_empty() || is_busy || !is_recorded || self.places() == 0 {
            return;
        }
        let max_starts = self.group.config().retry.max_starts;
        let mut lineup = Lineup::new(max_starts);
        let mut first = Vec::new();
        while let Some(mut message) = self.suspects.waiting.pop_front() {
            let starts = message.starts.unwrap_or(0);
            if is_culprit(starts, max_starts) {
                self.give_up_culprit(message, starts);
                continue;
            }
            if !lineup.admit(starts) {
                self.suspects.waiting.push_front(message);
                break;
            }
            self.suspects.admit(&mut message, starts);
            self.admit_behind(&message, &mut lineup);
            first.push(message);
        }
        if first.is_empty() {
            return;
        }
        let all = self.suspects.lineup.iter().copied().collect();
        let count = asking::count_starts(Arc::clone(&self.group), first, all);
        self.suspects.counting = Some(AbortOnDropHandle::new(tokio::spawn(count)));
    }

    /// Those that follow it in its chain, else chains would go one by one: up to the first that waits for anything but
    /// these.
    fn admit_behind(&mut self, message: &Message, lineup: &mut Lineup) {
        let max_starts = self.group.config().retry.max_starts;
        let Some(chain) = message.chain else { return };
        for next in self.chains.waiting(chain) {
            let Some(starts) = next.starts.filter(|starts| !is_culprit(*starts, max_starts)) else { return };
            if !take_operations(&mut self.operations, next) || !lineup.admit(starts) {
                return;
            }
            self.suspects.admit(next, starts);
        }
    }

    /// It has come through, or it is not known when it will start.
    pub(super) fn acquit(&mut self, message: &mut Message) {
        (message.starts, message.counted) = (None, false);
        self.suspects.ended(message.id());
    }

    /// Its start is over; whether it is under suspicion now, its end says.
    pub(super) fn let_off(&mut self, message: &mut Message, end: &End) {
        match end {
            End::Suspect => {}
            // It was not tried: what it was suspected of is as open as before.
            End::Again if message.counted => {
                message.starts = message.starts.map(|starts| starts.saturating_sub(1));
                message.counted = false;
                return self.suspects.ended(message.id());
            }
            _ => return self.acquit(message),
        }
        (message.starts, message.counted) = (Some(message.starts.unwrap_or(0)), false);
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
        let attempt = message.delivery.attempt;
        let reason =
            format!("its process ended while it ran, {starts} times, at last with no other beside it");
        tell_failure(&message, Fate::Dead(Reason::Starts), false, &reason);
        message.errors.push((attempt, reason));
        self.begin(&mut message);
        self.leave_line(message, Fate::Dead(Reason::Starts));
    }
}
