//! The engine of a membership, over all of its partitions, in three stages that overlap: a batch is looked up, messages
//! whose turn it is are handled, what is finished is completed.
//!
//! One task owns all of this state, so that there is nothing to lock; the database is asked by tasks of their own.

mod asking;
mod attempt;
mod gathering;
mod message;

use std::collections::{HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use self::asking::LookedUp;
use self::attempt::End;
use self::gathering::{Gathering, Trace, Written};
use self::message::{Ending, Message, Taken};
use super::control::Heard;
use super::handler::Handler;
use super::level::{HIGH_SPAN, Level};
use super::session::{Event, Events, at};
use super::{Group, Tally};
use crate::config::{OnDead, Rate};
use crate::domain::backoff::Backoff;
use crate::domain::breaker::{Breaker, Change, State};
use crate::domain::chains::Chains;
use crate::domain::delivery::{Outcome, Record, TopicPartition};
use crate::domain::rate::Pace;
use crate::domain::watermark::Watermark;
use crate::pg::claims::Claimed;
use crate::pg::completing::Standing;
use crate::pg::failing::{Failed, Fate, Reason};

/// While another message holds a key.
const BUSY: Backoff = Backoff { first: Duration::from_millis(50), max: Duration::from_secs(1) };

/// A key that is held for longer is told.
const BUSY_IS_LONG: u32 = 20;

/// Connections that effects leave to look-up, claims and completion.
const SPARED_CONNECTIONS: usize = 3;

/// Who waits for an operator, and for the other side of the handler.
const ORDERS: &str = "orders";
const BREAKER: &str = "breaker";

/// An assignment of a partition; never used twice.
pub(super) type Slot = u64;

/// What the engine is told.
#[derive(Debug)]
pub(super) enum Input {
    Begin {
        slot: Slot,
        at: TopicPartition,
        start: i64,
        level: Arc<Level>,
    },
    Records(Vec<(Slot, Record)>),
    /// What runs is finished, nothing more is started.
    Stop(Slot),
    /// Nothing of it counts any more.
    Lose(Slot),
}

/// What the engine tells.
#[derive(Debug)]
pub(super) enum Report {
    /// Everything below is finished and recorded.
    Completed(Vec<(TopicPartition, i64)>),
    /// It was full, and has room again.
    Room(Slot),
    /// Nothing more comes from it.
    Ended(Slot),
    /// The engine itself is at its end.
    Down,
}

/// Tells the session; the engine's end is told even by a panic.
struct Reporter(Events);

impl Reporter {
    fn tell(&self, report: Report) {
        // Without a session there is nobody to tell.
        let _ = self.0.send(Event::Engine(report));
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.tell(Report::Down);
    }
}

struct Partition {
    at: TopicPartition,
    watermark: Watermark,
    level: Arc<Level>,
    ending: Arc<Ending>,
    /// Records to come that whoever had it before may have begun.
    in_doubt: usize,
    /// Those of them that are noted, and not finished.
    noted: HashSet<Uuid>,
    /// Messages that were begun and are not recorded.
    busy: u64,
    changed: bool,
}

/// An id that is under way.
enum Id {
    /// With those that have the same: they wait for what becomes of it.
    Working(Vec<Box<Message>>),
    /// A look-up that began before may not have seen it.
    Recorded,
}

type Work<T> = Option<AbortOnDropHandle<T>>;
type Handled = (Box<Message>, End);
type Running = Pin<Box<dyn Future<Output = Handled> + Send>>;
type Delayed = Pin<Box<dyn Future<Output = Box<Message>> + Send>>;

pub(super) struct Engine {
    group: Arc<Group>,
    inputs: mpsc::UnboundedReceiver<Input>,
    reporter: Reporter,
    concurrency: usize,
    partitions: HashMap<Slot, Partition>,
    /// Polled, not looked up.
    waiting: VecDeque<(Slot, Record)>,
    /// To be looked up again.
    again: Vec<Box<Message>>,
    look_up: Work<LookedUp>,
    ids: HashMap<Uuid, Id>,
    /// Recorded while a look-up was under way.
    recorded: Vec<Uuid>,
    chains: Chains<Box<Message>>,
    /// Keys that are held, as far as this engine knows: it hears of their release when it writes.
    held: HashSet<u64>,
    /// Their turn has come in their chains.
    free: VecDeque<Box<Message>>,
    /// Of keys that a message of this engine has: who waits for them.
    operations: HashMap<u64, Vec<Box<Message>>>,
    /// Their keys are to be claimed.
    unclaimed: VecDeque<Box<Message>>,
    claim: Work<(Vec<Box<Message>>, Option<Vec<Claimed>>)>,
    /// They lack only a handler.
    startable: VecDeque<Box<Message>>,
    running: FuturesUnordered<Running>,
    heard: watch::Receiver<Heard>,
    /// Why nothing may start, by an order.
    closed: Option<String>,
    breaker: Breaker,
    /// They run one by one, and nothing beside them.
    suspects: VecDeque<Box<Message>>,
    counting: Work<(Box<Message>, u32)>,
    suspect: Option<Uuid>,
    /// What this engine has told of the breaker.
    changes: u64,
    pace: Option<Pace>,
    /// When the next one may start, if the pace is what holds it.
    next_at: Option<Instant>,
    delayed: FuturesUnordered<Delayed>,
    gathering: Gathering,
    completion: Work<Written>,
}

/// Starts it; dropped, it leaves what runs without evidence.
pub(super) fn start(
    group: &Arc<Group>,
    events: &Events,
) -> (mpsc::UnboundedSender<Input>, AbortOnDropHandle<()>) {
    let (sender, inputs) = mpsc::unbounded_channel();
    let concurrency = match group.handler {
        Handler::Outside(_) => group.config.concurrency,
        // Each has a connection while it runs.
        Handler::Sql(_) => {
            group.config.concurrency.min(group.store.pool.size().saturating_sub(SPARED_CONNECTIONS).max(1))
        }
    };
    let engine = Engine {
        group: Arc::clone(group),
        inputs,
        reporter: Reporter(events.clone()),
        concurrency,
        partitions: HashMap::new(),
        waiting: VecDeque::new(),
        again: Vec::new(),
        look_up: None,
        ids: HashMap::new(),
        recorded: Vec::new(),
        chains: Chains::default(),
        held: HashSet::new(),
        free: VecDeque::new(),
        operations: HashMap::new(),
        unclaimed: VecDeque::new(),
        claim: None,
        startable: VecDeque::new(),
        running: FuturesUnordered::new(),
        heard: group.control.heard.clone(),
        closed: None,
        breaker: Breaker::new(group.config.breaker.failures),
        suspects: VecDeque::new(),
        counting: None,
        suspect: None,
        changes: 0,
        pace: group.config.rate.map(|Rate(rate)| Pace::new(rate, std::time::Instant::now())),
        next_at: None,
        delayed: FuturesUnordered::new(),
        gathering: Gathering::default(),
        completion: None,
    };
    (sender, AbortOnDropHandle::new(tokio::spawn(engine.run())))
}

/// The answer of a task, if there is one; it is taken off. A task that panicked is the end of the engine.
async fn answer<T>(work: &mut Work<T>) -> Option<T> {
    match work {
        Some(handle) => {
            let answer = handle.await;
            *work = None;
            answer.ok()
        }
        None => std::future::pending().await,
    }
}

impl Engine {
    async fn run(mut self) {
        let mut inputs = Vec::new();
        self.hear();
        loop {
            self.advance();
            let due = if self.completion.is_none() { self.gathering.due() } else { None };
            let due = at(due);
            tokio::select! {
                biased;
                written = answer(&mut self.completion) => match written {
                    Some(written) => self.written(written),
                    None => return,
                },
                looked_up = answer(&mut self.look_up) => match looked_up {
                    Some(looked_up) => self.looked_up(looked_up),
                    None => return,
                },
                claimed = answer(&mut self.claim) => match claimed {
                    Some((messages, claimed)) => self.claimed(messages, claimed),
                    None => return,
                },
                counted = answer(&mut self.counting) => match counted {
                    Some((message, starts)) => self.counted(message, starts),
                    None => return,
                },
                Some(handled) = self.running.next() => {
                    self.handled(handled);
                    while let Some(Some(handled)) = self.running.next().now_or_never() {
                        self.handled(handled);
                    }
                }
                Some(message) = self.delayed.next() => self.free.push_back(message),
                count = self.inputs.recv_many(&mut inputs, 64) => {
                    if count == 0 {
                        return;
                    }
                    for input in inputs.drain(..) {
                        self.input(input);
                    }
                }
                () = due => {}
                () = at(self.next_at) => {}
                Ok(()) = self.heard.changed() => self.hear(),
            }
        }
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Begin { slot, at, start, level } => {
                let partition = Partition {
                    at,
                    watermark: Watermark::new(start),
                    level,
                    ending: Arc::default(),
                    in_doubt: HIGH_SPAN,
                    noted: HashSet::new(),
                    busy: 0,
                    changed: false,
                };
                self.partitions.insert(slot, partition);
            }
            Input::Records(records) => self.waiting.extend(records),
            Input::Stop(slot) => {
                if let Some(partition) = self.partitions.get(&slot) {
                    partition.ending.stop();
                    self.drop_unstarted(slot);
                    self.end(slot);
                }
            }
            Input::Lose(slot) => {
                if let Some(partition) = self.partitions.remove(&slot) {
                    partition.ending.lose();
                    self.drop_unstarted(slot);
                }
            }
        }
    }

    /// Others are dropped when their turn comes.
    fn drop_unstarted(&mut self, slot: Slot) {
        self.waiting.retain(|(of, _)| *of != slot);
        for queue in [&mut self.unclaimed, &mut self.startable, &mut self.suspects] {
            let (gone, stays): (VecDeque<_>, _) = queue.drain(..).partition(|message| message.slot == slot);
            *queue = stays;
            self.free.extend(gone);
        }
    }

    /// Does all that can be done without waiting.
    fn advance(&mut self) {
        loop {
            while let Some(message) = self.free.pop_front() {
                self.proceed(message);
            }
            if self.running.len() >= self.places() || self.startable.is_empty() || !self.is_in_pace() {
                break;
            }
            let Some(message) = self.startable.pop_front() else { break };
            self.start(message);
        }
        self.begin_suspect();
        self.begin_claim();
        self.begin_look_up();
        self.begin_completion();
        for partition in self.partitions.values_mut().filter(|partition| partition.changed) {
            partition.changed = false;
            self.group.status.at_work(&partition.at, partition.busy, partition.watermark.waits_for());
        }
    }

    /// How many may run at a time now.
    fn places(&self) -> usize {
        let is_alone = self.counting.is_some() || self.suspect.is_some() || !self.suspects.is_empty();
        if self.closed.is_some() || is_alone { 0 } else { self.breaker.places(self.concurrency) }
    }

    /// When nothing else runs.
    fn begin_suspect(&mut self) {
        let is_busy = self.counting.is_some() || self.suspect.is_some() || !self.running.is_empty();
        if is_busy || self.closed.is_some() || self.breaker.places(1) == 0 {
            return;
        }
        if let Some(message) = self.suspects.pop_front() {
            let count = asking::count_start(Arc::clone(&self.group), message);
            self.counting = Some(AbortOnDropHandle::new(tokio::spawn(count)));
        }
    }

    fn counted(&mut self, mut message: Box<Message>, starts: u32) {
        message.suspect = false;
        if message.ending.is_stopping() {
            return self.give_up(message);
        }
        if starts > self.group.config.retry.max_starts {
            let attempt = message.delivery.attempt;
            let reason = format!("its process ended while it ran, {} times", starts - 1);
            tell_failure(&message, Fate::Dead(Reason::Starts), false, &reason);
            message.errors.push((attempt, reason));
            self.begin(&mut message);
            return self.leave_line(message, Fate::Dead(Reason::Starts));
        }
        self.suspect = Some(message.id());
        self.run_handler(message);
    }

    fn is_in_pace(&mut self) -> bool {
        self.next_at = None;
        let Some(pace) = &mut self.pace else { return true };
        let wait = pace.take(std::time::Instant::now()).err();
        self.next_at = wait.map(|wait| Instant::now() + wait);
        wait.is_none()
    }

    /// What was ordered since.
    fn hear(&mut self) {
        let heard = self.heard.borrow_and_update().clone();
        let status = Arc::clone(&self.group.status);
        if let (Some(pace), Some(Rate(rate))) = (&mut self.pace, self.group.config.rate) {
            #[allow(clippy::cast_precision_loss, reason = "a number of agents")]
            pace.set(rate / heard.members as f64, std::time::Instant::now());
        }
        if heard.closed != self.closed {
            match &heard.closed {
                Some(why) => {
                    tracing::info!(group = &*self.group.name, "nothing more is started: {why}");
                    status.wait_for(ORDERS, why);
                }
                None => {
                    tracing::info!(group = &*self.group.name, "messages are started again");
                    status.go_on(ORDERS);
                }
            }
            self.closed = heard.closed;
        }
        // An answer from before a change of our own undoes nothing.
        if heard.changes == self.changes {
            self.breaker.hear(heard.breaker);
        }
        match self.breaker.state() {
            State::Closed => status.go_on(BREAKER),
            State::Open | State::HalfOpen => {
                let reason = heard.breaker_reason.unwrap_or_default();
                status.wait_for(BREAKER, &format!("the breaker is open: {reason}"));
            }
        }
    }

    fn change_breaker(&mut self, change: Option<Change>, reason: &str) {
        let Some(change) = change else { return };
        match change {
            Change::Open => tracing::warn!(
                group = &*self.group.name,
                "the breaker opens, nothing is started for {}: {reason}",
                humantime::format_duration(self.group.config.breaker.pause)
            ),
            Change::Close => tracing::info!(group = &*self.group.name, "the breaker closes"),
        }
        self.changes += 1;
        self.group.control.tell(change, reason.to_owned());
    }

    fn begin_look_up(&mut self) {
        let batch = self.group.config.batch;
        let has_work = !self.again.is_empty() || !self.waiting.is_empty();
        let is_fed = self.startable.len() + self.unclaimed.len() >= batch || self.gathering.is_full();
        if self.look_up.is_some() || !has_work || is_fed {
            return;
        }
        let again = std::mem::take(&mut self.again);
        let mut taken = Vec::with_capacity(batch.min(self.waiting.len()));
        while taken.len() + again.len() < batch
            && let Some((slot, record)) = self.waiting.pop_front()
        {
            // Of a partition that was taken from us.
            let Some(partition) = self.partitions.get_mut(&slot) else { continue };
            let ticket = partition.watermark.deliver(record.offset, record.timestamp);
            let in_doubt = partition.in_doubt > 0;
            partition.in_doubt = partition.in_doubt.saturating_sub(1);
            taken.push(Taken { slot, ticket, ending: Arc::clone(&partition.ending), record, in_doubt });
        }
        let look_up = asking::look_up(Arc::clone(&self.group), again, taken);
        self.look_up = Some(AbortOnDropHandle::new(tokio::spawn(look_up)));
    }

    fn looked_up(&mut self, looked_up: LookedUp) {
        for (message, standing) in looked_up {
            let id = message.id();
            if message.in_doubt {
                match self.partitions.get_mut(&message.slot) {
                    Some(partition) if !message.ending.is_stopping() => drop(partition.noted.insert(id)),
                    // Noted, and never to be started.
                    _ if !message.suspect => self.gathering.completion.cleared.push(id),
                    _ => {}
                }
            }
            match (self.ids.get_mut(&id), standing) {
                (Some(Id::Working(repeats)), _) => repeats.push(message),
                (Some(Id::Recorded), _) => self.skip(message),
                (None, _) if message.ending.is_stopping() => self.let_go(message.slot, message.size),
                (None, Standing::Known) => self.skip(message),
                (None, Standing::New | Standing::Held) => {
                    if standing == Standing::Held {
                        self.held.extend(message.hold);
                    }
                    self.ids.insert(id, Id::Working(Vec::new()));
                    self.enter(message);
                }
            }
        }
        for id in self.recorded.drain(..) {
            self.ids.remove(&id);
        }
    }

    fn enter(&mut self, message: Box<Message>) {
        match message.chain {
            Some(chain) => self.free.extend(self.chains.enter(chain, message)),
            None => self.free.push_back(message),
        }
    }

    /// Its turn has come.
    fn proceed(&mut self, mut message: Box<Message>) {
        if message.ending.is_stopping() {
            self.give_up(message);
        } else if message.hold.is_some_and(|hold| self.held.contains(&hold)) {
            self.hold(message);
        } else if message.keys.is_empty() {
            self.startable.push_back(message);
        } else if message.alone || self.is_alone(&message) {
            if !message.alone {
                message.alone = true;
                self.operations.extend(message.operations().map(|operation| (operation, Vec::new())));
            }
            match self.group.handler {
                Handler::Outside(_) if !message.has_claims() => self.unclaimed.push_back(message),
                _ => self.startable.push_back(message),
            }
        } else {
            self.wait_for_operation(message);
        }
    }

    fn is_alone(&self, message: &Message) -> bool {
        message.operations().all(|operation| !self.operations.contains_key(&operation))
    }

    /// Another message of this engine has one of its keys.
    fn wait_for_operation(&mut self, message: Box<Message>) {
        let taken = message.operations().find(|operation| self.operations.contains_key(operation));
        match taken.and_then(|operation| self.operations.get_mut(&operation)) {
            Some(waiting) => waiting.push(message),
            None => self.free.push_back(message),
        }
    }

    /// Claims for those that start now, and for no more than will soon.
    fn begin_claim(&mut self) {
        let all = self.places();
        let places = all.saturating_sub(self.running.len() + self.startable.len());
        // Handlers that answer at once leave nothing running behind them.
        let is_fast = self.running.is_empty() && all == self.concurrency && self.pace.is_none();
        let places = if is_fast { places.max(self.group.config.batch) } else { places };
        if self.claim.is_some() || self.unclaimed.is_empty() || places == 0 {
            return;
        }
        let count = places.min(self.unclaimed.len());
        let mut messages: Vec<Box<Message>> = self.unclaimed.drain(..count).collect();
        for message in &mut messages {
            self.begin(message);
        }
        let claim = asking::claim(Arc::clone(&self.group), messages);
        self.claim = Some(AbortOnDropHandle::new(tokio::spawn(claim)));
    }

    fn claimed(&mut self, messages: Vec<Box<Message>>, claimed: Option<Vec<Claimed>>) {
        let Some(claimed) = claimed else { return self.free.extend(messages) };
        for (mut message, claimed) in messages.into_iter().zip(claimed) {
            match claimed {
                Claimed::All(claims) => {
                    message.claims = claims;
                    message.claimed_at = Some(Instant::now());
                    self.free.push_back(message);
                }
                Claimed::Done { by, same_payload } => self.duplicate(message, by, same_payload),
                Claimed::Busy => {
                    message.claims.clear();
                    self.wait_for_key(message);
                }
            }
        }
    }

    /// From now on its partition waits for it.
    fn begin(&mut self, message: &mut Message) {
        if !message.begun
            && let Some(partition) = self.partitions.get_mut(&message.slot)
        {
            message.begun = true;
            partition.busy += 1;
            partition.changed = true;
        }
    }

    fn start(&mut self, message: Box<Message>) {
        if message.ending.is_stopping() {
            return self.give_up(message);
        }
        if !message.claims.is_empty() && !message.has_claims() {
            return self.unclaimed.push_back(message);
        }
        if message.suspect {
            return self.suspects.push_back(message);
        }
        self.run_handler(message);
    }

    fn run_handler(&mut self, mut message: Box<Message>) {
        self.begin(&mut message);
        let mut running: Running = Box::pin(attempt::run(Arc::clone(&self.group), message));
        // A handler that answers at once needs no place among those that run.
        match (&mut running).now_or_never() {
            Some(handled) => self.handled(handled),
            None => self.running.push(running),
        }
    }

    fn handled(&mut self, (message, end): Handled) {
        if self.suspect == Some(message.id()) {
            self.suspect = None;
        }
        if matches!(end, End::Done(_) | End::Applied | End::Failed(Outcome::Permanent { .. })) {
            let change = self.breaker.answered();
            self.change_breaker(change, "");
        }
        match end {
            End::Done(took) => self.finish(message, Some(took), None),
            End::Applied => {
                self.group.status.count(Tally::Processed, 1);
                self.leave(message);
            }
            End::Repeat => {
                self.group.status.count(Tally::Duplicate, 1);
                self.leave(message);
            }
            End::Duplicate { by, same_payload } => self.duplicate(message, by, same_payload),
            End::Busy => self.wait_for_key(message),
            End::Failed(Outcome::Done) => self.finish(message, None, None),
            End::Failed(Outcome::Retry { reason, after }) => self.failed(message, reason, after, false),
            End::Failed(Outcome::Permanent { reason }) => self.failed(message, reason, None, true),
            End::Lost => self.give_up(message),
        }
    }

    /// Another agent's message holds a key.
    fn wait_for_key(&mut self, mut message: Box<Message>) {
        message.busy += 1;
        if message.busy.is_multiple_of(BUSY_IS_LONG) {
            tracing::warn!(
                group = &*self.group.name,
                id = %message.id(),
                key = message.delivery.idempotency_key,
                "another message of the same operation has not come to its end; waiting for it, or for its claim to expire"
            );
        }
        let delay = BUSY.delay(message.busy, fastrand::f64());
        self.delay(message, delay);
    }

    fn delay(&mut self, message: Box<Message>, delay: Duration) {
        self.delayed.push(Box::pin(async move {
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = message.ending.stop.cancelled() => {}
            }
            message
        }));
    }

    /// Nothing is called for it; the evidence names the message that did its operation.
    fn duplicate(&mut self, mut message: Box<Message>, by: Uuid, same_payload: bool) {
        let (group, id) = (&*self.group.name, message.id());
        let key = message.delivery.idempotency_key.as_deref();
        if same_payload {
            tracing::debug!(group, %id, %by, key, "a duplicate, skipped");
        } else {
            tracing::warn!(group, %id, %by, key, "skipped as a duplicate, though its payload is another");
            self.group.status.count(Tally::OtherPayload, 1);
        }
        self.begin(&mut message);
        self.finish(message, None, Some(by));
    }

    /// There is evidence of it.
    fn skip(&mut self, mut message: Box<Message>) {
        tracing::debug!(group = &*self.group.name, id = %message.id(), "a repeat, skipped");
        self.group.status.count(Tally::Duplicate, 1);
        self.begin(&mut message);
        let trace = Trace { id: None, ..Trace::of(&message) };
        self.gathering.leave(trace);
        self.let_go(message.slot, message.size);
    }

    fn finish(&mut self, mut message: Box<Message>, took: Option<Duration>, duplicate_of: Option<Uuid>) {
        let mut finished = message.finished();
        (finished.took, finished.duplicate_of) = (took, duplicate_of);
        let claims = std::mem::take(&mut message.claims);
        self.gathering.finish(Trace::of(&message), finished, claims);
        self.end_of_turn(&message);
    }

    /// What is to be written of it is written already.
    fn leave(&mut self, message: Box<Message>) {
        self.gathering.leave(Trace::of(&message));
        self.end_of_turn(&message);
    }

    /// It waits behind one of its key that failed.
    fn hold(&mut self, mut message: Box<Message>) {
        self.begin(&mut message);
        self.end_of_turn(&message);
        self.gathering.hold(message);
    }

    /// It was not handled, and will not be by us.
    fn give_up(&mut self, mut message: Box<Message>) {
        let claims = std::mem::take(&mut message.claims);
        let trace = Trace { ticket: None, ..Trace::of(&message) };
        if message.begun {
            self.gathering.release(trace, claims);
        } else {
            self.forget(trace);
        }
        self.end_of_turn(&message);
    }

    fn end_of_turn(&mut self, message: &Message) {
        if let Some(chain) = message.chain {
            self.free.extend(self.chains.leave(chain));
        }
        self.let_go(message.slot, message.size);
    }

    /// Its memory is free.
    fn let_go(&mut self, slot: Slot, size: usize) {
        if let Some(partition) = self.partitions.get(&slot) {
            partition.level.release(size);
        }
        self.look_for_room(slot);
    }

    /// It is needed again.
    fn take_up(&mut self, message: &Message) {
        if let Some(partition) = self.partitions.get(&message.slot) {
            partition.level.take_up(message.size);
        }
    }

    fn look_for_room(&self, slot: Slot) {
        if self.partitions.get(&slot).is_some_and(|partition| partition.level.has_room()) {
            self.reporter.tell(Report::Room(slot));
        }
    }

    fn failed(
        &mut self,
        mut message: Box<Message>,
        reason: String,
        after: Option<Duration>,
        is_permanent: bool,
    ) {
        let retry = self.group.config.retry;
        let backoff = Backoff { first: retry.backoff, max: retry.max_backoff };
        // What the handler asks for is obeyed, within reason: a server may say a year.
        let asked = after.unwrap_or_default().min(retry.max_backoff);
        let attempt = message.delivery.attempt;
        let delay = backoff.delay(attempt, fastrand::f64()).max(asked);
        self.group.status.count(Tally::Failed, 1);
        if !is_permanent {
            let change = self.breaker.failed();
            self.change_breaker(change, &reason);
        }
        let fate = if is_permanent {
            Fate::Dead(Reason::Permanent)
        } else if attempt >= retry.max_attempts {
            Fate::Dead(Reason::Attempts)
        } else {
            Fate::Due(delay)
        };
        let stays = attempt < retry.inline_attempts && matches!(fate, Fate::Due(_));
        tell_failure(&message, fate, stays, &reason);
        message.errors.push((attempt, reason));
        if stays {
            message.delivery.attempt += 1;
            return self.delay(message, delay);
        }
        self.leave_line(message, fate);
    }

    /// It counts as finished, and its failure is written with the rest.
    fn leave_line(&mut self, message: Box<Message>, fate: Fate) {
        let retry = self.group.config.retry;
        let holds_key = match fate {
            Fate::Due(_) => message.hold.is_some(),
            Fate::Dead(_) => message.hold.is_some() && retry.on_dead == OnDead::Hold,
        };
        if holds_key {
            self.held.extend(message.hold);
        }
        let trace = Trace::of(&message);
        self.end_of_turn(&message);
        let Message { delivery, errors, claims, .. } = *message;
        self.gathering.fail(trace, Failed { delivery, fate, errors, holds_key }, claims);
    }

    /// At once if there is enough, or nothing that it could wait for; else when it is due.
    fn begin_completion(&mut self) {
        let Some(due) = self.gathering.due() else { return };
        let more_comes = self.look_up.is_some() || self.claim.is_some() || !self.running.is_empty();
        let is_due = self.gathering.len() >= self.group.config.batch || due <= Instant::now();
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
                let position = (partition.at.clone(), partition.watermark.next());
                gathering.completion.positions.push(position);
            }
            self.look_for_room(slot);
        }
        let write = gathering::write(Arc::clone(&self.group), gathering);
        self.completion = Some(AbortOnDropHandle::new(tokio::spawn(write)));
    }

    fn written(&mut self, written: Written) {
        let Written { traces, completion, held, freed } = written;
        let duplicates =
            completion.finished.iter().filter(|finished| finished.duplicate_of.is_some()).count();
        self.group.status.count(Tally::Duplicate, duplicates);
        self.group.status.count(Tally::Processed, completion.finished.len() - duplicates);
        self.group.status.completed(&completion.positions);
        if !completion.positions.is_empty() {
            self.reporter.tell(Report::Completed(completion.positions));
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
    fn start_freed(&mut self, freed: Vec<Box<Message>>) {
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
    fn forget(&mut self, trace: Trace) {
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
    fn end(&mut self, slot: Slot) {
        let Some(partition) = self.partitions.get_mut(&slot).filter(|partition| partition.busy == 0) else {
            return;
        };
        if !partition.noted.is_empty() {
            // Taken back: none of these was started.
            partition.busy += 1;
            self.gathering.completion.cleared.extend(partition.noted.drain());
            let trace = Trace { slot, ticket: None, id: None, operations: Vec::new(), in_doubt: false };
            self.gathering.leave(trace);
        } else {
            self.partitions.remove(&slot);
            self.reporter.tell(Report::Ended(slot));
        }
    }
}

fn tell_failure(message: &Message, fate: Fate, stays: bool, reason: &str) {
    let (record, attempt) = (&message.delivery.record, message.delivery.attempt);
    // The first, the second, the fourth, the eighth: a message that keeps failing does not fill the log.
    if stays && !attempt.is_power_of_two() {
        return;
    }
    let fate = match fate {
        Fate::Due(delay) => {
            let delay = Duration::from_millis(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
            format!("tried again in {}", humantime::format_duration(delay))
        }
        Fate::Dead(reason) => format!("given up ({})", reason.name()),
    };
    tracing::warn!(
        group = &*message.delivery.group,
        id = %message.id(),
        topic = &*record.topic,
        partition = record.partition,
        offset = record.offset,
        attempt,
        "the handler failed, the message is {fate}: {reason}"
    );
}
