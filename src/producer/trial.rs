//! Trying records one at a time by a producer of its own, so that a refusal is of one record and costs others nothing.

use std::sync::Arc;
use std::time::Duration;

use super::lane::Lane;
use super::work::{Stop, Work};
use crate::domain::message::Message;
use crate::domain::offsets::Offsets;
use crate::kafka::error::Refusal;
use crate::kafka::publish::{SendError, Sender};

/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What came of it.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The broker has it, there.
    Taken(Offsets),
    /// It can never be published as it is.
    Refused(String),
    /// Not now. It may have been taken all the same: it is then repeated.
    Unclear(String),
}

impl Lane {
    /// Tries a message alone, behind everything that is under way of its key.
    pub(super) async fn try_alone(
        &mut self,
        work: &Work<'_>,
        message: &Message,
        partitions: i32,
    ) -> Result<Verdict, Stop> {
        let verdict = self.trial.of(work, message, partitions).await?;
        if let Verdict::Taken(offsets) = &verdict {
            // What the lane's own producer has told so far came before it.
            self.progress.note(&self.sender.take_offsets());
            self.progress.note(offsets);
            work.relay.status.published(1);
        }
        Ok(verdict)
    }
}

/// The producer, as long as nothing it sent has failed.
#[derive(Default)]
pub(super) struct Trial(Option<Sender>);

impl Trial {
    /// Everything before the message of its key is acknowledged, and nothing behind it is sent until this returns.
    async fn of(&mut self, work: &Work<'_>, message: &Message, partitions: i32) -> Result<Verdict, Stop> {
        let mut sender = match self.0.take() {
            Some(sender) => sender,
            None => Sender::new(&Arc::new(work.relay.incarnation()?), 0),
        };
        let ticket = match sender.send(message, partitions) {
            Ok(ticket) => ticket,
            Err(SendError::Refused(reason)) => {
                self.0 = Some(sender);
                return Ok(Verdict::Refused(reason));
            }
            Err(SendError::Broken | SendError::Full | SendError::Unproven(_)) => sender.next_ticket(),
        };
        if let Ok(Ok(())) = tokio::time::timeout(PATIENCE, sender.settled(ticket + 1)).await {
            let offsets = sender.take_offsets();
            self.0 = Some(sender);
            return Ok(Verdict::Taken(offsets));
        }
        let incarnation = Arc::clone(sender.incarnation());
        Arc::clone(&incarnation).end().await;
        // The answer may have come just before the end.
        if sender.acknowledged() > ticket {
            return Ok(Verdict::Taken(sender.take_offsets()));
        }
        Ok(match incarnation.failure() {
            Some(failure) if failure.refusal == Refusal::Record => Verdict::Refused(failure.reason),
            Some(failure) => Verdict::Unclear(failure.reason),
            None => Verdict::Unclear("Kafka has not answered".into()),
        })
    }

    /// It is of no more use.
    pub(super) async fn end(&mut self) {
        if let Some(sender) = self.0.take() {
            Arc::clone(sender.incarnation()).end().await;
        }
    }
}
