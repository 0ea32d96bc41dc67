//! Rows that left the line: scheduled ones are published when due, held ones when their topic lets them.

use std::time::{Duration, Instant};

use super::lane::Lane;
use super::trial::Verdict;
use super::work::{Stop, Work};
use crate::domain::message::Message;
use crate::failpoint;
use crate::pg::aside::{Aside, Holds};
use crate::pg::lanes::LaneError;

/// How often held topics are asked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long a topic is let go at a time: the lane's other messages wait for so long.
const RELEASE_FOR: Duration = Duration::from_millis(200);

impl Lane {
    /// Publishes scheduled messages that are due. They keep no order.
    pub(super) async fn publish_due(&mut self, work: &Work<'_>) -> Result<(), Stop> {
        let due = work.store.read_due(self.owned.priority).await?;
        let mut ready = Vec::new();
        let mut held = Vec::new();
        for message in due {
            match self.topic(work, &message.topic).await? {
                Ok(partitions) => ready.push((message, partitions)),
                Err(reason) => held.push((message.seq, Aside::Held(reason))),
            }
        }
        work.store.change_state(&self.owned, &held).await?;
        self.publish_aside(work, ready, None).await?;
        Ok(())
    }

    /// Lets held messages go that need not wait any more.
    pub(super) async fn look_at_held(&mut self, work: &Work<'_>) -> Result<(), Stop> {
        if let Some((topic, partitions)) = self.releasing.pop_front()
            && !self.release_some(work, &topic, partitions).await?
        {
            self.releasing.push_back((topic, partitions));
        }
        let has_none = self.held.is_empty() && self.lines.is_empty();
        if has_none || self.looked_at_held.elapsed() < LOOK_EVERY {
            return Ok(());
        }
        self.looked_at_held = Instant::now();
        self.look_at_topics(work).await?;
        // A line waits while its topic holds messages: what was held by that and belongs in the line is in it by then.
        if self.lines.is_empty() { Ok(()) } else { self.look_at_lines(work).await }
    }

    /// Lets the messages of a topic go, in order, once the broker takes them. Until the last one is published, new
    /// rows of the topic are set aside behind them.
    async fn look_at_topics(&mut self, work: &Work<'_>) -> Result<(), Stop> {
        let is_released = |topic: &&String| self.releasing.iter().any(|(released, _)| released == *topic);
        let topics: Vec<String> = self.held.keys().filter(|topic| !is_released(topic)).cloned().collect();
        for topic in topics {
            let Ok(partitions) = work.confirm(self.sender.incarnation(), &topic).await? else { continue };
            if self.try_topic(work, &topic, partitions).await? {
                self.releasing.push_back((topic, partitions));
            }
        }
        Ok(())
    }

    /// Tries the oldest held message alone. If the broker takes it, it counts as published.
    async fn try_topic(&mut self, work: &Work<'_>, topic: &str, partitions: i32) -> Result<bool, Stop> {
        let oldest = loop {
            let mut held = work.store.read_held(self.owned.priority, topic, Some(1)).await?;
            let Some(oldest) = held.pop_front() else { return Ok(true) };
            let Some(line) = self.lines.of(&oldest) else { break oldest };
            work.store.change_state(&self.owned, &[(oldest.seq, Aside::Behind(line))]).await?;
        };
        match self.try_alone(work, &oldest, partitions).await? {
            Verdict::Taken(_) => {
                self.forget_aside(work, &[oldest.seq]).await?;
                Ok(true)
            }
            Verdict::Refused(reason) => {
                self.refuse_aside(work, &oldest, reason).await?;
                Ok(true)
            }
            Verdict::Unclear(reason) => {
                tracing::debug!(topic, "the topic does not take records yet: {reason}");
                Ok(false)
            }
        }
    }

    /// Says whether none is left.
    async fn release_some(&mut self, work: &Work<'_>, topic: &str, partitions: i32) -> Result<bool, Stop> {
        let begun = Instant::now();
        while begun.elapsed() < RELEASE_FOR {
            let priority = self.owned.priority;
            let held = work.store.read_held(priority, topic, None).await?;
            if held.is_empty() {
                self.held.remove(topic);
                tracing::info!(topic, lane = priority.name(), "its held messages are published");
                return Ok(true);
            }
            let rows = held.into_iter().map(|message| (message, partitions)).collect();
            self.publish_aside(work, rows, None).await?;
        }
        Ok(false)
    }

    /// They are published.
    pub(super) async fn forget_aside(&self, work: &Work<'_>, seqs: &[i64]) -> Result<(), LaneError> {
        failpoint::hit("relay-before-forget");
        work.store.published_from_aside(&self.owned, seqs).await?;
        failpoint::hit("relay-after-forget");
        Ok(())
    }

    /// Publishes rows that are set aside, of any keys or of one line, waits for the broker, and forgets them. Says
    /// whether it came to its end: behind a row that holds its key, a line stops.
    pub(super) async fn publish_aside(
        &mut self,
        work: &Work<'_>,
        rows: Vec<(Message, i32)>,
        line: Option<i64>,
    ) -> Result<bool, Stop> {
        // What is under way of the lane's own rows stays behind: the tickets below are of these rows alone.
        self.settle(work, self.sender.next_ticket()).await?;
        let (mut sent, mut behind) = (Vec::with_capacity(rows.len()), Vec::new());
        let mut ended = Ok(true);
        for (message, partitions) in &rows {
            if let Some(other) = self.lines.of(message).filter(|other| line != Some(*other)) {
                behind.push((message.seq, Aside::Behind(other)));
                continue;
            }
            let refused = if self.suspects.contains(&message.seq) {
                self.settle(work, self.sender.next_ticket()).await?;
                let verdict = self.try_alone(work, message, *partitions).await?;
                if let Verdict::Unclear(reason) = verdict {
                    ended = Err(Stop::Away(reason));
                    break;
                }
                self.suspects.remove(&message.seq);
                if let Verdict::Refused(reason) = verdict { Some(reason) } else { None }
            } else {
                match self.send(work, message, *partitions).await? {
                    Ok(ticket) => {
                        self.aside_tickets.push((ticket, message.seq));
                        None
                    }
                    Err(reason) => Some(reason),
                }
            };
            let Some(reason) = refused else {
                sent.push(message.seq);
                continue;
            };
            match self.refuse_aside(work, message, reason).await {
                Ok(Holds::Key(_)) if line.is_some() => {
                    ended = Ok(false);
                    break;
                }
                Ok(_) => {}
                Err(stop) => {
                    ended = Err(stop);
                    break;
                }
            }
        }
        self.settle(work, self.sender.next_ticket()).await?;
        // Those that were tried alone are counted already.
        work.relay.status.published(std::mem::take(&mut self.aside_tickets).len() as u64);
        self.forget_aside(work, &sent).await?;
        // Before the topic's new rows are sent: those of these keys line up behind.
        work.store.change_state(&self.owned, &behind).await?;
        work.relay.status.lane_turns(self.owned.priority);
        ended
    }
}
