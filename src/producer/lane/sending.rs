//! Reading the rows of a window and sending them, or setting them aside.

use std::collections::{HashSet, VecDeque};

use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::{Lane, share};
use crate::domain::cursor::Cursor;
use crate::domain::message::Message;
use crate::failpoint;
use crate::kafka::publish::SendError;
use crate::pg::aside::Aside;
use crate::pg::lanes::read::Window;
use crate::pg::lanes::{Batch, LaneError, OwnedLane};
use crate::producer::trial::Verdict;
use crate::producer::work::{Stop, Work};

/// Batches that are read and wait to be sent, besides the one on its way from the database.
const BATCHES_AHEAD: usize = 1;

/// Records that are sent without a look at anything else.
const STRETCH: usize = 500;

/// The rest of the open window, read by a task of its own while the rows before are sent.
pub(super) struct Ahead {
    batches: mpsc::Receiver<Result<Batch, LaneError>>,
    _reading: AbortOnDropHandle<()>,
}

impl Ahead {
    /// What the window of `cursor` holds behind `seq`, if there is a window.
    pub(super) fn of(work: &Work<'_>, owned: &OwnedLane, cursor: &Cursor, seq: i64) -> Option<Self> {
        let mut window = Window::behind(&work.reader, owned.priority, cursor, seq)?;
        let (sender, batches) = mpsc::channel(BATCHES_AHEAD);
        let reading = tokio::spawn(async move {
            loop {
                let batch = window.next().await;
                let goes_on = batch.as_ref().is_ok_and(|batch| !batch.last);
                if sender.send(batch).await.is_err() || !goes_on {
                    return;
                }
            }
        });
        Some(Self { batches, _reading: AbortOnDropHandle::new(reading) })
    }

    async fn next(&mut self) -> Result<Batch, LaneError> {
        // Its task ends only behind the last batch, which is not asked for twice.
        self.batches.recv().await.unwrap_or_else(|| Ok(Batch { messages: Vec::new(), last: true }))
    }
}

impl Lane {
    /// Takes the next rows of the open window and sends them, or sets them aside.
    pub(super) async fn publish_batch(&mut self, work: &Work<'_>) -> Result<(), Stop> {
        if self.ahead.is_none() {
            self.ahead = Ahead::of(work, &self.owned, &self.owned.cursor, self.read_seq);
        }
        let Some(ahead) = &mut self.ahead else { return Ok(()) };
        let Batch { mut messages, last } = ahead.next().await?;
        failpoint::hit("relay-after-read");
        work.relay.status.read(self.owned.priority, messages.len());
        if self.look_aside && !messages.is_empty() {
            let seqs: Vec<i64> = messages.iter().map(|message| message.seq).collect();
            let already: HashSet<i64> = work.store.which_are_aside(&self.owned, &seqs).await?;
            messages.retain(|message| !already.contains(&message.seq));
        }
        let end = messages.last().map(|message| message.seq);
        let mut aside = Vec::new();
        let mut ready: VecDeque<(Message, i32)> = VecDeque::with_capacity(messages.len());
        for message in messages {
            if message.is_scheduled {
                aside.push((message.seq, Aside::Scheduled));
            } else if let Some(line) = self.lines.of(&message) {
                aside.push((message.seq, Aside::Behind(line)));
            } else {
                // Most messages have the topic of the one before.
                let known = ready.back().filter(|(last, _)| last.topic == message.topic);
                let topic = match known {
                    Some((_, partitions)) => Ok(*partitions),
                    None => self.topic(work, &message.topic).await?,
                };
                match topic {
                    Ok(partitions) => ready.push_back((message, partitions)),
                    Err(reason) => aside.push((message.seq, Aside::Held(reason))),
                }
            }
        }
        // Durable before a later row of its topic or key is sent, and before the cursor passes it.
        work.store.set_aside(&self.owned, &aside).await?;
        failpoint::hit("relay-after-aside");
        while !ready.is_empty() {
            for _ in 0..STRETCH {
                let Some((message, partitions)) = ready.pop_front() else { break };
                if let Err(reason) = self.publish(work, &message, partitions).await? {
                    self.refuse(work, &message, reason, &mut ready).await?;
                }
                self.read_seq = message.seq;
            }
            self.write_now_and_then(work).await?;
            // Other lanes, and the end of the lease, are looked at in between.
            tokio::task::yield_now().await;
        }
        failpoint::hit("relay-after-send");
        self.read_seq = end.unwrap_or(self.read_seq).max(self.read_seq);
        self.is_read = last;
        Ok(())
    }

