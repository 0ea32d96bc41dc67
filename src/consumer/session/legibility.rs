//! Batches that cannot be decoded: their partition stands in front of them, neither passing them over nor stopping others,
//! until they can be, or an operator has moved the group.

use std::sync::Arc;

use futures_util::stream::{self, StreamExt};
use tokio_util::task::AbortOnDropHandle;

use super::{Event, Session, SessionError, Slot};
use crate::consumer::Group;
use crate::consumer::wait::Wait;
use crate::domain::delivery::TopicPartition;
use crate::kafka::legible::why_illegible;

/// Who waits for a batch to become readable.
pub(super) const ILLEGIBLE: &str = "illegible";

/// Partitions that are looked at at a time, each by a client of its own.
const AT_A_TIME: usize = 8;

/// What comes next in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    Clear,
    /// It may not be possible to decode it: nothing is read before that is known.
    Doubtful,
    Illegible,
}

/// A partition that was looked at, and why what comes next in it cannot be decoded, if it cannot.
#[derive(Debug)]
pub(in crate::consumer) struct Seen {
    at: TopicPartition,
    slot: Slot,
    problem: Option<String>,
}

/// Under way; the answer to one before it is of no interest.
pub(super) struct Look {
    number: u64,
    _task: AbortOnDropHandle<()>,
}

impl Session {
    /// Some partition cannot be read on, and it is not told which: all go back to where they stand, before anything is read
    /// that lies behind it, and those that can be read go on once that is known.
    pub(super) fn doubt(&mut self) -> Result<(), SessionError> {
        for (at, partition) in self.partitions.iter_mut().filter(|(_, partition)| !partition.stopping) {
            self.subscription.read_on(at, partition.next)?;
            self.subscription.pause(at)?;
            if partition.sight == Sight::Clear {
                partition.sight = Sight::Doubtful;
            }
        }
        self.look_whether_legible();
        Ok(())
    }

    /// Those that could not be decoded before, if nothing else is looked at.
    pub(super) fn look_again(&mut self) {
        let is_illegible = self.partitions.values().any(|partition| partition.sight == Sight::Illegible);
        if is_illegible && self.look.is_none() {
            self.look_whether_legible();
        }
    }

    fn look_whether_legible(&mut self) {
        self.looks += 1;
        let number = self.looks;
        let unclear = self.partitions.iter().filter(|(_, partition)| partition.sight != Sight::Clear);
        let asked: Vec<_> =
            unclear.map(|(at, partition)| (at.clone(), partition.slot, partition.next)).collect();
        let (group, events) = (Arc::clone(&self.group), self.events.clone());
        let task = tokio::spawn(async move {
            let looks = asked.into_iter().map(|(at, slot, next)| look(&group, at, slot, next));
            let seen = stream::iter(looks).buffer_unordered(AT_A_TIME).collect().await;
            let _ = events.send(Event::Seen(number, seen));
        });
        self.look = Some(Look { number, _task: AbortOnDropHandle::new(task) });
    }

    pub(super) fn seen(&mut self, number: u64, seen: Vec<Seen>) -> Result<(), SessionError> {
        if self.look.take_if(|look| look.number == number).is_none() {
            return Ok(());
        }
        for Seen { at, slot, problem } in seen {
            let partition = self.partitions.get_mut(&at).filter(|partition| partition.slot == slot);
            let Some(partition) = partition else { continue };
            let stood = partition.sight == Sight::Illegible;
            self.illegible.remove(&at);
            if let Some(problem) = problem {
                let what = format!("what comes at offset {} cannot be decoded: {problem}", partition.next);
                if !stood {
                    tell(&self.group, &at, &what, partition.next);
                }
                partition.sight = Sight::Illegible;
                self.group.status.paused(&at, true);
                self.illegible.insert(at, what);
                continue;
            }
            if stood {
                let (group, topic) = (&*self.group.name, &*at.0);
                tracing::info!(group, topic, partition = at.1, "it can be decoded now, and is read on");
            }
            partition.sight = Sight::Clear;
            self.group.status.paused(&at, partition.paused);
            if !partition.paused && !partition.stopping {
                self.subscription.resume(&at)?;
            }
        }
        self.tell_illegible();
        Ok(())
    }

    /// What stands in the group's health.
    pub(super) fn tell_illegible(&self) {
        let told: Vec<String> = self
            .illegible
            .iter()
            .map(|((topic, number), what)| format!("{topic}[{number}]: {what}"))
            .collect();
        if told.is_empty() {
            self.group.status.go_on(ILLEGIBLE);
        } else {
            self.group.status.wait_for(ILLEGIBLE, &told.join("; "));
        }
    }
}

/// Asks until there is an answer.
async fn look(group: &Group, at: TopicPartition, slot: Slot, next: i64) -> Seen {
    let mut wait = Wait::new(&group.name, &group.status, "legibility");
    let problem = loop {
        match why_illegible(&group.kafka, &group.client_id(), &group.kafka_group(), &at, next).await {
            Ok(problem) => break problem,
            Err(error) => wait.pause(&format!("some batch cannot be decoded: {error}")).await,
        }
    };
    wait.end();
    Seen { at, slot, problem }
}

fn tell(group: &Group, (topic, partition): &TopicPartition, what: &str, next: i64) {
    let (group, topic) = (&*group.name, &**topic);
    tracing::error!(
        group,
        topic,
        partition,
        "{what}: the partition stands there until it can be, and others go on. To pass it over, stop the group's agents: \
         `outboxd groups reset {group} --topic {topic} --partition {partition} --to OFFSET`, with an offset above {next}"
    );
}
