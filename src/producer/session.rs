//! One session with the lanes: from acquiring them to giving them up, or to the first thing that is unclear.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::lane::Lane;
use super::lease::LeaseKeeper;
use super::{BACKOFF, Relay, RelayStatus, SessionError};
use crate::domain::cursor::SequenceSetBack;
use crate::domain::message::Message;
use crate::domain::priority::Priority;
use crate::failpoint;
use crate::kafka::error::Refusal;
use crate::kafka::publish::{DeliveryFailure, Incarnation, SendError};
use crate::kafka::topics::{TopicState, Topics};
use crate::pg::lanes::{Aside, LaneError, LaneStore, Limit, Poll};

/// Rows that one read brings at the most.
const BATCH_ROWS: i64 = 5_000;

/// Records under way at the most, over all lanes.
const MAX_IN_FLIGHT: u64 = 50_000;

/// The cursor is written at most this often while a window drains.
const WRITE_EVERY: Duration = Duration::from_millis(20);

/// An idle lane moves on at most this often.
const ADVANCE_EVERY: Duration = Duration::from_secs(1);

/// Between two looks at the outbox: while there was something to do, and after a while without.
const POLL_BUSY: Duration = Duration::from_millis(1);
const POLL_IDLE: Duration = Duration::from_millis(20);

/// How long a topic's metadata is believed.
const TOPIC_AGE: Duration = Duration::from_secs(60);

/// A wait for Kafka is noted for the health check this often,
const NOTE_EVERY: Duration = Duration::from_secs(5);

/// and told in the log this often.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// How often Kafka is asked whether it is there, however little there is to send.
const ASK_KAFKA_EVERY: Duration = Duration::from_secs(5);

/// A database that takes longer to answer while nothing is owned is taken for gone. With a lane, the lease says so.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a step stopped short.
pub(super) enum Stop {
    /// The session is over.
    End(SessionError),
    /// The incarnation failed; another begins at the committed cursors.
    Broken,
    /// No broker answers: nothing was sent of this step, it is tried again.
    Away(String),
}

impl From<LaneError> for Stop {
    fn from(error: LaneError) -> Self {
        Self::End(error.into())
    }
}

/// Batches that a lane may have in one round: higher ones more, lower ones never none.
fn share(priority: Priority) -> u32 {
    match priority {
        Priority::High => 4,
        Priority::Normal => 2,
        Priority::Low => 1,
    }
}

pub(super) struct Session<'a> {
    pub(super) relay: &'a Relay,
    pub(super) store: Arc<LaneStore>,
    pub(super) incarnation: Incarnation,
    pub(super) topics: Topics,
    pub(super) lanes: Vec<Lane>,
    known_topics: HashMap<String, (Instant, i32)>,
    failures: u32,
    told_at: Option<Instant>,
    pub(super) looked_at_held: Instant,
    pub(super) aside_singly: bool,
}

/// Acquires what lanes it can, and publishes until `drain` or an error. `former` holds the owners that were given up
/// without telling the database; their lanes are taken back at once.
pub(super) async fn work(
    relay: &Relay,
    former: &mut HashMap<Priority, Uuid>,
    drain: &CancellationToken,
) -> Result<(), SessionError> {
    let store = in_time(async { LaneStore::open(relay.connector.connect().await?).await }).await?;
    let mut session = Session {
        relay,
        store: Arc::new(store),
        incarnation: relay.incarnation()?,
        topics: Topics::new(&relay.kafka, &relay.client_id())?,
        lanes: Vec::new(),
        known_topics: HashMap::new(),
        failures: 0,
        told_at: None,
        looked_at_held: Instant::now(),
        aside_singly: false,
    };
    let keeper = LeaseKeeper::start(relay.connector.clone(), relay.settings.lease);
    let _asking =
        AbortOnDropHandle::new(tokio::spawn(ask_kafka(session.topics.clone(), Arc::clone(&relay.status))));
    let result = tokio::select! {
        result = session.run(&keeper, former, drain) => result,
        () = keeper.ended() => Err(SessionError::LeaseEnded),
    };
    *former = session.lanes.iter().map(|lane| (lane.owned.priority, lane.owned.owner)).collect();
    relay.status.own(Vec::new());
    session.incarnation.end().await;
    result
}

