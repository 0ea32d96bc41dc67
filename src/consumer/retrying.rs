//! Retries that this agent was given: each is started under a lease, handled, and ended, all in the name of its dispatch.
//! Behind the head of a key that is held, the same agent goes on with the messages that wait, in their order.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::handler::{Handle, Handler, SqlHandler};
use super::status::Tally;
use super::wait::Wait;
use super::{Group, inbox, keys};
use crate::config::OnDead;
use crate::domain::delivery::{Delivery, Outcome};
use crate::domain::dispatch::Dispatch;
use crate::domain::identity;
use crate::failpoint;
use crate::pg::PgError;
use crate::pg::claims::{Claim, Claimed, OperationKey, Wanted};
use crate::pg::completing::Finished;
use crate::pg::effect::Effect;
use crate::pg::held::{Next, Successor};
use crate::pg::retrying::{Applied, Completed, Failed, Opened, Verdict};

/// Who does not renew it for so long is taken for dead.
const LEASE: Duration = Duration::from_secs(15);
const RENEW_EVERY: Duration = Duration::from_secs(4);

/// What cannot start now is due again after this long.
const NOT_NOW: Duration = Duration::from_secs(1);

/// Takes retries until `drain`; what runs then comes to its end, the rest is handed back.
pub(super) async fn work(group: Arc<Group>, drain: CancellationToken) {
    let (sender, mut dispatches) = mpsc::unbounded_channel();
    let reader = AbortOnDropHandle::new(tokio::spawn(inbox::read(Arc::clone(&group), sender)));
    // As many as handlers of fresh messages, and besides them.
    let slots = Semaphore::new(group.config.concurrency);
    let retrier = Arc::new(Retrier { group, drain: drain.clone(), slots });
    let mut running = JoinSet::new();
    // A dispatch may come twice: the relay sends again what it is not sure of.
    let mut given: HashSet<(Uuid, i64)> = HashSet::new();
    while !drain.is_cancelled() {
        tokio::select! {
            () = drain.cancelled() => {}
            Some(dispatch) = dispatches.recv() => {
                let name = (dispatch.message_id, dispatch.number);
                if given.insert(name) {
                    let retrier = Arc::clone(&retrier);
                    running.spawn(async move {
                        retrier.take(&dispatch).await;
                        name
                    });
                }
            }
            Some(ended) = running.join_next() => {
                if let Ok(name) = ended {
                    given.remove(&name);
                }
            }
        }
    }
    drop(reader);
    retrier.group.status.take_retries(false);
    retrier.hand_back_all().await;
    while running.join_next().await.is_some() {}
    retrier.hand_back_all().await;
}

struct Retrier {
    group: Arc<Group>,
    drain: CancellationToken,
    slots: Semaphore,
}

/// One dispatch, opened.
struct Attempt {
    dispatch: i64,
    /// Attempts that started before this one,
    attempts: i32,
    /// and how many of them an operator has forgiven.
    forgiven: i32,
    delivery: Delivery,
    keys: Vec<OperationKey>,
    payload_hash: i64,
}

impl Attempt {
    fn message_id(&self) -> Uuid {
        self.delivery.message_id
    }

    /// What its evidence says.
    fn finished(&self) -> Finished {
        Finished::new(self.delivery.message_id, &self.delivery.record, self.delivery.attempt)
    }
}

impl Retrier {
    /// Waits for a slot, and goes on with what waits behind this message.
    async fn take(&self, dispatch: &Dispatch) {
        let slot = tokio::select! {
            biased;
            () = self.drain.cancelled() => None,
            // Time enough is left for another agent's.
            slot = tokio::time::timeout(dispatch.deadline() / 2, self.slots.acquire()) => slot.ok(),
        };
        if slot.is_none() {
            self.hand_back(dispatch.message_id, dispatch.number, Duration::ZERO).await;
            return;
        }
        let mut next = Some((dispatch.message_id, dispatch.number));
        while let Some((message_id, number)) = next {
            if self.drain.is_cancelled() {
                self.hand_back(message_id, number, Duration::ZERO).await;
                return;
            }
            self.group.status.retries.fetch_add(1, Ordering::Relaxed);
            next = self.attempt(message_id, number).await.map(|next| (next.message_id, next.dispatch));
            self.group.status.retries.fetch_sub(1, Ordering::Relaxed);
        }
    }

