//! One dispatched retry, from its start to its end. Every write names the dispatch: whoever is late changes nothing.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::Transaction;
use tokio_postgres::{Client, IsolationLevel, Row};
use uuid::Uuid;

use super::claims::{self, Claim};
use super::completing::{self, Finished, Scope};
use super::connect::PgError;
use super::effect::{self, Affected, Effect};
use super::held::{self, Head, Next, Successor};
use super::pool::Lent;
use super::sql::{millis, statements};
use crate::domain::delivery::Record;

statements! {
    OPEN = "
        select f.topic, f.partition, f.\"offset\", f.recorded_at, f.key, f.payload, f.header_names, f.header_values,
          f.key_digest, f.attempts, f.forgiven,
          exists (select from outboxd.handled h where h.consumer_group = $1 and h.message_id = $2),
          coalesce(g.paused_at is not null or g.breaker_until > clock_timestamp(), false)
        from outboxd.failures f left join outboxd.groups g on g.name = f.consumer_group
        where f.consumer_group = $1 and f.message_id = $2 and f.dispatch = $3 and f.target = $4 and f.state = 'retrying'";

    /// From here on the attempt counts. May be repeated after an unknown outcome.
    START = "
        update outboxd.failures set state = 'running', attempts = $6::integer + 1, undelivered = 0,
          expires_at = clock_timestamp() + $5::bigint * interval '1 ms', changed_at = clock_timestamp()
        where outboxd.durable() and consumer_group = $1 and message_id = $2 and dispatch = $3 and target = $4
          and case state when 'retrying' then attempts = $6 when 'running' then attempts = $6 + 1 end";

    RENEW = "
        update outboxd.failures set expires_at = clock_timestamp() + $5::bigint * interval '1 ms'
        where consumer_group = $1 and message_id = $2 and dispatch = $3 and target = $4 and state = 'running'";

    /// Not this agent's fault, nor the message's: the attempt is not counted.
    HAND_BACK = "
        update outboxd.failures set state = 'due', attempts = attempts - case state when 'running' then 1 else 0 end,
          next_attempt_at = clock_timestamp() + $5::bigint * interval '1 ms', target = null, expires_at = null,
          changed_at = clock_timestamp()
        where outboxd.durable() and consumer_group = $1 and message_id = $2 and dispatch = $3 and target = $4
          and state in ('retrying', 'running')";

    HAND_BACK_ALL = "
        update outboxd.failures set state = 'due', next_attempt_at = clock_timestamp(), target = null, expires_at = null,
          changed_at = clock_timestamp()
        where outboxd.durable() and consumer_group = $1 and target = $2 and state = 'retrying'";

    /// There is evidence: whatever becomes of another attempt, this message is done with.
    CLOSE = "
        delete from outboxd.failures where consumer_group = $1 and message_id = $2 returning topic, key_digest";

    CLOSE_FENCED = "
        delete from outboxd.failures
        where consumer_group = $1 and message_id = $2 and dispatch = $3 and target = $4 and state = 'running'
        returning topic, key_digest";

    FAIL = "
        update outboxd.failures set state = case when $5::text is null then 'due' else 'dead' end, reason = $5,
          error = $6, last_agent = target, target = null, expires_at = null,
          failed_at = coalesce(failed_at, clock_timestamp()),
          next_attempt_at = case when $5::text is null then clock_timestamp() + $7::bigint * interval '1 ms' end,
          changed_at = clock_timestamp()
        where outboxd.durable() and consumer_group = $1 and message_id = $2 and dispatch = $3 and target = $4
          and state = 'running'
        returning attempts, topic, key_digest";

    NOTE_ATTEMPT = "
        insert into outboxd.attempts (consumer_group, message_id, attempt, agent, error) values ($1, $2, $3, $4, $5)
        on conflict do nothing";
}

/// Which attempt: every write of it names all of this.
#[derive(Clone, Copy, Debug)]
pub struct Fence<'a> {
    pub group: &'a str,
    pub message_id: Uuid,
    pub dispatch: i64,
    pub agent: Uuid,
}

/// A failed message as it was kept.
#[derive(Debug)]
pub struct Opened {
    pub record: Record,
    pub key_digest: Option<Vec<u8>>,
    /// That have started.
    pub attempts: i32,
    /// Of these, that do not count any more.
    pub forgiven: i32,
    /// There is evidence: the group has handled it after all.
    pub is_handled: bool,
    /// The group is paused, or its breaker open.
    pub is_stopped: bool,
}

