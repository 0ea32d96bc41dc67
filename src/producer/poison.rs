//! What Kafka refuses for good is parked, and holds what its topic's policy says until an operator decides: nothing, the
//! later messages of its key, or its whole lane.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::lane::Lane;
use super::trial::Verdict;
use super::work::{Stop, Work};
use crate::config::OnPoison;
use crate::domain::backoff::Backoff;
use crate::domain::key_lines::KeyLines;
use crate::domain::message::Message;
use crate::domain::priority::Priority;
use crate::failpoint;
use crate::pg::aside::{Aside, Holds, Line, Stopping};
use crate::pg::lanes::{LaneError, LaneStore};

/// How often what stops a lane is tried again by itself: the topic may take larger messages by now.
const TRY_STOP: Backoff = Backoff { first: Duration::from_secs(2), max: Duration::from_secs(60) };

/// What stops the lane was tried so many times since, last at.
pub(super) struct Stopped {
    tries: u32,
    tried_at: Instant,
}

impl Stopped {
    fn now() -> Self {
        Self { tries: 1, tried_at: Instant::now() }
    }

    fn is_due(&self) -> bool {
        self.tried_at.elapsed() >= TRY_STOP.bound(self.tries)
    }
}

/// What an earlier owner left parked, and what it holds.
pub(super) struct Holding {
    pub(super) lines: KeyLines,
    pub(super) stopped: Option<Stopped>,
}

impl Holding {
    pub(super) async fn load(store: &LaneStore, priority: Priority) -> Result<Self, LaneError> {
        let stopping = store.stopping(priority).await?;
        Ok(Self {
            lines: key_lines(&store.lines(priority).await?),
            stopped: stopping.map(|_| Stopped::now()),
        })
    }
}

fn key_lines(lines: &[Line]) -> KeyLines {
    let mut keys = KeyLines::default();
    for line in lines {
        keys.insert(line.topic.clone(), line.key.clone(), line.number);
    }
    keys
}

impl Lane {
    fn holds(&self, work: &Work<'_>, message: &Message) -> Holds {
        match work.relay.topics.on_poison(&message.topic) {
            OnPoison::Park => Holds::Nothing,
            OnPoison::HoldKey => self.lines.line_from(message).map_or(Holds::Nothing, Holds::Key),
            OnPoison::Stop => Holds::Lane,
        }
    }

    /// Takes note of what is parked, durably, by now.
    fn parked(&mut self, work: &Work<'_>, message: &Message, reason: &str, holds: Holds) -> Result<(), Stop> {
        tracing::error!(
            topic = message.topic, id = %message.message_id, seq = message.seq,
            "a message is parked, Kafka will never take it: {reason}"
        );
        work.relay.status.parked();
        failpoint::hit("relay-after-park");
        match (holds, &message.key) {
            (Holds::Key(line), Some(key)) => self.lines.insert(message.topic.clone(), key.clone(), line),
            (Holds::Lane, _) => {
                self.stopped = Some(Stopped::now());
                return Err(Stop::Away(self.why_stopped(message.seq, reason)));
            }
            _ => {}
        }
        Ok(())
    }

    fn why_stopped(&self, seq: i64, reason: &str) -> String {
        format!("the {} lane stops at message {seq}, which Kafka refuses: {reason}", self.owned.priority)
    }

    /// Where a lane stops, no later owner sends anything: what went before must be known to be published.
    async fn before_stop(&mut self, work: &Work<'_>, holds: Holds) -> Result<(), Stop> {
        if holds == Holds::Lane {
            self.settle(work, self.sender.next_ticket()).await?;
            self.write_down(work).await?;
        }
        Ok(())
    }

    /// A row of the window is refused. With it, in one transaction, goes what waits for its key of those `behind` it.
    pub(super) async fn refuse(
        &mut self,
        work: &Work<'_>,
        message: &Message,
        reason: String,
        behind: &mut VecDeque<(Message, i32)>,
    ) -> Result<(), Stop> {
        let holds = self.holds(work, message);
        let mut items = vec![(message.seq, Aside::Parked { reason: reason.clone(), holds })];
        if let Holds::Key(line) = holds {
            behind.retain(|(later, _)| {
                let waits = later.topic == message.topic && later.key == message.key;
                if waits {
                    items.push((later.seq, Aside::Behind(line)));
                }
                !waits
            });
        }
        self.before_stop(work, holds).await?;
        failpoint::hit("relay-before-park");
        work.store.set_aside(&self.owned, &items).await?;
        self.read_seq = message.seq;
        self.parked(work, message, &reason, holds)
    }