    async fn attempt(&self, message_id: Uuid, dispatch: i64) -> Option<Next> {
        let store = &self.group.store;
        let opened = self.answer(|| store.open(message_id, dispatch)).await?;
        if opened.is_handled {
            return self.answer(|| store.close(message_id, self.successor())).await;
        }
        if opened.is_stopped {
            self.hand_back(message_id, dispatch, NOT_NOW).await;
            return None;
        }
        let attempt = self.identify(message_id, dispatch, opened);
        match &self.group.handler {
            Handler::Outside(handler) => self.handle(handler.as_ref(), &attempt).await,
            Handler::Sql(handler) => self.apply(handler, &attempt).await,
        }
    }

    fn identify(&self, message_id: Uuid, dispatch: i64, opened: Opened) -> Attempt {
        let record = opened.record;
        Attempt {
            dispatch,
            attempts: opened.attempts,
            forgiven: opened.forgiven,
            keys: keys::operation_keys(&record, message_id, self.group.config.dedup),
            payload_hash: identity::payload_hash(record.payload.as_deref()),
            delivery: Delivery {
                group: self.group.name.clone(),
                message_id,
                idempotency_key: keys::idempotency_key(&record),
                attempt: u32::try_from(opened.attempts).unwrap_or(0) + 1,
                record,
            },
        }
    }

    /// Effect first, evidence behind it.
    async fn handle(&self, handler: &dyn Handle, attempt: &Attempt) -> Option<Next> {
        let store = &self.group.store;
        let (message_id, dispatch) = (attempt.message_id(), attempt.dispatch);
        let claims = match self.claim(attempt).await {
            Claimed::All(claims) => claims,
            Claimed::Done { by, .. } => return self.duplicate(attempt, by).await,
            Claimed::Busy => {
                self.hand_back(message_id, dispatch, NOT_NOW).await;
                return None;
            }
        };
        if !self.answer(|| store.start(message_id, dispatch, attempt.attempts, LEASE)).await {
            self.answer(|| store.release(&claims)).await;
            return None;
        }
        failpoint::hit("retry-before-handle");
        let began = Instant::now();
        let _lease = self.keep_lease(attempt);
        let outcome = handler.handle(&attempt.delivery).await;
        self.group.status.answered(began.elapsed());
        failpoint::hit("retry-after-handle");
        match outcome {
            Outcome::Done => {
                let took = Some(began.elapsed());
                self.succeed(Finished { took, ..attempt.finished() }, &claims).await
            }
            outcome => self.fail(attempt, &claims, outcome).await,
        }
    }

    /// Effect and evidence in one transaction.
    async fn apply(&self, handler: &SqlHandler, attempt: &Attempt) -> Option<Next> {
        let store = &self.group.store;
        let (message_id, dispatch) = (attempt.message_id(), attempt.dispatch);
        if !self.answer(|| store.start(message_id, dispatch, attempt.attempts, LEASE)).await {
            return None;
        }
        let _lease = self.keep_lease(attempt);
        let effect = Effect {
            function: &handler.function,
            statement_timeout: handler.statement_timeout(),
            delivery: &attempt.delivery,
            keys: &attempt.keys,
            payload_hash: attempt.payload_hash,
        };
        failpoint::hit("retry-before-handle");
        let began = Instant::now();
        let applied = self.answer(|| store.apply_retry(dispatch, effect, self.successor())).await;
        self.group.status.answered(began.elapsed());
        failpoint::hit("retry-after-handle");
        match applied {
            Applied::Done(next) => {
                self.group.status.count(Tally::Processed, 1);
                next
            }
            // After an unclear outcome it was this very attempt.
            Applied::Repeat => self.answer(|| store.close(message_id, self.successor())).await,
            Applied::Duplicate { by } => self.duplicate(attempt, by).await,
            Applied::Busy => {
                self.hand_back(message_id, dispatch, NOT_NOW).await;
                None
            }
            Applied::Late => {
                self.tell_late(attempt);
                None
            }
            Applied::Failed(error) => self.fail(attempt, &[], handler.failed(&error)).await,
        }
    }

    async fn claim(&self, attempt: &Attempt) -> Claimed {
        if attempt.keys.is_empty() {
            return Claimed::All(Vec::new());
        }
        let ttl = self.group.claim_time();
        let (message_id, payload_hash) = (attempt.message_id(), attempt.payload_hash);
        let wanted = [Wanted { message_id, payload_hash, keys: &attempt.keys }];
        let mut claimed = self.answer(|| self.group.store.claim(&wanted, ttl)).await;
        claimed.pop().unwrap_or(Claimed::Busy)
    }

