//! One session with the lanes: from acquiring them to giving them up, or to the first thing that is unclear.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::confirmed::Confirmed;
use super::lane::Lane;
use super::lease::LeaseKeeper;
use super::poison::Holding;
use super::work::{Stop, Work};
use super::{BACKOFF, Relay, RelayStatus, SessionError, in_time};
use crate::domain::health::Vitals as _;
use crate::domain::lane_shares;
use crate::domain::priority::Priority;
use crate::kafka::KafkaFailure;
use crate::kafka::error::Refusal;
use crate::kafka::publish::{DeliveryFailure, Incarnation, blocking};
use crate::kafka::topics::Topics;
use crate::pg::lanes::{LaneError, Limits, Poll, Seen};

/// How often Kafka is asked whether it is there, however little there is to send.
const ASK_KAFKA_EVERY: Duration = Duration::from_secs(5);

/// How often an agent with fewer lanes than another asks it for one.
const WISH_EVERY: Duration = Duration::from_secs(1);

/// How long the database may take to acquire a lane or to give one up.
const PATIENCE: Duration = Duration::from_secs(10);

type Running<'w> = Pin<Box<dyn Future<Output = (Lane, Result<(), Stop>)> + Send + 'w>>;

struct Session<'w> {
    work: &'w Work<'w>,
    keeper: &'w LeaseKeeper,
    incarnation: Arc<Incarnation>,
    running: FuturesUnordered<Running<'w>>,
    /// Lanes that wait for another incarnation.
    stopped: Vec<Lane>,
    owned: HashMap<Priority, Owned>,
    /// In a row, with nothing published between; and how many were published at the last one.
    failures: u32,
    published: u64,
    wished_at: Option<Instant>,
}

struct Owned {
    owner: Uuid,
    leave: CancellationToken,
}

/// Acquires what lanes it can, and publishes until `drain` or an error. `former` holds the owners that were given up
/// without telling the database; their lanes are taken back at once.
pub(super) async fn work(
    relay: &Relay,
    confirmed: &Confirmed,
    former: &mut HashMap<Priority, Uuid>,
    drain: &CancellationToken,
) -> Result<(), SessionError> {
    let work = Work::open(relay, confirmed).await?;
    let keeper = LeaseKeeper::start(relay.connector.clone(), relay.settings.lease);
    let _asking =
        AbortOnDropHandle::new(tokio::spawn(ask_kafka(work.topics.clone(), Arc::clone(&relay.status))));
    let mut session = Session {
        work: &work,
        keeper: &keeper,
        incarnation: Arc::new(relay.incarnation()?),
        running: FuturesUnordered::new(),
        stopped: Vec::new(),
        owned: HashMap::new(),
        failures: 0,
        published: relay.status.total(),
        wished_at: None,
    };
    let result = tokio::select! {
        result = session.run(former, drain) => result,
        error = work.outlook.keep(&work.store, &relay.status) => Err(error),
        () = keeper.ended() => Err(SessionError::LeaseEnded),
    };
    // Nothing of ours is sent from here on.
    session.running.clear();
    session.incarnation.end().await;
    if matches!(result, Err(SessionError::LeaseEnded | SessionError::Lane(LaneError::Lost(_)))) {
        relay.status.lost_leases();
    }
    former.extend(session.owned.iter().map(|(priority, owned)| (*priority, owned.owner)));
    relay.status.own(&[]);
    result
}

/// Tells the status whether a broker answers.
async fn ask_kafka(topics: Topics, status: Arc<RelayStatus>) {
    loop {
        status.kafka_is_away(topics.answer().await.err().map(|error| error.to_string()));
        tokio::time::sleep(ASK_KAFKA_EVERY).await;
    }
}

impl Relay {
    pub(super) fn client_id(&self) -> String {
        format!("outboxd-{}", self.agent)
    }

    pub(super) fn incarnation(&self) -> Result<Incarnation, SessionError> {
        Ok(Incarnation::start(&self.kafka, &self.client_id(), self.settings.buffer_bytes)?)
    }

    pub(super) fn limits(&self) -> Result<Limits, SessionError> {
        let largest = self.kafka.largest_record().map_err(KafkaFailure::Setup)?;
        Ok(Limits {
            batch_bytes: usize::try_from(self.settings.batch_bytes).unwrap_or(usize::MAX),
            payload_bytes: i32::try_from(largest).unwrap_or(i32::MAX),
        })
    }
}