    /// The inner error is why it can never be published.
    async fn publish(
        &mut self,
        work: &Work<'_>,
        message: &Message,
        partitions: i32,
    ) -> Result<Result<(), String>, Stop> {
        if self.suspects.contains(&message.seq) {
            return self.publish_suspect(work, message, partitions).await;
        }
        let ticket = self.send(work, message, partitions).await?;
        Ok(ticket.map(|ticket| self.progress.sent(ticket, message)))
    }

    /// One of those that came back together with an error: it may be an innocent.
    async fn publish_suspect(
        &mut self,
        work: &Work<'_>,
        message: &Message,
        partitions: i32,
    ) -> Result<Result<(), String>, Stop> {
        self.settle(work, self.sender.next_ticket()).await?;
        let verdict = match self.try_alone(work, message, partitions).await? {
            Verdict::Taken(_) => {
                self.progress.published(message.seq);
                Ok(())
            }
            Verdict::Refused(reason) => Err(reason),
            Verdict::Unclear(reason) => return Err(Stop::Away(reason)),
        };
        self.suspects.remove(&message.seq);
        Ok(verdict)
    }

    /// Hands it to the producer, as soon as there is room; the inner error is why it can never be published.
    pub(in crate::producer) async fn send(
        &mut self,
        work: &Work<'_>,
        message: &Message,
        partitions: i32,
    ) -> Result<Result<u64, String>, Stop> {
        let room_from = self.sender.next_ticket().saturating_sub(share(self.owned.priority));
        if self.sender.acknowledged() < room_from {
            // Not for each record again: until a quarter of the share is free.
            self.settle(work, room_from + share(self.owned.priority) / 4).await?;
        }
        loop {
            match self.sender.send(message, partitions) {
                Ok(ticket) => return Ok(Ok(ticket)),
                Err(SendError::Refused(reason)) => return Ok(Err(reason)),
                Err(SendError::Broken) => return Err(Stop::Broken),
                Err(SendError::Full) => self.wait_for_room(work).await?,
                Err(SendError::Unproven(below)) => self.settle(work, below).await?,
            }
        }
    }

    /// The queue is full, of this lane's records or of another's.
    async fn wait_for_room(&mut self, work: &Work<'_>) -> Result<(), Stop> {
        let acknowledged = self.sender.acknowledged();
        if acknowledged < self.sender.next_ticket() {
            return self.settle(work, acknowledged + 1).await;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        Ok(())
    }

    /// The topic's partitions if records may be sent to it, else why its messages are held.
    pub(in crate::producer) async fn topic(
        &mut self,
        work: &Work<'_>,
        topic: &str,
    ) -> Result<Result<i32, String>, Stop> {
        if let Some(reason) = self.held.get(topic) {
            return Ok(Err(reason.clone()));
        }
        if let Some(partitions) = work.partitions(topic) {
            return Ok(Ok(partitions));
        }
        let reason = match work.confirm(self.sender.incarnation(), topic).await? {
            Ok(partitions) => return Ok(Ok(partitions)),
            Err(reason) => reason,
        };
        let lane = self.owned.priority.name();
        tracing::error!(topic, lane, "its messages are held: {reason}");
        self.held.insert(topic.to_owned(), reason.clone());
        Ok(Err(reason))
    }
}
