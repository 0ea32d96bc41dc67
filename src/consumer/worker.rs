//! One partition: takes batches, looks up what was handled before, handles the rest one by one in order.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::buffer::Outlet;
use super::completion::Completion;
use super::handler::{Handle, Handler, SqlHandler};
use super::keys;
use super::session::{Event, Events};
use super::wait::Wait;
use super::{Group, Tally};
use crate::domain::backoff::Backoff;
use crate::domain::delivery::{Delivery, Outcome, Record, TopicPartition};
use crate::domain::identity;
use crate::failpoint;
use crate::pg::PgError;
use crate::pg::consuming::{Claim, Claimed, Finished, OperationKey};
use crate::pg::effect::{Affected, Effect};

/// A claim outlives its handler's time limit by this much: the completion has to fit in.
const CLAIM_MARGIN: Duration = Duration::from_secs(60);

/// While another message holds a key.
const BUSY: Backoff = Backoff { first: Duration::from_millis(50), max: Duration::from_secs(1) };

/// A key that is held for longer is told.
const BUSY_IS_LONG: u32 = 20;

/// What the loop is told of a partition.
#[derive(Clone, Copy, Debug)]
pub(super) enum Report {
    /// Everything below is finished and recorded.
    Completed(i64),
    /// It was paused, and has room again.
    Room,
    /// Nothing more comes from it.
    Ended,
}

/// Tells the loop, under the number of this assignment; its end is told even by a panic.
pub(super) struct Reporter {
    pub(super) at: TopicPartition,
    pub(super) assignment: u64,
    pub(super) events: Events,
}

impl Reporter {
    fn tell(&self, report: Report) {
        // Without a loop there is nobody to tell.
        let _ = self.events.send(Event::Worker(self.at.clone(), self.assignment, report));
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.tell(Report::Ended);
    }
}

/// A record, and what it stands for.
struct Message {
    delivery: Delivery,
    keys: Vec<OperationKey>,
    payload_hash: i64,
}

impl Message {
    fn offset(&self) -> i64 {
        self.delivery.record.offset
    }

    fn finished(&self) -> Finished {
        Finished {
            message_id: self.delivery.message_id,
            offset: self.offset(),
            attempt: i32::try_from(self.delivery.attempt).unwrap_or(i32::MAX),
            duplicate_of: None,
            took: None,
            claims: Vec::new(),
        }
    }
}

/// The worker has been told to stop, and the message was not handled.
struct Stopped;

/// Whether a message may start.
enum Start {
    With(Vec<Claim>),
    /// It is finished: another message has done its operation.
    Duplicate,
}

pub(super) struct Worker {
    pub(super) group: Arc<Group>,
    pub(super) outlet: Outlet,
    pub(super) reporter: Reporter,
    pub(super) completion: Completion,
    /// Finish the running message and nothing more.
    pub(super) stop: CancellationToken,
}