    async fn succeed(&self, finished: Finished, claims: &[Claim]) -> Option<Next> {
        let store = &self.group.store;
        let next = self.answer(|| store.succeed(&finished, claims, self.successor())).await;
        let is_duplicate = finished.duplicate_of.is_some();
        self.group.status.count(if is_duplicate { Tally::Duplicate } else { Tally::Processed }, 1);
        next
    }

    /// Nothing is called for it; the evidence names the message that did its operation.
    async fn duplicate(&self, attempt: &Attempt, by: Uuid) -> Option<Next> {
        self.succeed(Finished { duplicate_of: Some(by), ..attempt.finished() }, &[]).await
    }

    async fn fail(&self, attempt: &Attempt, claims: &[Claim], outcome: Outcome) -> Option<Next> {
        let group = &self.group.name;
        let policy = self.group.config.retry;
        let number = attempt.delivery.attempt;
        let counted = u32::try_from(attempt.attempts - attempt.forgiven).unwrap_or(0) + 1;
        let dead = |reason| Verdict::Dead { reason, release: policy.on_dead == OnDead::Release };
        let (error, verdict) = match outcome {
            Outcome::Done => return None,
            Outcome::Permanent { reason } => (reason, dead("permanent")),
            Outcome::Retry { reason, .. } if policy.is_over(counted) => (reason, dead("attempts")),
            Outcome::Retry { reason, after } => {
                (reason, Verdict::Again(policy.delay(counted, after, fastrand::f64())))
            }
        };
        // The database takes no such character.
        let error = error.replace('\0', "\u{fffd}");
        self.group.status.count(Tally::Failed, 1);
        let (id, dispatch) = (attempt.message_id(), attempt.dispatch);
        let failed = Failed { error: &error, claims, verdict };
        let store = &self.group.store;
        match (self.answer(|| store.fail(id, dispatch, failed, self.successor())).await, verdict) {
            (Completed::Late, _) => {
                self.tell_late(attempt);
                None
            }
            (Completed::Yes(next), Verdict::Dead { reason, .. }) => {
                self.group.status.gave_up(reason);
                tracing::error!(group = &**group, %id, attempt = number, "a dead letter ({reason}): {error}");
                next
            }
            (Completed::Yes(next), Verdict::Again(after)) => {
                tracing::debug!(group = &**group, %id, attempt = number, ?after, "it failed again: {error}");
                next
            }
        }
    }

    fn tell_late(&self, attempt: &Attempt) {
        let (group, id, dispatch) = (&self.group.name, attempt.message_id(), attempt.dispatch);
        tracing::warn!(group = &**group, %id, dispatch, "another dispatch has taken the place of this one");
    }

    /// Renews the lease of an attempt until it is dropped.
    fn keep_lease(&self, attempt: &Attempt) -> AbortOnDropHandle<()> {
        let (group, id, dispatch) = (Arc::clone(&self.group), attempt.message_id(), attempt.dispatch);
        AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                tokio::time::sleep(RENEW_EVERY).await;
                // One that did not arrive is made up for by the next.
                if matches!(group.store.renew(id, dispatch, LEASE).await, Ok(false)) {
                    return;
                }
            }
        }))
    }

    async fn hand_back(&self, message_id: Uuid, dispatch: i64, after: Duration) {
        self.answer(|| self.group.store.hand_back(message_id, dispatch, after)).await;
    }

    async fn hand_back_all(&self) {
        let handed_back = self.answer(|| self.group.store.hand_back_all()).await;
        if handed_back > 0 {
            let group = &self.group.name;
            tracing::info!(group = &**group, "{handed_back} retries that had not started are handed back");
        }
    }

    /// Asks until the database answers.
    async fn answer<T, F: Future<Output = Result<T, PgError>>>(&self, question: impl Fn() -> F) -> T {
        let mut wait = Wait::new(&self.group.name, &self.group.status, "retries");
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

    /// The next message of a key is this agent's, as long as it does not drain.
    fn successor(&self) -> Successor {
        if self.drain.is_cancelled() {
            return Successor::Any;
        }
        let deadline = i64::try_from(self.group.config.retry.deadline.as_millis()).unwrap_or(i64::MAX / 2);
        Successor::Agent { id: self.group.store.agent, deadline }
    }
}