impl Opened {
    fn from(row: &Row) -> Self {
        let bytes = |place: usize| row.get::<_, Option<Vec<u8>>>(place).map(Into::into);
        let names: Vec<String> = row.get(6);
        let values: Vec<Option<Vec<u8>>> = row.get(7);
        let values = values.into_iter().map(|value| value.map(Into::into));
        let record = Record {
            topic: Arc::from(row.get::<_, &str>(0)),
            partition: row.get(1),
            offset: row.get(2),
            timestamp: row.get(3),
            key: bytes(4),
            payload: bytes(5),
            headers: names.into_iter().zip(values).collect(),
        };
        Self {
            record,
            key_digest: row.get(8),
            attempts: row.get(9),
            forgiven: row.get(10),
            is_handled: row.get(11),
            is_stopped: row.get(12),
        }
    }
}

/// What a failed attempt comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Due again after that.
    Again(Duration),
    /// A dead letter, with the reason; its key is let go if it says so.
    Dead { reason: &'static str, release: bool },
}

/// What a completion leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completed {
    /// Done; the next message of the key is this agent's now, if there is one.
    Yes(Option<Next>),
    /// Another dispatch is under way: nothing was written.
    Late,
}

/// What became of the effect of an `sql` handler.
#[derive(Debug)]
pub enum Applied {
    Done(Option<Next>),
    /// There is evidence already.
    Repeat,
    /// Another message has done this operation.
    Duplicate {
        by: Uuid,
    },
    /// Another start holds a key now.
    Busy,
    /// Another dispatch is under way: nothing happened.
    Late,
    Failed(tokio_postgres::Error),
}

/// Reads the message of a dispatch; nothing if that dispatch is not the one that counts.
pub async fn open(client: &Client, fence: Fence<'_>) -> Result<Option<Opened>, PgError> {
    let Fence { group, message_id, dispatch, agent } = fence;
    let row = client.query_opt(OPEN, &[&group, &message_id, &dispatch, &agent]).await?;
    Ok(row.as_ref().map(Opened::from))
}

/// Starts an attempt behind so many others, under a lease; false if it is not ours to start.
pub async fn start(
    client: &Client,
    fence: Fence<'_>,
    attempts: i32,
    lease: Duration,
) -> Result<bool, PgError> {
    let Fence { group, message_id, dispatch, agent } = fence;
    let lease = millis(lease);
    Ok(client.execute(START, &[&group, &message_id, &dispatch, &agent, &lease, &attempts]).await? > 0)
}

/// Says whether the attempt is still ours.
pub async fn renew(client: &Client, fence: Fence<'_>, lease: Duration) -> Result<bool, PgError> {
    let Fence { group, message_id, dispatch, agent } = fence;
    Ok(client.execute(RENEW, &[&group, &message_id, &dispatch, &agent, &millis(lease)]).await? > 0)
}

/// Makes it due again, uncounted.
pub async fn hand_back(client: &Client, fence: Fence<'_>, after: Duration) -> Result<(), PgError> {
    let Fence { group, message_id, dispatch, agent } = fence;
    client.execute(HAND_BACK, &[&group, &message_id, &dispatch, &agent, &millis(after)]).await?;
    Ok(())
}

/// The same for all that this agent was given and has not started.
pub async fn hand_back_all(client: &Client, group: &str, agent: Uuid) -> Result<u64, PgError> {
    Ok(client.execute(HAND_BACK_ALL, &[&group, &agent]).await?)
}

/// Closes a failure whose message has evidence; the key goes on.
pub async fn close(
    client: &mut Lent,
    group: &str,
    message_id: Uuid,
    successor: Successor,
) -> Result<Option<Next>, PgError> {
    let transaction = begin(client).await?;
    let next = close_in(&transaction, group, message_id, successor).await?;
    transaction.commit().await?;
    Ok(next)
}

