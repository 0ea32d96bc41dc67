//! Retries that this agent was given, in three stages that overlap: a batch is opened and started under leases, its
//! attempts run, those that ended are recorded together; all in the name of their dispatches. Behind the head of a key that
//! is held, the same agent goes on with the messages that wait, in their order.

mod attempt;
mod starting;

use std::collections::{HashSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::attempt::{Attempt, End};
use self::starting::Step;
use super::places::Place;
use super::session::at;
use super::status::Tally;
use super::wait::Wait;
use super::{Group, in_words, inbox};
use crate::config::OnDead;
use crate::domain::breaker::State;
use crate::domain::delivery::Outcome;
use crate::domain::dispatch::Dispatch;
use crate::domain::rate::Turn;
use crate::pg::PgError;
use crate::pg::held::{Next, Successor};
use crate::pg::retrying::{Ended, Ends, Failed, Named, Verdict};

/// Who does not renew it for so long is taken for dead.
const LEASE: Duration = Duration::from_secs(15);
const RENEW_EVERY: Duration = Duration::from_secs(4);

/// How often it is looked for what cannot start.
const TICK: Duration = Duration::from_millis(500);

/// What cannot start now is due again after this long.
const NOT_NOW: Duration = Duration::from_secs(1);

/// Those that are started together, at most.
const BATCH: usize = 100;

/// What has ended waits at most this long for company.
const GATHER: Duration = Duration::from_millis(10);

/// Takes retries until `drain`; what runs then comes to its end, the rest is handed back.
pub(super) async fn work(group: Arc<Group>, drain: CancellationToken) {
    let (sender, dispatches) = mpsc::unbounded_channel();
    let reader = AbortOnDropHandle::new(tokio::spawn(inbox::read(Arc::clone(&group), sender)));
    let mut retries = Retries::new(group, dispatches, drain.clone());
    while !drain.is_cancelled() {
        retries.turn().await;
    }
    drop(reader);
    let group = Arc::clone(&retries.group);
    group.status.take_retries(false);
    let handed_back = insist(&group, || group.store.stop_taking()).await;
    tell_handed_back(&group, handed_back);
    retries.hand_back_waiting(Duration::ZERO);
    while !retries.is_idle() {
        retries.turn().await;
    }
}

/// A dispatch that waits for a place.
struct Waiting {
    named: Named,
    /// Then there is just time enough for another agent.
    until: Instant,
}

type Work<T> = Option<Pin<Box<dyn Future<Output = T> + Send>>>;
type Running = Pin<Box<dyn Future<Output = (Box<Attempt>, End)> + Send>>;

struct Retries {
    group: Arc<Group>,
    dispatches: mpsc::UnboundedReceiver<Dispatch>,
    drain: CancellationToken,
    /// A dispatch may come twice: the relay sends again what it is not sure of.
    given: HashSet<Named>,
    waiting: VecDeque<Waiting>,
    line_for_place: Work<Place>,
    /// Of the next one that starts.
    turn: Option<Turn>,
    /// When that may be, if the group's rate is what holds it.
    next_at: Option<Instant>,
    starting: Work<Vec<(Named, Step)>>,
    running: FuturesUnordered<Running>,
    /// Started, and not recorded.
    leased: HashSet<Named>,
    renewed_at: Instant,
    renewing: Work<()>,
    ends: Ends,
    /// Of those.
    names: Vec<Named>,
    since: Option<Instant>,
    recording: Work<(Vec<Named>, Ended)>,
    tick: tokio::time::Interval,
}

/// The answer, if something is asked; it is taken off.
async fn answer<T>(work: &mut Work<T>) -> T {
    let Some(asked) = work else { return std::future::pending().await };
    let answer = asked.await;
    *work = None;
    answer
}

impl Retries {
    fn new(
        group: Arc<Group>,
        dispatches: mpsc::UnboundedReceiver<Dispatch>,
        drain: CancellationToken,
    ) -> Self {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            group,
            dispatches,
            drain,
            given: HashSet::new(),
            waiting: VecDeque::new(),
            line_for_place: None,
            turn: None,
            next_at: None,
            starting: None,
            running: FuturesUnordered::new(),
            leased: HashSet::new(),
            renewed_at: Instant::now(),
            renewing: None,
            ends: Ends::default(),
            names: Vec::new(),
            since: None,
            recording: None,
            tick,
        }
    }

    /// Waits for the next thing that happens.
    async fn turn(&mut self) {
        self.advance();
        let is_draining = self.drain.is_cancelled();
        let due = at(self.since.filter(|_| self.recording.is_none()).map(|since| since + GATHER));
        tokio::select! {
            biased;
            () = self.drain.cancelled(), if !is_draining => {}
            (names, ended) = answer(&mut self.recording) => self.recorded(&names, ended),
            started = answer(&mut self.starting) => self.started(started),
            Some((attempt, end)) = self.running.next() => {
                self.ended(attempt, end);
                while let Some(Some((attempt, end))) = self.running.next().now_or_never() {
                    self.ended(attempt, end);
                }
            }
            Some(dispatch) = self.dispatches.recv(), if !is_draining => self.take(&dispatch),
            place = answer(&mut self.line_for_place) => self.start(place),
            () = answer(&mut self.renewing) => {}
            () = due => {}
            () = at(self.next_at) => self.next_at = None,
            _ = self.tick.tick() => {}
        }
        self.group
            .status
            .retries
            .store(u32::try_from(self.leased.len()).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    fn is_idle(&self) -> bool {
        self.starting.is_none()
            && self.running.is_empty()
            && self.recording.is_none()
            && self.names.is_empty()
    }

    /// Does all that can be done without waiting.
    fn advance(&mut self) {
        while let Ok(dispatch) = self.dispatches.try_recv() {
            self.take(&dispatch);
        }
        if self.drain.is_cancelled() {
            self.hand_back_waiting(Duration::ZERO);
        } else if self.group.control.places(1) == 0 {
            self.hand_back_waiting(NOT_NOW);
        }
        while let Some(late) = self.waiting.front().filter(|waiting| waiting.until <= Instant::now()) {
            let named = late.named;
            self.waiting.pop_front();
            self.hand_back(named, Duration::ZERO);
        }
        if self.waiting.is_empty() || self.starting.is_some() || self.next_at.is_some() || self.most() == 0 {
            self.line_for_place = None;
        } else if self.line_for_place.is_none() {
            self.line_for_place = Some(Box::pin(self.group.places.take()));
        }
        if self.renewing.is_none() && self.renewed_at.elapsed() >= RENEW_EVERY && !self.leased.is_empty() {
            self.renewed_at = Instant::now();
            let (group, all): (_, Vec<Named>) =
                (Arc::clone(&self.group), self.leased.iter().copied().collect());
            self.renewing = Some(Box::pin(async move {
                // One that did not arrive is made up for by the next.
                if let Err(error) = group.store.renew(&all, LEASE).await {
                    tracing::debug!(group = &*group.name, "leases are not renewed: {error}");
                }
            }));
        }
        self.record();
    }

    /// How many may start together.
    fn most(&self) -> usize {
        match self.group.control.state() {
            State::Open => 0,
            // One of all, to see.
            State::HalfOpen => usize::from(self.group.places.taken() == 0),
            State::Closed => BATCH,
        }
    }

    fn take(&mut self, dispatch: &Dispatch) {
        let named = Named { message_id: dispatch.message_id, dispatch: dispatch.number };
        if self.given.insert(named) {
            self.waiting.push_back(Waiting { named, until: Instant::now() + dispatch.deadline() / 2 });
        }
    }

    /// As many as there are places for.
    fn start(&mut self, first: Place) {
        // The first place is its own already.
        let most = if self.group.control.state() == State::HalfOpen { 1 } else { BATCH };
        let mut all = Vec::new();
        let mut place = Some(first);
        while all.len() < most
            && !self.waiting.is_empty()
            && let Some(own) = place.take().or_else(|| self.group.places.try_take())
            && self.is_in_pace()
        {
            all.extend(self.waiting.pop_front().map(|waiting| (waiting.named, own)));
        }
        if !all.is_empty() {
            self.starting = Some(Box::pin(starting::start(Arc::clone(&self.group), all)));
        }
    }

    fn is_in_pace(&mut self) -> bool {
        self.next_at = self.group.in_pace(&mut self.turn).err().map(Instant::from_std);
        self.next_at.is_none()
    }

    fn started(&mut self, steps: Vec<(Named, Step)>) {
        for (named, step) in steps {
            match step {
                Step::Run(attempt, place) => {
                    self.leased.insert(named);
                    let (group, successor) = (Arc::clone(&self.group), self.successor());
                    self.running.push(Box::pin(async move {
                        let end = attempt::run(&group, &attempt, place, successor).await;
                        (attempt, end)
                    }));
                }
                Step::Known => {
                    self.ends.known.push(named.message_id);
                    self.gather(named);
                }
                Step::Duplicate(finished) => {
                    self.group.status.count(Tally::Duplicate, 1);
                    self.ends.finished.push(finished);
                    self.gather(named);
                }
                Step::NotNow => self.hand_back(named, NOT_NOW),
                Step::Stale(claims) => {
                    self.ends.released.extend(claims);
                    self.gather(named);
                }
            }
        }
    }

    fn ended(&mut self, attempt: Box<Attempt>, end: End) {
        let Attempt { named, .. } = *attempt;
        let status = Arc::clone(&self.group.status);
        match end {
            End::Done(took) => {
                self.group.control.answered();
                status.count(Tally::Processed, 1);
                let mut finished = attempt.finished();
                finished.took = Some(took);
                self.ends.finished.push(finished);
                self.ends.claims.extend(attempt.claims);
            }
            End::Applied(next) => {
                self.group.control.answered();
                status.count(Tally::Processed, 1);
                self.leased.remove(&named);
                self.given.remove(&named);
                return self.go_on(next);
            }
            End::Known => self.ends.known.push(named.message_id),
            End::Duplicate { by } => {
                status.count(Tally::Duplicate, 1);
                let mut finished = attempt.finished();
                finished.duplicate_of = Some(by);
                self.ends.finished.push(finished);
            }
            End::Late => {
                tell_late(&self.group, named);
                self.leased.remove(&named);
                self.given.remove(&named);
                return;
            }
            End::Failed(outcome) => self.fail(attempt, outcome),
            End::Suspect(suspicion) if suspicion.is_proven(self.group.config().retry.max_starts) => {
                let starts = suspicion.starts;
                let reason = format!(
                    "the connection ended while it ran, {starts} times, at last with no other beside it"
                );
                self.record_failure(attempt, &reason, self.dead("starts"));
            }
            // Nobody's failure: a server that restarts costs no attempt.
            End::Busy | End::Suspect(_) => self.ends.handed_back.push((named, NOT_NOW)),
        }
        self.gather(named);
    }

    fn fail(&mut self, attempt: Box<Attempt>, outcome: Outcome) {
        let policy = self.group.config().retry;
        let failures = u32::try_from(attempt.attempts - attempt.forgiven).unwrap_or(0) + 1;
        let (error, verdict) = match outcome {
            Outcome::Done => return,
            Outcome::Permanent { reason } => {
                self.group.control.answered();
                (reason, self.dead("permanent"))
            }
            Outcome::Retry { reason, after } => {
                self.group.control.failed(&reason);
                let delay = policy.delay(failures, after, fastrand::f64());
                let verdict =
                    if policy.is_over(failures) { self.dead("attempts") } else { Verdict::Again(delay) };
                (reason, verdict)
            }
        };
        self.record_failure(attempt, &error, verdict);
    }

    fn dead(&self, reason: &'static str) -> Verdict {
        Verdict::Dead { reason, release: self.group.config().retry.on_dead == OnDead::Release }
    }

    fn record_failure(&mut self, attempt: Box<Attempt>, error: &str, verdict: Verdict) {
        self.group.status.count(Tally::Failed, 1);
        let (group, id, number) = (&*self.group.name, attempt.named.message_id, attempt.delivery.attempt);
        match verdict {
            Verdict::Dead { reason, .. } => {
                self.group.status.gave_up(reason);
                tracing::error!(group, %id, attempt = number, "a dead letter ({reason}): {error}");
            }
            // The first, the second, the fourth: what keeps failing does not fill the log.
            Verdict::Again(after) if number.is_power_of_two() => {
                let after = in_words(after);
                tracing::warn!(group, %id, attempt = number, "it failed again, and is tried again in {after}: {error}");
            }
            Verdict::Again(_) => {}
        }
        // The database takes no such character.
        let error = error.replace('\0', "\u{fffd}");
        self.ends.failed.push(Failed { named: attempt.named, error, verdict });
        self.ends.released.extend(attempt.claims);
    }

    fn hand_back(&mut self, named: Named, after: Duration) {
        self.ends.handed_back.push((named, after));
        self.gather(named);
    }

    fn hand_back_waiting(&mut self, after: Duration) {
        for waiting in std::mem::take(&mut self.waiting) {
            self.hand_back(waiting.named, after);
        }
    }

    fn gather(&mut self, named: Named) {
        self.names.push(named);
        self.since.get_or_insert_with(Instant::now);
    }

    /// At once if nothing else could join them; else when it is due.
    fn record(&mut self) {
        let Some(since) = self.since else { return };
        let more_comes = self.starting.is_some() || !self.running.is_empty();
        let is_due = since.elapsed() >= GATHER || self.names.len() >= BATCH;
        if self.recording.is_some() || (more_comes && !is_due) {
            return;
        }
        self.since = None;
        let (names, ends) = (std::mem::take(&mut self.names), std::mem::take(&mut self.ends));
        let (group, successor) = (Arc::clone(&self.group), self.successor());
        self.recording = Some(Box::pin(async move {
            let ended = insist(&group, || group.store.end(&ends, successor)).await;
            (names, ended)
        }));
    }

    fn recorded(&mut self, names: &[Named], ended: Ended) {
        for named in names {
            self.given.remove(named);
            self.leased.remove(named);
            if ended.late.contains(&named.message_id) {
                tell_late(&self.group, *named);
            }
        }
        for next in ended.next {
            self.go_on(Some(next));
        }
    }

    /// With the next message of a key, before others: it has waited longer.
    fn go_on(&mut self, next: Option<Next>) {
        let Some(Next { message_id, dispatch }) = next else { return };
        let named = Named { message_id, dispatch };
        if self.given.insert(named) {
            let until = Instant::now() + self.group.config().retry.deadline / 2;
            self.waiting.push_front(Waiting { named, until });
        }
    }

    /// The next message of a key is this agent's, as long as it does not drain.
    fn successor(&self) -> Successor {
        if self.drain.is_cancelled() {
            return Successor::Any;
        }
        let deadline = i64::try_from(self.group.config().retry.deadline.as_millis()).unwrap_or(i64::MAX / 2);
        Successor::Agent { id: self.group.store.agent, deadline }
    }
}

fn tell_late(group: &Group, Named { message_id, dispatch }: Named) {
    tracing::warn!(group = &*group.name, id = %message_id, dispatch, "another dispatch has taken the place of this one");
}

pub(super) fn tell_handed_back(group: &Group, count: u64) {
    if count > 0 {
        tracing::info!(group = &*group.name, "{count} retries that had not started are handed back");
    }
}

/// Asks until the database answers.
async fn insist<T, F: Future<Output = Result<T, PgError>>>(group: &Group, question: impl Fn() -> F) -> T {
    let mut wait = Wait::new(&group.name, &group.status, "retries");
    loop {
        match question().await {
            Ok(answer) => {
                wait.end();
                return answer;
            }
            Err(error) => wait.pause(&error.to_string()).await,
        }
    }
}
