//! Dispatched retries, from their start to their end, many at a time. Every write names the dispatch: whoever is late
//! changes nothing.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{GenericClient, Transaction};
use tokio_postgres::{IsolationLevel, Row};
use uuid::Uuid;

use super::claims::{self, Claim};
use super::completing::{self, Finished, Scope};
use super::connect::PgError;
use super::effect::{self, Affected, Effect, Function};
use super::held::{self, Head, Next, Successor};
use super::pool::Lent;
use super::sql::{millis, statements};
use crate::domain::delivery::Record;

statements! {
    OPEN = "
        select f.message_id, f.dispatch, f.topic, f.partition, f.\"offset\", f.recorded_at, f.key, f.payload, f.header_names,
          f.header_values, f.attempts, f.forgiven,
          exists (select from outboxd.handled h where h.consumer_group = $1 and h.message_id = f.message_id),
          coalesce(g.paused_at is not null or g.breaker_until > clock_timestamp(), false),
          coalesce((select s.starts from outboxd.starts s
            where s.consumer_group = $1 and s.message_id = f.message_id), 0)
        from unnest($3::uuid[], $4::bigint[]) as w (message_id, dispatch)
        join outboxd.failures f on f.consumer_group = $1 and f.message_id = w.message_id and f.dispatch = w.dispatch
          and f.target = $2 and f.state = 'retrying'
        left join outboxd.groups g on g.name = f.consumer_group";

    /// From here on the attempt counts. May be repeated after an unknown outcome.
    START = "
        update outboxd.failures f set state = 'running', attempts = w.attempts + 1, undelivered = 0,
          expires_at = clock_timestamp() + $6::bigint * interval '1 ms', changed_at = clock_timestamp()
        from unnest($3::uuid[], $4::bigint[], $5::integer[]) as w (message_id, dispatch, attempts)
        where outboxd.durable() and f.consumer_group = $1 and f.message_id = w.message_id and f.dispatch = w.dispatch
          and f.target = $2
          and case f.state when 'retrying' then f.attempts = w.attempts when 'running' then f.attempts = w.attempts + 1 end
        returning f.message_id";

    RENEW = "
        update outboxd.failures f set expires_at = clock_timestamp() + $5::bigint * interval '1 ms'
        from unnest($3::uuid[], $4::bigint[]) as w (message_id, dispatch)
        where f.consumer_group = $1 and f.message_id = w.message_id and f.dispatch = w.dispatch and f.target = $2
          and f.state = 'running'";

    /// Not this agent's fault, nor the messages': the attempts are not counted.
    HAND_BACK = "
        update outboxd.failures f set state = 'due', attempts = f.attempts - case f.state when 'running' then 1 else 0 end,
          next_attempt_at = clock_timestamp() + w.after * interval '1 ms', target = null, expires_at = null,
          changed_at = clock_timestamp()
        from unnest($3::uuid[], $4::bigint[], $5::bigint[]) as w (message_id, dispatch, after)
        where f.consumer_group = $1 and f.message_id = w.message_id and f.dispatch = w.dispatch and f.target = $2
          and f.state in ('retrying', 'running')";

    /// There is evidence: whatever becomes of another attempt, these messages are done with.
    CLOSE = "
        with cleared as (delete from outboxd.starts where consumer_group = $1 and message_id = any($2))
        delete from outboxd.failures where consumer_group = $1 and message_id = any($2)
        returning message_id, topic, key_digest";

    CLOSE_FENCED = "
        with cleared as (delete from outboxd.starts where consumer_group = $1 and message_id = $2)
        delete from outboxd.failures
        where consumer_group = $1 and message_id = $2 and dispatch = $3 and target = $4 and state = 'running'
        returning message_id, topic, key_digest";

    /// It has come to an end, and so is under no suspicion.
    FAIL = "
        with cleared as (delete from outboxd.starts where consumer_group = $1 and message_id = any($3))
        update outboxd.failures f set state = case when w.reason is null then 'due' else 'dead' end, reason = w.reason,
          error = w.error, last_agent = f.target, target = null, expires_at = null,
          failed_at = coalesce(f.failed_at, clock_timestamp()),
          next_attempt_at = case when w.reason is null then clock_timestamp() + w.after * interval '1 ms' end,
          changed_at = clock_timestamp()
        from unnest($3::uuid[], $4::bigint[], $5::text[], $6::text[], $7::bigint[])
          as w (message_id, dispatch, reason, error, after)
        where f.consumer_group = $1 and f.message_id = w.message_id and f.dispatch = w.dispatch and f.target = $2
          and f.state = 'running'
        returning f.message_id, f.topic, f.key_digest, f.attempts";

    NOTE_ATTEMPTS = "
        insert into outboxd.attempts (consumer_group, message_id, attempt, agent, error)
        select $1, w.message_id, w.attempt, $2, w.error
        from unnest($3::uuid[], $4::integer[], $5::text[]) as w (message_id, attempt, error)
        on conflict do nothing";
}