/// Records a success of a handler outside: evidence, operations, the failure closed, the key let go on. A late one counts
/// too: its effect has happened.
pub async fn succeed(
    client: &mut Lent,
    scope: Scope<'_>,
    finished: &Finished,
    claims: &[Claim],
    successor: Successor,
) -> Result<Option<Next>, PgError> {
    let transaction = begin(client).await?;
    completing::be_durable(&transaction).await?;
    completing::write(&transaction, scope, std::slice::from_ref(finished)).await?;
    let next = close_in(&transaction, scope.group, finished.message_id, successor).await?;
    claims::finish(&transaction, scope.group, claims).await?;
    transaction.commit().await?;
    Ok(next)
}

/// An attempt that failed, with the claims that it gives up.
#[derive(Clone, Copy, Debug)]
pub struct Failed<'a> {
    pub error: &'a str,
    pub claims: &'a [Claim],
    pub verdict: Verdict,
}

/// Records that an attempt failed.
pub async fn fail(
    client: &mut Lent,
    fence: Fence<'_>,
    agent_name: &str,
    failed: Failed<'_>,
    successor: Successor,
) -> Result<Completed, PgError> {
    let Failed { error, claims, verdict } = failed;
    let Fence { group, message_id, dispatch, agent } = fence;
    let (reason, after) = match verdict {
        Verdict::Again(after) => (None, millis(after)),
        Verdict::Dead { reason, .. } => (Some(reason), 0),
    };
    let transaction = begin(client).await?;
    claims::release(&transaction, group, claims).await?;
    let failed = transaction
        .query_opt(FAIL, &[&group, &message_id, &dispatch, &agent, &reason, &error, &after])
        .await?;
    let Some(failed) = failed else {
        transaction.commit().await?;
        return Ok(Completed::Late);
    };
    let attempt: i32 = failed.get(0);
    transaction.execute(NOTE_ATTEMPT, &[&group, &message_id, &attempt, &agent_name, &error]).await?;
    let next = match (verdict, failed.get::<_, Option<Vec<u8>>>(2)) {
        (Verdict::Dead { release: true, .. }, Some(key_digest)) => {
            let head = Head { group: group.to_owned(), topic: failed.get(1), key_digest, message_id };
            held::release(&transaction, &head, successor).await?
        }
        _ => None,
    };
    transaction.commit().await?;
    Ok(Completed::Yes(next))
}

/// The effect, its evidence and the end of the failure in one transaction; only `Done` leaves anything behind. After an
/// unknown outcome of COMMIT the next call finds out.
pub async fn apply(
    client: &mut Lent,
    fence: Fence<'_>,
    scope: Scope<'_>,
    effect: Effect<'_>,
    successor: Successor,
) -> Result<Applied, PgError> {
    let Fence { group, message_id, dispatch, agent } = fence;
    let transaction = begin(client).await?;
    match effect::perform(&transaction, scope, effect).await? {
        Affected::Done => {}
        Affected::Repeat => return Ok(Applied::Repeat),
        Affected::Duplicate { by, .. } => return Ok(Applied::Duplicate { by }),
        Affected::Busy => return Ok(Applied::Busy),
        Affected::Failed(error) => return Ok(Applied::Failed(error)),
    }
    let closed = transaction.query_opt(CLOSE_FENCED, &[&group, &message_id, &dispatch, &agent]).await?;
    let Some(closed) = closed else { return Ok(Applied::Late) };
    let next = go_on(&transaction, group, message_id, &closed, successor).await?;
    transaction.commit().await?;
    Ok(Applied::Done(next))
}

async fn close_in(
    transaction: &Transaction<'_>,
    group: &str,
    message_id: Uuid,
    successor: Successor,
) -> Result<Option<Next>, PgError> {
    match transaction.query_opt(CLOSE, &[&group, &message_id]).await? {
        Some(closed) => go_on(transaction, group, message_id, &closed, successor).await,
        None => Ok(None),
    }
}

/// With the key of a failure that is closed.
async fn go_on(
    transaction: &Transaction<'_>,
    group: &str,
    message_id: Uuid,
    closed: &Row,
    successor: Successor,
) -> Result<Option<Next>, PgError> {
    let Some(key_digest) = closed.get(1) else { return Ok(None) };
    let head = Head { group: group.to_owned(), topic: closed.get(0), key_digest, message_id };
    held::release(transaction, &head, successor).await
}

/// Whatever the default of this user: each statement has to see what committed before it.
async fn begin(client: &mut Lent) -> Result<Transaction<'_>, PgError> {
    Ok(client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?)
}
