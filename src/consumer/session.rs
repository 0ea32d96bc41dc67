//! One membership in the Kafka group: polls, hands records to the engine, and answers what the coordinator asks for,
//! from joining to leaving or to the first thing that cannot be mended.

mod legibility;
mod topics;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use self::legibility::{ILLEGIBLE, Look, Seen, Sight};
use super::engine::{self, Input, Report, Slot};
use super::level::Level;
use super::start;
use super::{Group, KAFKA, SessionError};
use crate::domain::delivery::{Record, TopicPartition};
use crate::domain::start_offset::Extent;
use crate::failpoint;
use crate::kafka::subscribe::{Polled, Rebalance, Subscription};

/// A revoked partition is given back this long after its running message should have come to its end,
const REVOKE_MARGIN: Duration = Duration::from_secs(10);

/// and after this long in any case: other members wait for it.
const REVOKE_LIMIT: Duration = Duration::from_secs(60);

/// Records that are handed on at once.
const BURST: usize = 1_000;

/// How long polling waits for a full partition before that one is paused: a pause throws away what the client has read
/// ahead.
const PAUSE_AFTER: Duration = Duration::from_millis(100);

/// How often offsets are committed while there is work.
const COMMIT_EVERY: Duration = Duration::from_millis(200);

/// The loop turns at least this often.
const TICK: Duration = Duration::from_secs(5);

/// How often topics that are missing are looked for.
const LOOK_FOR_TOPICS: Duration = Duration::from_secs(15);

/// How often they are told.
const TELL_MISSING: Duration = Duration::from_secs(60);

/// Who waits where nothing is finished while more and more comes.
const WATCHDOG: &str = "watchdog";

/// What the session's tasks tell its loop.
#[derive(Debug)]
pub(super) enum Event {
    Found(Found),
    Engine(Report),
    /// With the offset after the last record that was polled when it was asked for.
    Extents(Vec<(TopicPartition, i64, Extent)>),
    /// What is missing, and the ids of those that are there.
    Topics(Vec<String>, HashMap<String, Uuid>),
    /// By the look of that number.
    Seen(u64, Vec<Seen>),
}

/// Where a partition begins.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) at: TopicPartition,
    /// What comes from an earlier one is of no interest.
    pub(super) assignment: u64,
    pub(super) start: i64,
    pub(super) topic_id: Option<Uuid>,
}

pub(super) type Events = mpsc::UnboundedSender<Event>;

/// A partition that is read.
struct Partition {
    slot: Slot,
    topic_id: Option<Uuid>,
    /// Its topic was made anew: it begins again once it is at its end.
    anew: bool,
    level: Arc<Level>,
    /// Nothing of it is taken in any more.
    stopping: bool,
    /// It is full.
    paused: bool,
    sight: Sight,
    /// The offset after the last record that was polled, or the first to come.
    next: i64,
}

/// Partitions that the coordinator wants back.
struct Revocation {
    all: Vec<TopicPartition>,
    /// Those that have not come to their end.
    busy: HashSet<TopicPartition>,
    until: Instant,
}

struct Session {
    group: Arc<Group>,
    subscription: Subscription,
    assignment: u64,
    engine: mpsc::UnboundedSender<Input>,
    partitions: HashMap<TopicPartition, Partition>,
    slots: Slot,
    /// Those that are full, and since when polling waits for them.
    full: HashSet<Slot>,
    full_since: Option<Instant>,
    /// Completed, not committed yet.
    positions: HashMap<TopicPartition, i64>,
    commit_at: Option<Instant>,
    /// Assigned, and not read yet: where they begin is looked up.
    starting: HashMap<TopicPartition, u64>,
    searches: HashMap<u64, AbortOnDropHandle<()>>,
    revocation: Option<Revocation>,
    draining: bool,
    events: Events,
    extents: Option<AbortOnDropHandle<()>>,
    topics: Option<AbortOnDropHandle<()>>,
    looks: u64,
    look: Option<Look>,
    /// What cannot be decoded, in words.
    illegible: BTreeMap<TopicPartition, String>,
    told: Told,
}