/// Tells the status whether a broker answers.
async fn ask_kafka(topics: Topics, status: Arc<RelayStatus>) {
    loop {
        status.kafka_away(topics.answer().await.err().map(|error| error.to_string()));
        tokio::time::sleep(ASK_KAFKA_EVERY).await;
    }
}

async fn in_time<T>(asked: impl Future<Output = Result<T, LaneError>>) -> Result<T, SessionError> {
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(SessionError::Silent(PATIENCE)),
    }
}

impl Relay {
    fn client_id(&self) -> String {
        format!("outboxd-{}", self.agent)
    }

    pub(super) fn incarnation(&self) -> Result<Incarnation, SessionError> {
        Ok(Incarnation::start(&self.kafka, &self.client_id(), self.settings.buffer_bytes)?)
    }
}

impl Session<'_> {
    async fn run(
        &mut self,
        keeper: &LeaseKeeper,
        former: &mut HashMap<Priority, Uuid>,
        drain: &CancellationToken,
    ) -> Result<(), SessionError> {
        let acquire_every = (self.relay.settings.lease / 4).min(Duration::from_secs(1));
        let mut acquired_at: Option<Instant> = None;
        let mut rest = POLL_BUSY;
        loop {
            if drain.is_cancelled() {
                return self.finish().await;
            }
            if self.lanes.len() < Priority::ALL.len()
                && acquired_at.is_none_or(|at| at.elapsed() >= acquire_every)
            {
                self.acquire(keeper, former).await?;
                acquired_at = Some(Instant::now());
            }
            let busy = match self.round().await {
                Ok(busy) => {
                    self.relay.status.turn();
                    self.told_at = None;
                    busy
                }
                Err(Stop::End(error)) => return Err(error),
                Err(Stop::Broken) => {
                    self.replace_incarnation().await?;
                    true
                }
                Err(Stop::Away(reason)) => {
                    self.tell(reason);
                    self.pause(Duration::from_secs(1), drain).await;
                    true
                }
            };
            rest = if busy { POLL_BUSY } else { (rest * 2).min(POLL_IDLE) };
            let rest = if self.lanes.is_empty() { acquire_every } else { rest };
            self.pause(rest, drain).await;
        }
    }

    /// Says what is waited for, now and then.
    fn tell(&mut self, reason: String) {
        if self.told_at.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            tracing::warn!("{reason}; what is committed waits in the outbox");
            self.told_at = Some(Instant::now());
        }
        self.relay.status.wait_for(reason);
    }

    async fn pause(&self, time: Duration, drain: &CancellationToken) {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = drain.cancelled() => {}
        }
    }

    async fn acquire(
        &mut self,
        keeper: &LeaseKeeper,
        former: &mut HashMap<Priority, Uuid>,
    ) -> Result<(), SessionError> {
        for priority in Priority::ALL {
            if self.lanes.iter().any(|lane| lane.owned.priority == priority) {
                continue;
            }
            let since = tokio::time::Instant::now();
            let mine = former.get(&priority).copied();
            let lease = self.relay.settings.lease;
            let acquired = in_time(self.store.acquire(priority, &self.relay.agent, lease, mine)).await?;
            let Some(owned) = acquired else { continue };
            keeper.add(owned.owner, since);
            former.remove(&priority);
            let held = self.store.held_topics(priority).await?.into_iter().collect();
            tracing::info!(lane = priority.name(), epoch = owned.epoch, "lane acquired");
            self.lanes.push(Lane::new(owned, held));
        }
        self.lanes.sort_by_key(|lane| std::cmp::Reverse(lane.owned.priority));
        self.relay.status.own(self.lanes.iter().map(|lane| lane.owned.priority).collect());
        Ok(())
    }

    /// Looks at the outbox once and gives every lane its share; says whether there was anything to do.
    async fn round(&mut self) -> Result<bool, Stop> {
        if self.lanes.is_empty() {
            return Ok(false);
        }
        self.acknowledge();
        // What lies beyond an open window is of no interest until it is read to its end.
        let asking: Vec<Uuid> = self
            .lanes
            .iter()
            .filter(|lane| !lane.window_is_open() || lane.drained)
            .map(|lane| lane.owned.owner)
            .collect();
        let poll = if asking.is_empty() { None } else { Some(self.store.poll(&asking).await?) };
        let mut busy = false;
        for index in 0..self.lanes.len() {
            if let Some(poll) = &poll {
                self.turn_window(index, poll).await?;
            }
            for _ in 0..share(self.lanes[index].owned.priority) {
                let lane = &self.lanes[index];
                if !lane.window_is_open() || lane.drained {
                    break;
                }
                busy = true;
                self.publish_batch(index).await?;
                self.write_progress(index).await?;
            }
        }
        // A window that is read to its end is waited for, so that it can be closed and the next one opened.
        let ends = self
            .lanes
            .iter()
            .filter(|lane| lane.drained)
            .filter_map(|lane| lane.sent.back())
            .map(|(ticket, _)| *ticket);
        if let Some(last) = ends.max() {
            self.settle(last + 1).await?;
        }
        if let Some(poll) = &poll {
            busy |= self.publish_due(poll).await?;
        }
        busy |= self.look_at_held().await?;
        Ok(busy)
    }

    /// Closes a window that is published, opens the next if there are rows, moves an idle lane on now and then.
    async fn turn_window(&mut self, index: usize, poll: &Poll) -> Result<(), Stop> {
        let lane = &mut self.lanes[index];
        let Some(seen) = poll.lanes.get(&lane.owned.priority) else { return Ok(()) };
        let cursor = &lane.owned.cursor;
        cursor.stands_with(poll.candidate.last_seq).map_err(|error| set_back(lane.owned.priority, error))?;
        let next = if !lane.window_is_open() && seen.has_rows || lane.is_finished() {
            cursor.turn(seen.has_rows.then(|| poll.snapshot.clone()), poll.candidate)
        } else if lane.written_at.elapsed() >= ADVANCE_EVERY
            && !seen.has_rows
            && cursor.worth_advancing(&poll.snapshot, poll.candidate.last_seq)
        {
            cursor.advance(poll.snapshot.clone(), poll.candidate)
        } else {
            return Ok(());
        };
        let next = next.map_err(|error| set_back(lane.owned.priority, error))?;
        failpoint::hit("relay-before-window");
        self.store.turn(&mut lane.owned, next).await?;
        failpoint::hit("relay-after-window");
        lane.turned();
        Ok(())
    }

    /// Reads the next rows of the open window and sends them, or sets them aside.
    async fn publish_batch(&mut self, index: usize) -> Result<(), Stop> {
        if self.incarnation.in_flight() > MAX_IN_FLIGHT {
            self.settle(self.incarnation.next_ticket() - MAX_IN_FLIGHT / 2).await?;
        }
        let limit = self.limit();
        let lane = &mut self.lanes[index];
        let batch = lane.read(&self.store, limit).await?;
        failpoint::hit("relay-after-read");
        let already_aside = if lane.look_aside && !batch.messages.is_empty() {
            let seqs: Vec<i64> = batch.messages.iter().map(|message| message.seq).collect();
            self.store.which_are_aside(&lane.owned, &seqs).await?
        } else {
            HashSet::new()
        };
        let end = batch.messages.last().map(|message| message.seq);
        let mut aside = Vec::new();
        let mut ready = Vec::with_capacity(batch.messages.len());
        for message in batch.messages.into_iter().filter(|message| !already_aside.contains(&message.seq)) {
            if message.is_scheduled {
                aside.push((message.seq, Aside::Scheduled));
            } else {
                match self.topic(index, &message.topic).await? {
                    Ok(partitions) => ready.push((message, partitions)),
                    Err(reason) => aside.push((message.seq, Aside::Held(reason))),
                }
            }
        }
        // Durable before a later row of its topic is sent, and before the cursor passes it.
        self.store.set_aside(&self.lanes[index].owned, &aside).await?;
        failpoint::hit("relay-after-aside");
        for (message, partitions) in &ready {
            self.publish(index, message, *partitions).await?;
        }
        failpoint::hit("relay-after-send");
        let lane = &mut self.lanes[index];
        lane.read_seq = end.unwrap_or(lane.read_seq);
        lane.drained = batch.last;
        Ok(())
    }

    pub(super) fn limit(&self) -> Limit {
        let bytes = i64::try_from(self.relay.settings.batch_bytes).unwrap_or(i64::MAX);
        Limit { rows: BATCH_ROWS, bytes }
    }

    async fn publish(&mut self, index: usize, message: &Message, partitions: i32) -> Result<(), Stop> {
        let is_suspect = message.seq <= self.lanes[index].suspect_until;
        if is_suspect {
            self.settle(self.incarnation.next_ticket()).await?;
        }
        let reason = match self.send(message, partitions).await? {
            Ok(ticket) => {
                self.lanes[index].sent.push_back((ticket, message.seq));
                if !is_suspect {
                    return Ok(());
                }
                let Err(stop) = self.settle(ticket + 1).await else { return Ok(()) };
                match self.incarnation.failure() {
                    // Nothing else was under way, of this lane or another: it is the culprit.
                    Some(failure) if failure.refusal == Refusal::Record => failure.reason,
                    _ => return Err(stop),
                }
            }
            Err(reason) => reason,
        };
        tell_parked(message, &reason);
        let lane = &self.lanes[index];
        self.store.set_aside(&lane.owned, &[(message.seq, Aside::Parked(reason))]).await?;
        self.relay.status.parked();
        if self.incarnation.failure().is_some() { Err(Stop::Broken) } else { Ok(()) }
    }

    /// Hands a message over, waiting while the queue is full: its ticket, or why Kafka will never take it.
    pub(super) async fn send(
        &mut self,
        message: &Message,
        partitions: i32,
    ) -> Result<Result<u64, String>, Stop> {
        loop {
            match self.incarnation.send(message, partitions) {
                Ok(ticket) => return Ok(Ok(ticket)),
                Err(SendError::Refused(reason)) => return Ok(Err(reason)),
                Err(SendError::Broken) => return Err(Stop::Broken),
                Err(SendError::Full) => self.settle(self.incarnation.acknowledged() + 1).await?,
            }
        }
    }

    /// The topic's partitions if records may be sent to it, else why its messages are held.
    pub(super) async fn topic(&mut self, index: usize, topic: &str) -> Result<Result<i32, String>, Stop> {
        if let Some(reason) = self.lanes[index].held.get(topic) {
            return Ok(Err(reason.clone()));
        }
        if let Some((at, partitions)) = self.known_topics.get(topic)
            && at.elapsed() < TOPIC_AGE
        {
            return Ok(Ok(*partitions));
        }
        let reason = match self.confirm(topic).await? {
            Ok(partitions) => return Ok(Ok(partitions)),
            Err(reason) => reason,
        };
        tracing::error!(
            topic,
            lane = self.lanes[index].owned.priority.name(),
            "its messages are held: {reason}"
        );
        self.lanes[index].held.insert(topic.to_owned(), reason.clone());
        Ok(Err(reason))
    }

    /// Asks the broker, and lets the incarnation know the topic before the first record of it.
    pub(super) async fn confirm(&mut self, topic: &str) -> Result<Result<i32, String>, Stop> {
        let away = |error: crate::kafka::KafkaFailure| Stop::Away(error.to_string());
        match self.topics.check(topic).await.map_err(away)? {
            TopicState::Ready { partitions } => {
                self.incarnation.learn(topic).await.map_err(away)?;
                self.known_topics.insert(topic.to_owned(), (Instant::now(), partitions));
                Ok(Ok(partitions))
            }
            TopicState::Missing => Ok(Err(self.make(topic).await)),
            TopicState::NotNow(reason) => Ok(Err(format!("topic `{topic}` does not take records: {reason}"))),
            TopicState::Forbidden => Ok(Err(format!("topic `{topic}` is forbidden to us"))),
        }
    }

    /// Makes a missing topic if the configuration says how. Its messages are held until the brokers know it.
    async fn make(&self, topic: &str) -> String {
        let Some(create) = self.relay.topics.create(topic) else {
            return format!("topic `{topic}` does not exist");
        };
        match self.topics.create(topic, create).await {
            Ok(()) => {
                tracing::info!(topic, "the topic was missing and has been created");
                format!("topic `{topic}` has just been created")
            }
            Err(reason) => format!("topic `{topic}` does not exist and cannot be created: {reason}"),
        }
    }

    /// Waits until everything below that ticket is acknowledged.
    pub(super) async fn settle(&mut self, below: u64) -> Result<(), Stop> {
        loop {
            let waiting = self.incarnation.in_flight();
            self.relay.status.in_flight(waiting);
            match tokio::time::timeout(NOTE_EVERY, self.incarnation.settled(below)).await {
                Ok(Ok(())) => break,
                Ok(Err(_)) => return Err(Stop::Broken),
                Err(_) => {
                    let brokers = &self.relay.kafka.brokers;
                    self.tell(format!("Kafka at {brokers} has not acknowledged {waiting} records"));
                }
            }
        }
        failpoint::hit("relay-after-ack");
        self.acknowledge();
        Ok(())
    }

    fn acknowledge(&mut self) {
        let prefix = self.incarnation.acknowledged();
        let count = self.lanes.iter_mut().map(|lane| lane.acknowledge(prefix)).sum();
        if count > 0 {
            self.failures = 0;
        }
        self.relay.status.published(count);
        self.relay.status.in_flight(self.incarnation.in_flight());
    }

    async fn write_progress(&mut self, index: usize) -> Result<(), LaneError> {
        self.acknowledge();
        let lane = &mut self.lanes[index];
        if lane.written_at.elapsed() < WRITE_EVERY {
            return Ok(());
        }
        let Some(seq) = lane.progress() else { return Ok(()) };
        lane.written_at = Instant::now();
        self.store.progress(&mut lane.owned, seq).await?;
        failpoint::hit("relay-after-progress");
        Ok(())
    }

    /// After an error of delivery: what is acknowledged is written, and another incarnation begins behind it.
    async fn replace_incarnation(&mut self) -> Result<(), SessionError> {
        let fresh = self.relay.incarnation()?;
        let (prefix, failure) = std::mem::replace(&mut self.incarnation, fresh).end().await;
        self.known_topics.clear();
        for lane in &mut self.lanes {
            self.relay.status.published(lane.acknowledge(prefix));
            if let Some(seq) = lane.progress() {
                self.store.progress(&mut lane.owned, seq).await?;
            }
            let last_sent = lane.sent.back().map(|(_, seq)| *seq);
            lane.rewind();
            if failure.as_ref().is_some_and(|failure| failure.refusal == Refusal::Record) {
                lane.suspect_until = lane.suspect_until.max(last_sent.unwrap_or(0));
            }
        }
        if let Some(failure) = failure {
            self.failures += 1;
            self.consider(&failure);
            let delay = BACKOFF.delay(self.failures, fastrand::f64());
            tokio::time::sleep(delay).await;
        }
        Ok(())
    }

    fn consider(&mut self, failure: &DeliveryFailure) {
        let DeliveryFailure { topic, refusal, reason } = failure;
        tracing::warn!(topic, "the producer is replaced and begins again at the cursor: {reason}");
        match refusal {
            Refusal::TopicForbidden => {
                for lane in &mut self.lanes {
                    lane.held
                        .entry(topic.clone())
                        .or_insert_with(|| format!("topic `{topic}` is forbidden to us"));
                }
            }
            Refusal::Record => self.aside_singly = true,
            // Whether the topic is missing is asked before the next record of it.
            Refusal::TopicMissing | Refusal::Transport => {}
        }
    }

    /// Finishes what is sent, writes it down, and gives the lanes up.
    async fn finish(&mut self) -> Result<(), SessionError> {
        if let Err(Stop::End(error)) = self.settle(self.incarnation.next_ticket()).await {
            return Err(error);
        }
        self.acknowledge();
        for lane in &mut self.lanes {
            if let Some(seq) = lane.progress() {
                self.store.progress(&mut lane.owned, seq).await?;
            }
        }
        let owners: Vec<Uuid> = self.lanes.iter().map(|lane| lane.owned.owner).collect();
        self.store.release(&owners).await?;
        self.lanes.clear();
        Ok(())
    }
}

fn set_back(priority: Priority, error: SequenceSetBack) -> LaneError {
    LaneError::Unfit(format!(
        "the {priority} lane stops: {error}; nothing is published until the cursors are re-based on this database"
    ))
}

pub(super) fn tell_parked(message: &Message, reason: &str) {
    tracing::error!(
        topic = message.topic, id = %message.message_id, seq = message.seq,
        "a message is parked, Kafka will never take it: {reason}"
    );
}