impl Worker {
    /// Works until it is stopped. Dropped before, it leaves what runs without evidence.
    pub(super) async fn run(mut self) {
        while !self.stop.is_cancelled() {
            let records = tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                records = self.outlet.take() => records,
            };
            if records.is_empty() {
                break;
            }
            if self.outlet.is_waited_for() {
                self.reporter.tell(Report::Room);
            }
            if self.batch(records).await.is_err() {
                break;
            }
        }
        self.complete().await;
    }

    async fn batch(&mut self, records: Vec<Record>) -> Result<(), Stopped> {
        for record in &records {
            self.completion.deliver(record.offset);
        }
        let messages: Vec<Message> = records.into_iter().map(|record| self.identify(record)).collect();
        let ids: Vec<Uuid> = messages.iter().map(|message| message.delivery.message_id).collect();
        let group = Arc::clone(&self.group);
        let mut done = self.look_up(&ids).await?;
        for message in messages {
            if self.stop.is_cancelled() {
                return Err(Stopped);
            }
            let (id, offset) = (message.delivery.message_id, message.offset());
            // The second record of one message in the same batch is its repeat.
            if !done.insert(id) {
                tracing::debug!(group = group.name, %id, offset, "a repeat, skipped");
                group.status.count(Tally::Duplicate);
                self.completion.skip(offset);
                continue;
            }
            match &group.handler {
                Handler::Outside(handler) => self.handle(handler.as_ref(), message).await?,
                Handler::Sql(handler) => self.apply(handler, message).await?,
            }
            if self.completion.due().is_some_and(|due| due <= tokio::time::Instant::now()) {
                self.complete().await;
            }
        }
        self.complete().await;
        Ok(())
    }

    /// Without the database's answer nothing is handled.
    async fn look_up(&self, ids: &[Uuid]) -> Result<HashSet<Uuid>, Stopped> {
        let mut wait = Wait::new(&self.group.name, &self.group.status);
        loop {
            match self.group.store.look_up(ids).await {
                Ok(handled) => {
                    wait.end();
                    return Ok(handled);
                }
                Err(error) => self.pause(&mut wait, &error).await?,
            }
        }
    }

    fn identify(&self, record: Record) -> Message {
        let message_id = identity::identify(&record, &self.group.store.cluster_id);
        Message {
            keys: keys::operation_keys(&record, message_id, self.group.config.dedup),
            payload_hash: identity::payload_hash(record.payload.as_deref()),
            delivery: Delivery {
                group: self.group.name.clone(),
                message_id,
                idempotency_key: keys::idempotency_key(&record),
                attempt: 1,
                record,
            },
        }
    }

    /// Effect first, evidence behind it.
    async fn handle(&mut self, handler: &dyn Handle, mut message: Message) -> Result<(), Stopped> {
        let mut failures = 0;
        loop {
            let Start::With(claims) = self.claim(&message).await? else { return Ok(()) };
            failpoint::hit("consumer-before-handle");
            self.group.status.started(&self.reporter.at, &message.delivery.record);
            let started = Instant::now();
            let outcome = self.alongside(handler.handle(&message.delivery)).await;
            failpoint::hit("consumer-after-handle");
            if outcome == Outcome::Done {
                let took = Some(started.elapsed());
                self.completion.finish(Finished { took, claims, ..message.finished() });
                return Ok(());
            }
            self.group.status.stopped(&self.reporter.at);
            failures += 1;
            self.release(&claims).await?;
            self.back_off(&message, failures, outcome).await?;
            message.delivery.attempt += 1;
        }
    }

    /// Effect and evidence in one transaction.
    async fn apply(&mut self, handler: &SqlHandler, mut message: Message) -> Result<(), Stopped> {
        let group = Arc::clone(&self.group);
        let mut wait = Wait::new(&group.name, &group.status);
        let (mut failures, mut busy, mut unclear) = (0, 0, false);
        loop {
            let effect = Effect {
                function: &handler.function,
                statement_timeout: handler.statement_timeout(),
                delivery: &message.delivery,
                keys: &message.keys,
                payload_hash: message.payload_hash,
                agent: group.store.agent,
                next_offset: self.completion.next_with(message.offset()),
            };
            failpoint::hit("consumer-before-handle");
            group.status.started(&self.reporter.at, &message.delivery.record);
            let affected = group.store.apply(&self.reporter.at, effect).await;
            failpoint::hit("consumer-after-handle");
            if !matches!(affected, Ok(Affected::Done)) {
                group.status.stopped(&self.reporter.at);
            }
            match affected {
                // After an unclear outcome, evidence means that it was this very try.
                Ok(Affected::Repeat) if !unclear => {
                    group.status.count(Tally::Duplicate);
                    self.completion.skip(message.offset());
                }
                Ok(Affected::Repeat) => {
                    group.status.count(Tally::Processed);
                    self.completion.skip(message.offset());
                }
                Ok(Affected::Done) => {
                    let next = self.completion.applied(message.offset());
                    group.status.count(Tally::Processed);
                    group.status.completed(&self.reporter.at, next, 1);
                    self.reporter.tell(Report::Completed(next));
                }
                Ok(Affected::Duplicate { by, same_payload }) => self.duplicate(&message, by, same_payload),
                Ok(Affected::Busy) => {
                    busy += 1;
                    self.wait_for_key(&message, busy).await?;
                    continue;
                }
                Ok(Affected::Failed(error)) => {
                    failures += 1;
                    self.back_off(&message, failures, handler.failed(&error)).await?;
                    message.delivery.attempt += 1;
                    continue;
                }
                Err(error) => {
                    unclear |= !error.is_conflict();
                    self.pause(&mut wait, &error).await?;
                    continue;
                }
            }
            wait.end();
            return Ok(());
        }
    }

    /// Takes the keys of a message that is about to start.
    async fn claim(&mut self, message: &Message) -> Result<Start, Stopped> {
        if message.keys.is_empty() {
            return Ok(Start::With(Vec::new()));
        }
        let group = Arc::clone(&self.group);
        let ttl = group.handler.timeout() + CLAIM_MARGIN;
        let (id, hash) = (message.delivery.message_id, message.payload_hash);
        let mut wait = Wait::new(&group.name, &group.status);
        let mut busy = 0;
        loop {
            // Asked to its end: a key claimed by a question that was dropped would be held by nobody.
            match group.store.claim(id, hash, &message.keys, ttl).await {
                Ok(Claimed::All(claims)) => {
                    wait.end();
                    return Ok(Start::With(claims));
                }
                Ok(Claimed::Done { by, same_payload }) => {
                    wait.end();
                    self.duplicate(message, by, same_payload);
                    return Ok(Start::Duplicate);
                }
                Ok(Claimed::Busy) => {
                    busy += 1;
                    self.wait_for_key(message, busy).await?;
                }
                Err(error) => self.pause(&mut wait, &error).await?,
            }
        }
    }

    /// Another message holds a key, maybe one that this partition has finished and not yet recorded.
    async fn wait_for_key(&mut self, message: &Message, times: u32) -> Result<(), Stopped> {
        self.complete().await;
        if times.is_multiple_of(BUSY_IS_LONG) {
            tracing::warn!(
                group = self.group.name,
                id = %message.delivery.message_id,
                key = message.delivery.idempotency_key,
                "another message of the same operation has not come to its end; waiting for it, or for its claim to expire"
            );
        }
        self.or_stop(tokio::time::sleep(BUSY.delay(times, fastrand::f64()))).await
    }

    /// Nothing is called for it; the evidence names the message that did its operation.
    fn duplicate(&mut self, message: &Message, by: Uuid, same_payload: bool) {
        let (group, id) = (&self.group.name, message.delivery.message_id);
        let key = message.delivery.idempotency_key.as_deref();
        if same_payload {
            tracing::debug!(group, %id, %by, key, "a duplicate, skipped");
        } else {
            tracing::warn!(group, %id, %by, key, "skipped as a duplicate, though its payload is another");
            self.group.status.count(Tally::OtherPayload);
        }
        self.group.status.started(&self.reporter.at, &message.delivery.record);
        self.completion.finish(Finished { duplicate_of: Some(by), ..message.finished() });
    }

    async fn release(&self, claims: &[Claim]) -> Result<(), Stopped> {
        if claims.is_empty() {
            return Ok(());
        }
        let mut wait = Wait::new(&self.group.name, &self.group.status);
        while let Err(error) = self.group.store.release(claims).await {
            self.pause(&mut wait, &error).await?;
        }
        wait.end();
        Ok(())
    }

    /// Holds the partition until the next try. What is finished is recorded before.
    async fn back_off(&mut self, message: &Message, failures: u32, outcome: Outcome) -> Result<(), Stopped> {
        let (reason, after) = match outcome {
            Outcome::Done => return Ok(()),
            Outcome::Retry { reason, after } => (reason, after),
            Outcome::Permanent { reason } => (format!("{reason} (the handler calls it permanent)"), None),
        };
        let retry = self.group.config.retry;
        let backoff = Backoff { first: retry.backoff, max: retry.max_backoff };
        // What the handler asks for is obeyed, within reason: a server may say a year.
        let asked = after.unwrap_or_default().min(retry.max_backoff);
        let delay = backoff.delay(failures, fastrand::f64()).max(asked);
        self.group.status.count(Tally::Failed);
        // The first, the second, the fourth, the eighth: a message that keeps failing does not fill the log.
        if failures.is_power_of_two() {
            let record = &message.delivery.record;
            tracing::warn!(
                group = self.group.name,
                id = %message.delivery.message_id,
                topic = record.topic,
                partition = record.partition,
                offset = record.offset,
                failures,
                "the handler failed and is called again in {}, its partition waits: {reason}",
                humantime::format_duration(Duration::from_millis(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)))
            );
        }
        self.complete().await;
        self.or_stop(tokio::time::sleep(delay)).await
    }

    /// Records what is finished while this one runs, so that a slow one does not hold it back.
    async fn alongside<T>(&mut self, work: impl Future<Output = T>) -> T {
        let Some(due) = self.completion.due() else { return work.await };
        tokio::pin!(work);
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep_until(due) => {}
        }
        let (done, ()) = tokio::join!(work, self.complete());
        done
    }

    async fn complete(&mut self) {
        if let Some(next) = self.completion.write(&self.group).await {
            self.reporter.tell(Report::Completed(next));
        }
    }

    async fn pause(&self, wait: &mut Wait<'_>, error: &PgError) -> Result<(), Stopped> {
        self.or_stop(wait.pause(&error.to_string())).await
    }

    async fn or_stop<T>(&self, work: impl Future<Output = T>) -> Result<T, Stopped> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Stopped),
            done = work => Ok(done),
        }
    }
}