/// What has been said, and need not be said again.
#[derive(Default)]
struct Told {
    away: bool,
    still: bool,
    troubles: BTreeSet<String>,
    missing: Option<(Instant, Vec<String>)>,
}

/// Joins, and works until `drain` or an error.
pub(super) async fn work(group: &Arc<Group>, drain: &CancellationToken) -> Result<(), SessionError> {
    let subscription = {
        let (config, kafka_group) = (group.config(), group.kafka_group());
        let instance = config.static_membership.then_some(&*group.store.agent_name);
        Subscription::new(&group.kafka, &group.client_id(), &kafka_group, instance, &config.topics)?
    };
    let (events, mut received) = mpsc::unbounded_channel();
    let (engine, _running) = engine::start(group, &events);
    let session = Session {
        group: Arc::clone(group),
        subscription,
        assignment: 0,
        engine,
        partitions: HashMap::new(),
        slots: 0,
        full: HashSet::new(),
        full_since: None,
        positions: HashMap::new(),
        commit_at: None,
        starting: HashMap::new(),
        searches: HashMap::new(),
        revocation: None,
        draining: false,
        events,
        extents: None,
        topics: None,
        looks: 0,
        look: None,
        illegible: BTreeMap::new(),
        told: Told::default(),
    };
    let result = session.run(&mut received, drain).await;
    group.status.no_assignment();
    for who in [WATCHDOG, ILLEGIBLE] {
        group.status.go_on(who);
    }
    result
}