/// A dispatch: a message, and the number that every write of this attempt names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Named {
    pub message_id: Uuid,
    pub dispatch: i64,
}

/// Whose dispatches.
#[derive(Clone, Copy, Debug)]
pub struct Fence<'a> {
    pub group: &'a str,
    pub agent: Uuid,
}

/// A failed message as it was kept.
#[derive(Debug)]
pub struct Opened {
    pub named: Named,
    pub record: Record,
    /// That have started.
    pub attempts: i32,
    /// Of these, that do not count any more.
    pub forgiven: i32,
    /// There is evidence: the group has handled it after all.
    pub is_handled: bool,
    /// The group is paused, or its breaker open.
    pub is_stopped: bool,
    /// That a connection did not outlive, or a process.
    pub starts: i32,
}

impl Opened {
    fn from(row: &Row) -> Self {
        let bytes = |place: usize| row.get::<_, Option<Vec<u8>>>(place).map(Into::into);
        let names: Vec<String> = row.get(8);
        let values: Vec<Option<Vec<u8>>> = row.get(9);
        let values = values.into_iter().map(|value| value.map(Into::into));
        let record = Record {
            topic: Arc::from(row.get::<_, &str>(2)),
            partition: row.get(3),
            offset: row.get(4),
            timestamp: row.get(5),
            key: bytes(6),
            payload: bytes(7),
            headers: names.into_iter().zip(values).collect(),
        };
        Self {
            named: Named { message_id: row.get(0), dispatch: row.get(1) },
            record,
            attempts: row.get(10),
            forgiven: row.get(11),
            is_handled: row.get(12),
            is_stopped: row.get(13),
            starts: row.get(14),
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

/// An attempt that failed.
#[derive(Clone, Debug)]
pub struct Failed {
    pub named: Named,
    pub error: String,
    pub verdict: Verdict,
}

/// Attempts that have ended, written together.
#[derive(Debug, Default)]
pub struct Ends {
    /// With success, or as duplicates. A late success counts too: its effect has happened.
    pub finished: Vec<Finished>,
    /// Of these.
    pub claims: Vec<Claim>,
    /// There was evidence before.
    pub known: Vec<Uuid>,
    pub failed: Vec<Failed>,
    /// Each is due again after that time.
    pub handed_back: Vec<(Named, Duration)>,
    /// Of those that came to nothing.
    pub released: Vec<Claim>,
}

impl Ends {
    fn is_empty(&self) -> bool {
        let is_open = self.failed.is_empty() && self.handed_back.is_empty() && self.released.is_empty();
        is_open && self.finished.is_empty() && self.known.is_empty()
    }
}

/// What that led to.
#[derive(Debug, Default)]
pub struct Ended {
    /// Of the keys that went on: this agent's now.
    pub next: Vec<Next>,
    /// Failed ones of which another dispatch is under way: nothing was written of them.
    pub late: HashSet<Uuid>,
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
    /// The connection was lost while the function ran.
    Lost,
}

fn columns(all: impl Iterator<Item = Named>) -> (Vec<Uuid>, Vec<i64>) {
    all.map(|named| (named.message_id, named.dispatch)).unzip()
}

/// Reads the messages of these dispatches; one that is not what counts of its message is left out.
pub async fn open(
    client: &impl GenericClient,
    fence: Fence<'_>,
    all: &[Named],
) -> Result<Vec<Opened>, PgError> {
    let Fence { group, agent } = fence;
    let (ids, dispatches) = columns(all.iter().copied());
    let statement = client.prepare_cached(OPEN).await?;
    let rows = client.query(&statement, &[&group, &agent, &ids, &dispatches]).await?;
    Ok(rows.iter().map(Opened::from).collect())
}

/// Starts these, each behind so many attempts before, under a lease; returns those that were ours to start.
pub async fn start(
    client: &impl GenericClient,
    fence: Fence<'_>,
    all: &[(Named, i32)],
    lease: Duration,
) -> Result<HashSet<Uuid>, PgError> {
    let Fence { group, agent } = fence;
    let (ids, dispatches) = columns(all.iter().map(|(named, _)| *named));
    let attempts: Vec<i32> = all.iter().map(|(_, attempts)| *attempts).collect();
    let statement = client.prepare_cached(START).await?;
    let rows =
        client.query(&statement, &[&group, &agent, &ids, &dispatches, &attempts, &millis(lease)]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// One that is not ours any more is left alone.
pub async fn renew(
    client: &impl GenericClient,
    fence: Fence<'_>,
    all: &[Named],
    lease: Duration,
) -> Result<(), PgError> {
    let Fence { group, agent } = fence;
    let (ids, dispatches) = columns(all.iter().copied());
    let statement = client.prepare_cached(RENEW).await?;
    client.execute(&statement, &[&group, &agent, &ids, &dispatches, &millis(lease)]).await?;
    Ok(())
}

/// Records how attempts ended, in one transaction; keys go on behind those that are done with. May be repeated.
pub async fn end(
    client: &mut Lent,
    scope: Scope<'_>,
    ends: &Ends,
    successor: Successor,
) -> Result<Ended, PgError> {
    let group = scope.group;
    if ends.is_empty() {
        return Ok(Ended::default());
    }
    let transaction = begin(client).await?;
    completing::be_durable(&transaction).await?;
    completing::write(&transaction, scope, &ends.finished).await?;
    let mut heads = close(&transaction, scope, ends).await?;
    claims::finish(&transaction, group, &ends.claims).await?;
    claims::release(&transaction, group, &ends.released).await?;
    let late = fail(&transaction, scope, &ends.failed, &mut heads).await?;
    hand_back(&transaction, scope, &ends.handed_back).await?;
    let next = held::release(&transaction, &heads, successor).await?;
    transaction.commit().await?;
    Ok(Ended { next, late })
}

async fn close(transaction: &Transaction<'_>, scope: Scope<'_>, ends: &Ends) -> Result<Vec<Head>, PgError> {
    let finished = ends.finished.iter().map(|finished| finished.message_id);
    let ids: Vec<Uuid> = finished.chain(ends.known.iter().copied()).collect();
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let statement = transaction.prepare_cached(CLOSE).await?;
    let rows = transaction.query(&statement, &[&scope.group, &ids]).await?;
    Ok(rows.iter().filter_map(|row| head(scope.group, row)).collect())
}

async fn fail(
    transaction: &Transaction<'_>,
    scope: Scope<'_>,
    failed: &[Failed],
    heads: &mut Vec<Head>,
) -> Result<HashSet<Uuid>, PgError> {
    if failed.is_empty() {
        return Ok(HashSet::new());
    }
    let (ids, dispatches) = columns(failed.iter().map(|failed| failed.named));
    let errors: Vec<&str> = failed.iter().map(|failed| &*failed.error).collect();
    let reason = |failed: &Failed| match failed.verdict {
        Verdict::Again(_) => None,
        Verdict::Dead { reason, .. } => Some(reason),
    };
    let reasons: Vec<Option<&str>> = failed.iter().map(reason).collect();
    let after = |failed: &Failed| match failed.verdict {
        Verdict::Again(after) => millis(after),
        Verdict::Dead { .. } => 0,
    };
    let after: Vec<i64> = failed.iter().map(after).collect();
    let statement = transaction.prepare_cached(FAIL).await?;
    let rows = transaction
        .query(&statement, &[&scope.group, &scope.agent, &ids, &dispatches, &reasons, &errors, &after])
        .await?;
    let mut late: HashSet<Uuid> = ids.into_iter().collect();
    let (mut noted, mut attempts, mut their_errors) = (Vec::new(), Vec::new(), Vec::new());
    for row in &rows {
        let id: Uuid = row.get(0);
        late.remove(&id);
        let Some(failed) = failed.iter().find(|failed| failed.named.message_id == id) else { continue };
        noted.push(id);
        attempts.push(row.get::<_, i32>(3));
        their_errors.push(&*failed.error);
        if matches!(failed.verdict, Verdict::Dead { release: true, .. }) {
            heads.extend(head(scope.group, row));
        }
    }
    let statement = transaction.prepare_cached(NOTE_ATTEMPTS).await?;
    transaction
        .execute(&statement, &[&scope.group, &scope.agent_name, &noted, &attempts, &their_errors])
        .await?;
    Ok(late)
}

async fn hand_back(
    transaction: &Transaction<'_>,
    scope: Scope<'_>,
    handed_back: &[(Named, Duration)],
) -> Result<(), PgError> {
    if handed_back.is_empty() {
        return Ok(());
    }
    let (ids, dispatches) = columns(handed_back.iter().map(|(named, _)| *named));
    let after: Vec<i64> = handed_back.iter().map(|(_, after)| millis(*after)).collect();
    let statement = transaction.prepare_cached(HAND_BACK).await?;
    transaction.execute(&statement, &[&scope.group, &scope.agent, &ids, &dispatches, &after]).await?;
    Ok(())
}

/// The key that a failure may hold, if it has one.
fn head(group: &str, row: &Row) -> Option<Head> {
    let key_digest = row.get::<_, Option<Vec<u8>>>(2)?;
    Some(Head { group: group.to_owned(), topic: row.get(1), key_digest, message_id: row.get(0) })
}

/// The effect, its evidence and the end of the failure in one transaction; only `Done` leaves anything behind. After an
/// unknown outcome of COMMIT the next call finds out.
pub async fn apply(
    client: &mut Lent,
    scope: Scope<'_>,
    dispatch: i64,
    (function, effect): (Function<'_>, Effect<'_>),
    successor: Successor,
) -> Result<Applied, PgError> {
    let message_id = effect.delivery.message_id;
    let transaction = begin(client).await?;
    completing::be_durable(&transaction).await?;
    match effect::perform_last(&transaction, scope, function, effect).await? {
        Affected::Done => {}
        Affected::Lost => return Ok(Applied::Lost),
        Affected::Busy | Affected::Untried | Affected::Unjudged => return Ok(Applied::Busy),
        Affected::Repeat => return Ok(Applied::Repeat),
        Affected::Duplicate { by, .. } => return Ok(Applied::Duplicate { by }),
        Affected::Failed(error) => return Ok(Applied::Failed(error)),
    }
    let statement = transaction.prepare_cached(CLOSE_FENCED).await?;
    let closed =
        transaction.query_opt(&statement, &[&scope.group, &message_id, &dispatch, &scope.agent]).await?;
    let Some(closed) = closed else { return Ok(Applied::Late) };
    let heads: Vec<Head> = head(scope.group, &closed).into_iter().collect();
    let next = held::release(&transaction, &heads, successor).await?;
    match transaction.commit().await {
        Err(error) if effect::is_refusal(&error) => Ok(Applied::Failed(error)),
        committed => Ok(committed.map(|()| Applied::Done(next.first().copied()))?),
    }
}

/// Whatever the default of this user: each statement has to see what committed before it.
async fn begin(client: &mut Lent) -> Result<Transaction<'_>, PgError> {
    Ok(client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?)
}