    /// A row that is set aside already is refused.
    pub(super) async fn refuse_aside(
        &mut self,
        work: &Work<'_>,
        message: &Message,
        reason: String,
    ) -> Result<Holds, Stop> {
        let holds = self.holds(work, message);
        let parked = Aside::Parked { reason: reason.clone(), holds };
        self.before_stop(work, holds).await?;
        work.store.change_state(&self.owned, &[(message.seq, parked)]).await?;
        self.parked(work, message, &reason, holds)?;
        Ok(holds)
    }

    /// Lets the lines go whose first message is not parked any more: an operator has sent it again, or discarded it.
    pub(super) async fn look_at_lines(&mut self, work: &Work<'_>) -> Result<(), Stop> {
        let lines = work.store.lines(self.owned.priority).await?;
        self.lines = key_lines(&lines);
        for line in lines.iter().filter(|line| !line.is_parked) {
            self.release_line(work, line).await?;
        }
        Ok(())
    }

    /// Publishes a line in order, up to one that is refused. Until the last is published, new ones of the key are set
    /// aside behind it.
    async fn release_line(&mut self, work: &Work<'_>, line: &Line) -> Result<(), Stop> {
        let Line { number, topic, key, .. } = line;
        // A topic that holds its messages holds these as well.
        let Ok(partitions) = self.topic(work, topic).await? else { return Ok(()) };
        let priority = self.owned.priority;
        let end = work.store.first_parked(priority, *number).await?;
        let mut is_first = true;
        loop {
            let before = end.unwrap_or(i64::MAX);
            let rows = work.store.read_line(priority, *number, before).await?;
            let Some(first) = rows.front() else { break };
            if std::mem::take(&mut is_first) {
                // It may be refused once more: tried alone, that costs the others nothing.
                self.suspects.insert(first.seq);
            }
            let rows = rows.into_iter().map(|message| (message, partitions)).collect();
            if !self.publish_aside(work, rows, Some(*number)).await? {
                return Ok(());
            }
        }
        if end.is_none() {
            self.lines.remove(topic, key);
            tracing::info!(
                topic,
                lane = priority.name(),
                "the messages of a key that were held are published"
            );
        }
        Ok(())
    }

    /// Looks whether what stops the lane is decided, or the policy is another now; tries it again now and then.
    pub(super) async fn look_at_stop(&mut self, work: &Work<'_>) -> Result<(), Stop> {
        self.write_now_and_then(work).await?;
        let Some(stopping) = work.store.stopping(self.owned.priority).await? else {
            return self.go_on("it is discarded");
        };
        let away = |lane: &Self, reason: &str| Stop::Away(lane.why_stopped(stopping.seq, reason));
        let Stopping { seq, topic, is_parked, reason } = &stopping;
        if *is_parked && work.relay.topics.on_poison(topic) != OnPoison::Stop {
            return self.let_pass(work, &stopping).await;
        }
        let is_due = self.stopped.as_ref().is_none_or(Stopped::is_due);
        if *is_parked && !is_due {
            return Err(away(self, reason));
        }
        let partitions = match work.confirm(self.sender.incarnation(), topic).await? {
            Ok(partitions) => partitions,
            Err(held) => return Err(away(self, &held)),
        };
        let Some(message) = work.store.read_one(self.owned.priority, *seq).await? else {
            return self.go_on("it is gone");
        };
        let verdict = self.try_alone(work, &message, partitions).await?;
        if let Some(stopped) = &mut self.stopped {
            *stopped = Stopped { tries: stopped.tries + 1, tried_at: Instant::now() };
        }
        match verdict {
            Verdict::Taken(_) => {
                self.forget_aside(work, &[*seq]).await?;
                self.go_on("Kafka has taken it")
            }
            Verdict::Refused(reason) => {
                let parked = Aside::Parked { reason: reason.clone(), holds: Holds::Lane };
                work.store.change_state(&self.owned, &[(*seq, parked)]).await?;
                Err(away(self, &reason))
            }
            Verdict::Unclear(reason) => Err(away(self, &reason)),
        }
    }

    /// The policy has changed: it stays parked and holds what it says now.
    async fn let_pass(&mut self, work: &Work<'_>, stopping: &Stopping) -> Result<(), Stop> {
        let Some(message) = work.store.read_one(self.owned.priority, stopping.seq).await? else {
            return self.go_on("it is gone");
        };
        let holds = self.holds(work, &message);
        let parked = Aside::Parked { reason: stopping.reason.clone(), holds };
        work.store.change_state(&self.owned, &[(stopping.seq, parked)]).await?;
        if let (Holds::Key(line), Some(key)) = (holds, message.key) {
            self.lines.insert(message.topic, key, line);
        }
        self.go_on("`on_poison` is not \"stop\" any more")
    }

    #[allow(clippy::unnecessary_wraps, reason = "the end of a look")]
    fn go_on(&mut self, why: &str) -> Result<(), Stop> {
        tracing::info!(lane = self.owned.priority.name(), "the lane goes on: {why}");
        self.stopped = None;
        Ok(())
    }
}