impl Session {
    async fn run(
        mut self,
        received: &mut mpsc::UnboundedReceiver<Event>,
        drain: &CancellationToken,
    ) -> Result<(), SessionError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked_for_topics = None;
        while !self.draining || !self.partitions.is_empty() {
            let late = at(self.revocation.as_ref().map(|revocation| revocation.until));
            let too_full = at(self.full_since.map(|since| since + PAUSE_AFTER));
            let commit = at(self.commit_at);
            tokio::select! {
                biased;
                () = drain.cancelled(), if !self.draining => self.drain(),
                Some(event) = received.recv() => self.event(event)?,
                () = late => self.cut_revocation()?,
                () = too_full => self.pause_full()?,
                () = commit => self.commit(),
                _ = tick.tick() => {
                    self.group.status.turn();
                    self.watch();
                    self.look_again();
                    if looked_for_topics.is_none_or(|at: Instant| at.elapsed() >= LOOK_FOR_TOPICS) {
                        looked_for_topics = Some(Instant::now());
                        self.look_for_topics();
                    }
                }
                polled = self.subscription.next(), if self.full_since.is_none() => self.polled(polled)?,
            }
        }
        self.commit();
        self.subscription.leave().await;
        Ok(())
    }

    /// Assigned, and nothing comes of it: to be told, whatever the cause.
    fn watch(&mut self) {
        let patience = self.group.patience;
        match self.group.status.stands_still(patience) {
            Some(lag) if !self.told.still => {
                self.told.still = true;
                let long = humantime::format_duration(patience);
                let what = format!("{lag} messages wait, more than before, and none was finished for {long}");
                tracing::warn!(group = &*self.group.name, "{what}");
                self.group.status.wait_for(WATCHDOG, &what);
            }
            None if std::mem::take(&mut self.told.still) => self.group.status.go_on(WATCHDOG),
            Some(_) | None => {}
        }
    }

    /// Takes nothing new on; what runs is finished.
    fn drain(&mut self) {
        self.draining = true;
        self.starting.clear();
        self.searches.clear();
        for partition in self.partitions.values_mut() {
            (partition.stopping, partition.anew) = (true, false);
            let _ = self.engine.send(Input::Stop(partition.slot));
        }
    }

    fn polled(&mut self, polled: Polled) -> Result<(), SessionError> {
        match polled {
            Polled::Record(record) => self.records(record),
            Polled::Rebalance(Rebalance::Assigned(partitions)) => self.assigned(partitions)?,
            Polled::Rebalance(Rebalance::Revoked(partitions)) => self.revoked(partitions)?,
            Polled::Rebalance(Rebalance::Lost(partitions)) => self.lost(partitions)?,
            Polled::OutOfRange => {
                self.look_at_extents();
                self.look_for_topics();
            }
            Polled::Illegible => self.doubt()?,
            Polled::TopicMissing => self.look_for_topics(),
            Polled::Standing { connected, ends } => self.standing(connected, &ends),
            Polled::Trouble(reason) => {
                if self.told.troubles.insert(reason.clone()) {
                    tracing::warn!(group = &*self.group.name, "Kafka says: {reason}");
                }
            }
            Polled::Fatal(reason) => return Err(SessionError::Fatal(reason)),
            Polled::Fenced => return Err(SessionError::Fenced),
        }
        Ok(())
    }

    /// That one, and what else is here already.
    fn records(&mut self, first: Record) {
        self.told.troubles.clear();
        let mut burst = Vec::new();
        let mut next = Some(first);
        while let Some(record) = next {
            self.record(record, &mut burst);
            let has_room = burst.len() < BURST && self.full_since.is_none();
            next = if has_room { self.subscription.next_record() } else { None };
        }
        if !burst.is_empty() {
            // An engine that has ended tells so.
            let _ = self.engine.send(Input::Records(burst));
        }
    }

    /// A record of a partition that is not ours any more, or already ends, is another's.
    fn record(&mut self, record: Record, burst: &mut Vec<(Slot, Record)>) {
        let at = (record.topic.clone(), record.partition);
        let Some(partition) = self.partitions.get_mut(&at).filter(|partition| !partition.stopping) else {
            return;
        };
        partition.next = record.offset + 1;
        if partition.level.push(&record) {
            self.full.insert(partition.slot);
            self.full_since.get_or_insert_with(Instant::now);
        }
        burst.push((partition.slot, record));
    }

    /// They had their time to be emptied: the others go on without them.
    fn pause_full(&mut self) -> Result<(), SessionError> {
        self.full_since = None;
        for (at, partition) in &mut self.partitions {
            if self.full.contains(&partition.slot) && !partition.paused {
                partition.paused = true;
                self.group.status.paused(at, true);
                self.subscription.pause(at)?;
            }
        }
        Ok(())
    }

    fn has_room(&mut self, slot: Slot) -> Result<(), SessionError> {
        self.full.remove(&slot);
        let found = self.partitions.iter_mut().find(|(_, partition)| partition.slot == slot);
        if let Some((at, partition)) = found
            && std::mem::take(&mut partition.paused)
            && partition.sight == Sight::Clear
        {
            self.group.status.paused(at, false);
            self.subscription.resume(at)?;
        }
        self.look_whether_full();
        Ok(())
    }

    /// Polling goes on if it waits for nobody.
    fn look_whether_full(&mut self) {
        let waits = |partition: &Partition| self.full.contains(&partition.slot) && !partition.paused;
        if !self.partitions.values().any(waits) {
            self.full_since = None;
        }
    }

    fn event(&mut self, event: Event) -> Result<(), SessionError> {
        match event {
            Event::Found(found) if self.starting.get(&found.at) == Some(&found.assignment) => {
                self.begin(found)?;
            }
            Event::Found(_) => {}
            Event::Engine(report) => self.report(report)?,
            Event::Extents(extents) => self.mend(&extents)?,
            Event::Topics(missing, ids) => {
                self.tell_missing(missing);
                self.look_whether_anew(&ids);
            }
            Event::Seen(number, seen) => self.seen(number, seen)?,
        }
        Ok(())
    }

    fn report(&mut self, report: Report) -> Result<(), SessionError> {
        match report {
            Report::Completed(positions) => {
                // What was taken from us is another's to commit.
                let ours = positions.into_iter().filter(|(at, _)| self.partitions.contains_key(at));
                self.positions.extend(ours);
                self.commit_at.get_or_insert_with(|| Instant::now() + COMMIT_EVERY);
            }
            Report::Room(slot) => self.has_room(slot)?,
            Report::Ended(slot) => {
                let found = self.partitions.iter().find(|(_, partition)| partition.slot == slot);
                let Some((at, _)) = found else { return Ok(()) };
                let at = at.clone();
                if self.remove(&at).is_some_and(|partition| partition.anew) {
                    self.subscription.unassign(std::slice::from_ref(&at))?;
                    self.search(vec![at]);
                    return Ok(());
                }
                if let Some(revocation) = &mut self.revocation {
                    revocation.busy.remove(&at);
                }
                self.end_revocation()?;
            }
            Report::Down => return Err(SessionError::EngineEnded),
        }
        Ok(())
    }

    /// Tells Kafka what the database knows.
    fn commit(&mut self) {
        self.commit_at = None;
        let positions: Vec<(TopicPartition, i64)> = self.positions.drain().collect();
        if positions.is_empty() {
            return;
        }
        if let Err(error) = self.subscription.commit(&positions) {
            tracing::info!(group = &*self.group.name, "offsets are not committed: {error}");
        }
        failpoint::hit("consumer-after-commit");
    }

    /// It is not ours any more.
    fn remove(&mut self, at: &TopicPartition) -> Option<Partition> {
        self.group.status.gave_back(at);
        let partition = self.partitions.remove(at)?;
        self.full.remove(&partition.slot);
        self.look_whether_full();
        if self.illegible.remove(at).is_some() {
            self.tell_illegible();
        }
        Some(partition)
    }

    /// Nothing of it counts any more.
    fn lose(&mut self, at: &TopicPartition) {
        if let Some(partition) = self.remove(at) {
            self.positions.remove(at);
            let _ = self.engine.send(Input::Lose(partition.slot));
        }
    }

    /// The group goes on at once; each partition follows when it is known where it begins.
    fn assigned(&mut self, partitions: Vec<TopicPartition>) -> Result<(), SessionError> {
        self.subscription.assign(&[])?;
        if self.draining || partitions.is_empty() {
            return Ok(());
        }
        tracing::info!(group = &*self.group.name, partitions = names(&partitions), "assigned");
        self.search(partitions);
        Ok(())
    }

    /// For where each begins.
    fn search(&mut self, partitions: Vec<TopicPartition>) {
        self.group.status.rebalanced();
        self.assignment += 1;
        self.starting.extend(partitions.iter().map(|at| (at.clone(), self.assignment)));
        let (group, events, assignment) = (Arc::clone(&self.group), self.events.clone(), self.assignment);
        let search =
            tokio::spawn(async move { start::find_starts(&group, partitions, assignment, &events).await });
        self.searches.insert(assignment, AbortOnDropHandle::new(search));
    }

    fn begin(&mut self, found: Found) -> Result<(), SessionError> {
        let Found { at, start, topic_id, .. } = found;
        self.starting.remove(&at);
        self.prune_searches();
        self.slots += 1;
        let (slot, level) = (self.slots, Arc::new(Level::new(self.group.config().batch)));
        self.group.status.assigned(&at, start);
        let begin = Input::Begin { slot, at: at.clone(), start, topic_id, level: Arc::clone(&level) };
        let _ = self.engine.send(begin);
        self.subscription.assign(&[(at.clone(), start)])?;
        let partition = Partition {
            slot,
            topic_id,
            anew: false,
            level,
            stopping: false,
            paused: false,
            sight: Sight::Clear,
            next: start,
        };
        self.partitions.insert(at, partition);
        Ok(())
    }

    fn prune_searches(&mut self) {
        let starting = &self.starting;
        self.searches.retain(|assignment, _| starting.values().any(|wanted| wanted == assignment));
    }

    fn revoked(&mut self, partitions: Vec<TopicPartition>) -> Result<(), SessionError> {
        tracing::info!(group = &*self.group.name, partitions = names(&partitions), "revoked");
        self.group.status.rebalanced();
        let patience = (self.group.handler.timeout() + REVOKE_MARGIN).min(REVOKE_LIMIT);
        let revocation = self.revocation.get_or_insert_with(|| Revocation {
            all: Vec::new(),
            busy: HashSet::new(),
            until: Instant::now() + patience,
        });
        for at in &partitions {
            self.starting.remove(at);
            if let Some(partition) = self.partitions.get_mut(at) {
                (partition.stopping, partition.anew) = (true, false);
                let _ = self.engine.send(Input::Stop(partition.slot));
                revocation.busy.insert(at.clone());
            }
        }
        revocation.all.extend(partitions);
        self.prune_searches();
        self.end_revocation()
    }

    /// Another member may be at work on them: nothing of ours counts any more.
    fn lost(&mut self, partitions: Vec<TopicPartition>) -> Result<(), SessionError> {
        tracing::warn!(group = &*self.group.name, partitions = names(&partitions), "lost to another member");
        self.group.status.rebalanced();
        for at in &partitions {
            self.starting.remove(at);
            self.lose(at);
        }
        self.prune_searches();
        let revocation = self.revocation.take();
        let mut all = revocation.map(|revocation| revocation.all).unwrap_or_default();
        for at in &all {
            self.lose(at);
        }
        all.extend(partitions);
        Ok(self.subscription.unassign(&all)?)
    }

    /// Gives the partitions back once all are at their end; their offsets have been committed.
    fn end_revocation(&mut self) -> Result<(), SessionError> {
        if let Some(revocation) = self.revocation.take_if(|revocation| revocation.busy.is_empty()) {
            self.commit();
            self.subscription.unassign(&revocation.all)?;
        }
        Ok(())
    }

    fn cut_revocation(&mut self) -> Result<(), SessionError> {
        let busy = self.revocation.as_mut().map(|revocation| std::mem::take(&mut revocation.busy));
        for at in busy.unwrap_or_default() {
            tracing::warn!(
                group = &*self.group.name,
                topic = &*at.0,
                partition = at.1,
                "given back in the middle of its messages, which its next owner handles again"
            );
            self.lose(&at);
        }
        self.end_revocation()
    }

    /// Some position is out of range; Kafka does not say which, so all are compared.
    fn look_at_extents(&mut self) {
        if self.extents.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let (group, events) = (Arc::clone(&self.group), self.events.clone());
        let partitions: Vec<(TopicPartition, i64)> =
            self.partitions.iter().map(|(at, partition)| (at.clone(), partition.next)).collect();
        let task = tokio::spawn(async move {
            let extents = start::extents(&group, partitions).await;
            let _ = events.send(Event::Extents(extents));
        });
        self.extents = Some(AbortOnDropHandle::new(task));
    }

    /// Makes every partition read on, those out of range from the earliest record. One that was fine only fetches again
    /// what was not polled yet: librdkafka may stand at another offset than we do, so that none can be left out.
    fn mend(&mut self, extents: &[(TopicPartition, i64, Extent)]) -> Result<(), SessionError> {
        for (at, asked, extent) in extents {
            let reads = self.partitions.get_mut(at).filter(|partition| !partition.stopping);
            let Some(partition) = reads else { continue };
            let start = extent.read_on(*asked, partition.next);
            start::tell_reset(&self.group.name, at, start);
            partition.next = start.offset();
            self.subscription.read_on(at, partition.next)?;
            if partition.paused || partition.sight != Sight::Clear {
                self.subscription.pause(at)?;
            }
        }
        Ok(())
    }

    fn standing(&mut self, connected: bool, ends: &HashMap<TopicPartition, i64>) {
        for (at, end) in ends {
            self.group.status.ends_at(at, *end);
        }
        if connected {
            if self.told.away {
                tracing::info!(group = &*self.group.name, "Kafka answers again");
            }
            self.group.status.go_on(KAFKA);
        } else {
            let away = format!("Kafka at {} cannot be reached", self.group.kafka.brokers);
            if !self.told.away {
                tracing::warn!(group = &*self.group.name, "waiting: {away}");
            }
            self.group.status.wait_for(KAFKA, &away);
        }
        self.told.away = !connected;
    }
}

/// Returns then, or never.
pub(super) async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// `orders[0], orders[3]`.
fn names(partitions: &[TopicPartition]) -> String {
    let mut names: Vec<String> =
        partitions.iter().map(|(topic, partition)| format!("{topic}[{partition}]")).collect();
    names.sort();
    names.join(", ")
}
