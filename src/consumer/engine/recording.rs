//! The third stage: what is finished is completed, and those go on that waited for it.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::gathering::{self, Trace, Written};
use super::message::Message;
use super::{Engine, Id, Report, Slot};
use crate::consumer::Tally;
use crate::domain::delivery::TopicPartition;
use crate::pg::completing::Position;

impl Engine {
    /// At once if there is enough, or nothing that it could wait for; else when it is due.
    pub(super) fn begin_completion(&mut self) {
        let Some(due) = self.gathering.due() else { return };
        let more_comes = self.look_up.is_some() || self.claim.is_some() || !self.running.is_empty();
        let is_due = self.gathering.len() >= self.group.config().batch || due <= Instant::now();
        if self.completion.is_some() || (more_comes && !is_due && !self.gathering.is_full()) {
            return;
        }
        let mut gathering = std::mem::take(&mut self.gathering);
        let mut touched = Vec::new();
        for trace in &gathering.traces {
            if let (Some(_), Some(id), true) = (trace.ticket, trace.id, trace.in_doubt) {
                gathering.completion.cleared.push(id);
            }
            if let Some(ticket) = trace.ticket
                && let Some(partition) = self.partitions.get_mut(&trace.slot)
            {
                let span = partition.watermark.span();
                partition.watermark.finish(ticket);
                let passed = span - partition.watermark.span();
                if passed > 0 {
                    partition.level.pass(passed);
                    partition.changed = true;
                    touched.push(trace.slot);
                }
            }
        }
        touched.sort_unstable();
        touched.dedup();
        for slot in touched {
            if let Some(partition) = self.partitions.get_mut(&slot) {
                let (at, topic_id) = (partition.at.clone(), partition.topic_id);
                let position = Position { at, topic_id, next: partition.watermark.next() };
                gathering.completion.positions.push(position);
            }
            self.look_for_room(slot);
        }
        let write = gathering::write(Arc::clone(&self.group), gathering);
        self.completion = Some(AbortOnDropHandle::new(tokio::spawn(write)));
    }

    pub(super) fn written(&mut self, written: Written) {
        let Written { traces, completion, held, freed } = written;
        let duplicates =
            completion.finished.iter().filter(|finished| finished.duplicate_of.is_some()).count();
        self.group.status.count(Tally::Duplicate, duplicates);
        self.group.status.count(Tally::Processed, completion.finished.len() - duplicates);
        let positions: Vec<(TopicPartition, i64)> =
            completion.positions.into_iter().map(|position| (position.at, position.next)).collect();
        self.group.status.completed(&positions);
        if !positions.is_empty() {
            self.reporter.tell(Report::Completed(positions));
        }
        for message in held {
            self.gathering.leave(Trace::of(&message));
        }
        self.start_freed(freed);
        let mut slots = Vec::new();
        for trace in traces {
            let slot = trace.slot;
            let cleared = trace.id.filter(|_| trace.in_doubt && trace.ticket.is_some());
            self.forget(trace);
            if let Some(partition) = self.partitions.get_mut(&slot) {
                if let Some(id) = cleared {
                    partition.noted.remove(&id);
                }
                partition.busy -= 1;
                partition.changed = true;
                if partition.ending.is_stopping() && slots.last() != Some(&slot) {
                    slots.push(slot);
                }
            }
        }
        for slot in slots {
            self.end(slot);
        }
    }

    /// Their keys have been let go: they start in their order, and before those that came behind them.
    pub(super) fn start_freed(&mut self, freed: Vec<Box<Message>>) {
        for message in &freed {
            self.held.retain(|held| Some(*held) != message.hold);
        }
        let keys: HashSet<Option<u64>> = freed.iter().map(|message| message.hold).collect();
        let behind = self.gathering.held.extract_if(.., |message| keys.contains(&message.hold));
        let behind: Vec<Box<Message>> = behind.collect();
        for message in freed.into_iter().chain(behind) {
            self.take_up(&message);
            self.enter(message);
        }
    }

    /// Lets those go on that waited for it.
    pub(super) fn forget(&mut self, trace: Trace) {
        for operation in trace.operations {
            self.free.extend(self.operations.remove(&operation).unwrap_or_default());
        }
        let Some(id) = trace.id else { return };
        let Some(Id::Working(repeats)) = self.ids.remove(&id) else { return };
        if trace.ticket.is_none() {
            self.again.extend(repeats);
            return;
        }
        for repeat in repeats {
            self.skip(repeat);
        }
        if self.look_up.is_some() {
            self.ids.insert(id, Id::Recorded);
            self.recorded.push(id);
        }
    }

    /// Tells the end of a partition that has come to it.
    pub(super) fn end(&mut self, slot: Slot) {
        let Some(partition) = self.partitions.get_mut(&slot).filter(|partition| partition.busy == 0) else {
            return;
        };
        if partition.noted.is_empty() {
            self.partitions.remove(&slot);
            self.reporter.tell(Report::Ended(slot));
            return;
        }
        // Taken back: none of these was started.
        partition.busy += 1;
        self.gathering.completion.cleared.extend(partition.noted.drain());
        let trace = Trace { slot, ticket: None, id: None, operations: Vec::new(), in_doubt: false };
        self.gathering.leave(trace);
    }
}