impl Session<'_> {
    async fn run(
        &mut self,
        former: &mut HashMap<Priority, Uuid>,
        drain: &CancellationToken,
    ) -> Result<(), SessionError> {
        let mut looks = self.work.outlook.subscribe();
        let mut is_draining = false;
        loop {
            if is_draining && self.running.is_empty() {
                return Ok(());
            }
            tokio::select! {
                biased;
                () = drain.cancelled(), if !is_draining => {
                    is_draining = true;
                    self.owned.values().for_each(|owned| owned.leave.cancel());
                }
                Some((lane, ended)) = self.running.next() => self.has_ended(lane, ended).await?,
                Ok(()) = looks.changed(), if !is_draining => {
                    let poll = looks.borrow_and_update().1.clone();
                    self.work.relay.status.turn();
                    if let Some(poll) = poll {
                        self.share_lanes(&poll, former).await?;
                    }
                }
            }
        }
    }

    /// Takes lanes that are free, gives up those that an agent with fewer asks for, and asks for one if we have fewer.
    async fn share_lanes(
        &mut self,
        poll: &Poll,
        former: &mut HashMap<Priority, Uuid>,
    ) -> Result<(), SessionError> {
        let agent = &self.work.relay.agent;
        let (mut taken, mut others) = (false, Vec::new());
        for priority in Priority::ALL {
            let Some(seen) = poll.lanes.get(&priority) else { continue };
            let is_wanted = seen.wanted_by.as_ref().is_some_and(|by| by != agent);
            if let Some(owned) = self.owned.get(&priority) {
                if is_wanted && !owned.leave.is_cancelled() {
                    tracing::info!(lane = priority.name(), to = seen.wanted_by, "the lane is given up");
                    owned.leave.cancel();
                }
            } else if former.get(&priority).is_some_and(|mine| seen.owner == Some(*mine))
                || seen.is_free && !is_wanted
            {
                taken |= self.acquire(priority, former).await?;
            } else if let Seen { is_free: false, agent: Some(of), .. } = seen {
                others.push((of.as_str(), priority));
            }
        }
        if taken {
            self.tell_owned();
        }
        // Whoever has no way to Kafka leaves the lanes to those who may have one.
        if self.wished_at.is_none_or(|at| at.elapsed() >= WISH_EVERY)
            && self.work.relay.status.kafka_away().is_none()
            && let Some(lane) = lane_shares::to_ask_for(self.owned.len(), &others)
        {
            self.wished_at = Some(Instant::now());
            in_time(PATIENCE, self.work.store.wish(lane, agent)).await?;
        }
        Ok(())
    }

    /// Says whether the lane is ours now.
    async fn acquire(
        &mut self,
        priority: Priority,
        former: &mut HashMap<Priority, Uuid>,
    ) -> Result<bool, SessionError> {
        let since = tokio::time::Instant::now();
        let mine = former.get(&priority).copied();
        let Relay { agent, settings, .. } = self.work.relay;
        let acquired =
            in_time(PATIENCE, self.work.store.acquire(priority, agent, settings.lease, mine)).await?;
        former.remove(&priority);
        let Some(lane) = acquired else { return Ok(false) };
        self.keeper.add(lane.owner, since);
        self.work.confirmed.hold_against(&lane);
        self.owned.insert(priority, Owned { owner: lane.owner, leave: CancellationToken::new() });
        let held = in_time(PATIENCE, self.work.store.held_topics(priority)).await?.into_iter().collect();
        let holding = in_time(PATIENCE, Holding::load(&self.work.store, priority)).await?;
        tracing::info!(lane = priority.name(), epoch = lane.epoch, "lane acquired");
        let lane = Lane::new(lane, held, holding, &self.incarnation);
        self.start(lane);
        Ok(true)
    }

    fn tell_owned(&self) {
        let owned = Priority::ALL.into_iter().filter(|priority| self.owned.contains_key(priority));
        self.work.relay.status.own(&owned.collect::<Vec<_>>());
    }

    fn start(&mut self, mut lane: Lane) {
        let work = self.work;
        let leave = self.owned.get(&lane.owned.priority).map(|owned| owned.leave.clone()).unwrap_or_default();
        self.running.push(Box::pin(async move {
            let ended = lane.run(work, &leave).await;
            (lane, ended)
        }));
    }

    async fn has_ended(&mut self, lane: Lane, ended: Result<(), Stop>) -> Result<(), SessionError> {
        match ended {
            Ok(()) => self.release(&lane).await,
            Err(Stop::End(error)) => Err(error),
            Err(Stop::Away(_) | Stop::Broken) => {
                self.stopped.push(lane);
                // The others come to their end too: the failure is theirs as well.
                if self.running.is_empty() { self.replace_incarnation().await } else { Ok(()) }
            }
        }
    }

    /// Nothing of the lane is under way: another producer need not wait for the lease.
    async fn release(&mut self, lane: &Lane) -> Result<(), SessionError> {
        let owner = lane.owned.owner;
        self.keeper.remove(owner);
        in_time(PATIENCE, self.work.store.release(owner)).await?;
        self.owned.remove(&lane.owned.priority);
        self.tell_owned();
        if self.running.is_empty() && !self.stopped.is_empty() {
            self.replace_incarnation().await
        } else {
            Ok(())
        }
    }

    /// After an error of delivery: what is acknowledged is written, and another incarnation begins behind it.
    async fn replace_incarnation(&mut self) -> Result<(), SessionError> {
        let fresh = Arc::new(self.work.relay.incarnation()?);
        let former = std::mem::replace(&mut self.incarnation, fresh);
        Arc::clone(&former).end().await;
        self.work.forget_topics();
        let failure = former.failure();
        let mut lanes = std::mem::take(&mut self.stopped);
        for lane in &mut lanes {
            lane.restart(self.work, &self.incarnation).await?;
        }
        let published = self.work.relay.status.total();
        if published > std::mem::replace(&mut self.published, published) {
            self.failures = 0;
        }
        if let Some(failure) = failure {
            self.failures += 1;
            self.work.relay.status.delivery_failed(&failure.topic, failure.refusal);
            consider(&failure, &mut lanes);
            tokio::time::sleep(BACKOFF.delay(self.failures, fastrand::f64())).await;
        }
        for lane in lanes {
            self.start(lane);
        }
        blocking(move || drop(former)).await;
        Ok(())
    }
}

fn consider(failure: &DeliveryFailure, lanes: &mut [Lane]) {
    let DeliveryFailure { topic, refusal, reason } = failure;
    tracing::warn!(topic, "the producer is replaced and begins again at the cursor: {reason}");
    if *refusal == Refusal::TopicForbidden {
        for lane in lanes {
            lane.held.entry(topic.clone()).or_insert_with(|| format!("topic `{topic}` is forbidden to us"));
        }
    }
    // Whether it is missing is asked before the next record of it; records that were refused are tried alone.
}
