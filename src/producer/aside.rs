//! Rows that left the line: scheduled ones are published when due, held ones when their topic lets them.

use std::time::{Duration, Instant};

use super::session::{Session, Stop, tell_parked};
use crate::domain::message::Message;
use crate::kafka::error::Refusal;
use crate::kafka::publish::SendError;
use crate::pg::lanes::{Aside, Poll};

/// How often held topics are asked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long the one record may take that tries whether a topic is open again.
const PROBE_PATIENCE: Duration = Duration::from_secs(5);

impl Session<'_> {
    /// Publishes scheduled messages that are due. They keep no order.
    pub(super) async fn publish_due(&mut self, poll: &Poll) -> Result<bool, Stop> {
        let mut busy = false;
        for index in 0..self.lanes.len() {
            let priority = self.lanes[index].owned.priority;
            if !poll.lanes.get(&priority).is_some_and(|seen| seen.has_due) {
                continue;
            }
            busy = true;
            let batch = self.store.read_due(priority, self.limit()).await?;
            let mut ready = Vec::new();
            let mut held = Vec::new();
            for message in batch.messages {
                match self.topic(index, &message.topic).await? {
                    Ok(partitions) => ready.push((message, partitions)),
                    Err(reason) => held.push((message.seq, Aside::Held(reason))),
                }
            }
            self.store.change_state(&self.lanes[index].owned, &held).await?;
            self.publish_aside(index, ready).await?;
        }
        Ok(busy)
    }

    /// Lets the messages of a topic go, in order, once the broker takes them. Until the last one is published, new
    /// rows of the topic are set aside behind them.
    pub(super) async fn look_at_held(&mut self) -> Result<bool, Stop> {
        if self.looked_at_held.elapsed() < LOOK_EVERY {
            return Ok(false);
        }
        self.looked_at_held = Instant::now();
        let mut busy = false;
        for index in 0..self.lanes.len() {
            let topics: Vec<String> = self.lanes[index].held.keys().cloned().collect();
            for topic in topics {
                let Ok(partitions) = self.confirm(&topic).await? else { continue };
                if self.try_topic(index, &topic, partitions).await? {
                    busy = true;
                    self.release_topic(index, &topic, partitions).await?;
                }
            }
        }
        Ok(busy)
    }

    /// Sends the oldest held message by a producer of its own, so that a refusal costs the others nothing. If the
    /// broker takes it, it counts as published.
    async fn try_topic(&mut self, index: usize, topic: &str, partitions: i32) -> Result<bool, Stop> {
        let lane = &self.lanes[index];
        let mut limit = self.limit();
        limit.rows = 1;
        let batch = self.store.read_held(lane.owned.priority, topic, limit).await?;
        let Some(oldest) = batch.messages.first() else { return Ok(true) };
        let mut probe = self.relay.incarnation().map_err(Stop::End)?;
        let outcome = match probe.send(oldest, partitions) {
            Ok(ticket) => tokio::time::timeout(PROBE_PATIENCE, probe.settled(ticket + 1)).await,
            Err(SendError::Refused(reason)) => {
                self.park(index, oldest, reason).await?;
                return Ok(true);
            }
            Err(SendError::Broken | SendError::Full) => return Ok(false),
        };
        let (acknowledged, failure) = probe.end().await;
        if acknowledged > 0 {
            self.store.published_from_aside(&self.lanes[index].owned, &[oldest.seq]).await?;
            self.relay.status.published(1);
            return Ok(true);
        }
        match failure {
            Some(failure) if failure.refusal == Refusal::Record => {
                self.park(index, oldest, failure.reason).await?;
                Ok(true)
            }
            _ => {
                tracing::debug!(topic, ?outcome, "the topic does not take records yet");
                Ok(false)
            }
        }
    }

    async fn release_topic(&mut self, index: usize, topic: &str, partitions: i32) -> Result<(), Stop> {
        loop {
            let priority = self.lanes[index].owned.priority;
            let batch = self.store.read_held(priority, topic, self.limit()).await?;
            if batch.messages.is_empty() {
                self.lanes[index].held.remove(topic);
                tracing::info!(topic, lane = priority.name(), "its held messages are published");
                return Ok(());
            }
            let rows = batch.messages.into_iter().map(|message| (message, partitions)).collect();
            self.publish_aside(index, rows).await?;
        }
    }

    /// Publishes rows that are set aside, waits for the broker, and forgets them.
    async fn publish_aside(&mut self, index: usize, rows: Vec<(Message, i32)>) -> Result<(), Stop> {
        let size = if self.aside_singly { 1 } else { rows.len().max(1) };
        // What is refused below is then of these rows, not of a lane's own.
        self.settle(self.incarnation.next_ticket()).await?;
        for part in rows.chunks(size) {
            let mut sent = Vec::with_capacity(part.len());
            for (message, partitions) in part {
                match self.send(message, *partitions).await? {
                    Ok(_) => sent.push(message.seq),
                    Err(reason) => self.park(index, message, reason).await?,
                }
            }
            if let Err(stop) = self.settle(self.incarnation.next_ticket()).await {
                if let ([(message, _)], Some(failure)) = (part, self.incarnation.failure())
                    && failure.refusal == Refusal::Record
                {
                    self.park(index, message, failure.reason).await?;
                }
                return Err(stop);
            }
            self.store.published_from_aside(&self.lanes[index].owned, &sent).await?;
            self.relay.status.published(sent.len() as u64);
            self.relay.status.turn();
        }
        self.aside_singly = false;
        Ok(())
    }

    /// Kafka will never take it: an operator decides.
    async fn park(&mut self, index: usize, message: &Message, reason: String) -> Result<(), Stop> {
        tell_parked(message, &reason);
        self.store.change_state(&self.lanes[index].owned, &[(message.seq, Aside::Parked(reason))]).await?;
        self.relay.status.parked();
        Ok(())
    }
}
