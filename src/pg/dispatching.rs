//! The retries of all groups as the one sees them who gives them out: what is due, who takes it, what was not heard of.

use std::collections::HashSet;
use std::time::Duration;

use tokio_postgres::IsolationLevel;
use tokio_postgres::types::Json;
use uuid::Uuid;

use super::connect::{Connection, PgError};
use super::held::{self, Head, Successor};
use super::sql::{millis, statements};
use crate::domain::dispatch::{self, Dispatch};
use crate::domain::retry_choice::Candidate;

statements! {
    /// A look that writes nothing: mostly there is nothing to do.
    HAS_WORK = "
        select exists (select from outboxd.failures where state in ('retrying', 'running')
            and (expires_at is null or expires_at < now()))
          or exists (select from outboxd.members m
            where m.takes_retries and m.seen_at > now() - interval '5 s' and exists (select from outboxd.failures f
              where f.consumer_group = m.consumer_group and f.state = 'due' and f.next_attempt_at <= now()))
          or exists (select from outboxd.held_keys h
            where h.held_at < now() - interval '1 minute' and not exists (select from outboxd.failures f
              where f.consumer_group = h.consumer_group and f.message_id = h.message_id))";

    /// The deadline of a dispatch begins when its message is seen to be published: a leaf that is gone was.
    SEE_PUBLISHED = "
        with seen as materialized (
          select f.consumer_group, f.message_id, f.dispatch from outboxd.failures f
          join outboxd.lanes l on l.priority = 0
          left join lateral (
            select m.seq, m.txid from outboxd.messages m where m.priority = 0 and m.seq = f.dispatch_seq limit 1
          ) m on true
          where f.state = 'retrying' and f.expires_at is null
            and (m.seq is null or m.seq <= l.top and (pg_visible_in_snapshot(m.txid, l.done)
              or l.target is not null and m.seq <= l.published_seq and pg_visible_in_snapshot(m.txid, l.target)))
            and not exists (select from outboxd.set_aside a where a.priority = 0 and a.seq = f.dispatch_seq
              and a.state <> 'replayed')
          limit 1000
        )
        update outboxd.failures f set published_at = clock_timestamp(),
          expires_at = clock_timestamp() + coalesce(g.deadline, $3::bigint) * interval '1 ms'
        from seen left join unnest($1::text[], $2::bigint[]) as g (consumer_group, deadline) using (consumer_group)
        where outboxd.durable() and f.consumer_group = seen.consumer_group and f.message_id = seen.message_id
          and f.dispatch = seen.dispatch and f.state = 'retrying'";

    /// Dispatches that Kafka refuses, leases that ended, deadlines that passed. Whose reader moves has read a dispatch that
    /// was published 15 seconds ago.
    UNHEARD = "
        select f.consumer_group, f.message_id, f.dispatch, f.state, f.attempts - f.forgiven, f.undelivered, a.reason,
          coalesce(m.agent, f.target::text),
          f.published_at < now() - interval '15 s' and coalesce(m.takes_retries and m.seen_at > now() - interval '5 s', false)
        from outboxd.failures f
        left join outboxd.set_aside a on a.priority = 0 and a.seq = f.dispatch_seq
          and a.state in ('parked', 'discarded')
          and f.state = 'retrying'
        left join outboxd.members m on m.consumer_group = f.consumer_group and m.agent_id = f.target
        where f.state in ('retrying', 'running') and (f.expires_at < now() or f.expires_at is null and a.seq is not null)
        limit 500";

    /// Checked again in the statement that judges by it: a lease may have been renewed.
    SETTLE = "
        with item as (
          select * from unnest($1::text[], $2::uuid[], $3::bigint[], $4::text[], $5::text[], $6::bigint[], $7::smallint[])
            as i (consumer_group, message_id, dispatch, reason, error, after, undelivered)
        ), picked as materialized (
          select f.consumer_group, f.message_id, f.state, f.target, i.reason, i.error, i.after, i.undelivered
          from item i join outboxd.failures f using (consumer_group, message_id, dispatch)
          where outboxd.durable() and f.state in ('retrying', 'running')
            and (f.expires_at < clock_timestamp() or f.expires_at is null)
          for update of f
        ), noted as (
          insert into outboxd.attempts (consumer_group, message_id, attempt, agent, error)
          select p.consumer_group, p.message_id, f.attempts, coalesce(m.agent, p.target::text), p.error
          from picked p join outboxd.failures f using (consumer_group, message_id)
          left join outboxd.members m on m.consumer_group = p.consumer_group and m.agent_id = p.target
          where p.state = 'running'
          on conflict do nothing
        )
        update outboxd.failures f set state = case when p.reason is null then 'due' else 'dead' end, reason = p.reason,
          error = coalesce(p.error, f.error), last_agent = f.target, target = null, expires_at = null,
          undelivered = p.undelivered,
          next_attempt_at = case when p.reason is null then clock_timestamp() + p.after * interval '1 ms' end,
          changed_at = clock_timestamp()
        from picked p where f.consumer_group = p.consumer_group and f.message_id = p.message_id
        returning f.consumer_group, f.message_id, f.state, f.topic, f.key_digest";

    /// Those that take retries of groups that have some due, with what each has already.
    CANDIDATES = "
        select m.consumer_group, m.agent_id, m.in_flight, m.error_rate, coalesce(o.retries, 0)::integer
        from outboxd.members m
        join outboxd.groups g on g.name = m.consumer_group and g.paused_at is null
          and coalesce(g.breaker_until <= now(), true)
        left join (
          select consumer_group, target, count(*) as retries from outboxd.failures
          where state in ('retrying', 'running') group by 1, 2
        ) o on o.consumer_group = m.consumer_group and o.target = m.agent_id
        where m.takes_retries and m.seen_at > now() - interval '5 s'
          and not exists (select from outboxd.agents a where a.id = m.agent_id and a.drain_ordered_at is not null)
          and exists (select from outboxd.failures f
            where f.consumer_group = m.consumer_group and f.state = 'due' and f.next_attempt_at <= now())
        order by m.consumer_group, m.agent_id";

    DUE = "
        select w.consumer_group, d.message_id, d.dispatch, d.attempts, d.last_agent, d.key
        from unnest($1::text[], $2::bigint[]) as w (consumer_group, room)
        cross join lateral (
          select message_id, dispatch, attempts, last_agent, key from outboxd.failures f
          where f.consumer_group = w.consumer_group and f.state = 'due' and f.next_attempt_at <= now()
          order by f.next_attempt_at limit w.room
        ) d";

    /// Who takes retries, and goes on to as long as this transaction lasts: an agent that stops waits for it, and hands back
    /// what it was given.
    TAKERS = "
        select m.consumer_group, m.agent_id from outboxd.members m
        join (select distinct * from unnest($1::text[], $2::uuid[])) as w (consumer_group, agent_id)
          using (consumer_group, agent_id)
        where m.takes_retries
        for share of m";

    /// State and message in one transaction. The number of the message is the outbox's own default: no row may have taken
    /// it before it has a transaction.
    DISPATCH = "
        with item as (
          select * from unnest($1::text[], $2::jsonb[], $3::text[]) as i (topic, retry, key)
        ), picked as materialized (
          select i.topic, i.retry, i.key, f.idempotency_key from item i
          join outboxd.failures f on f.consumer_group = i.retry->>'group' and f.message_id = (i.retry->>'id')::uuid
          where outboxd.durable() and f.state = 'due' and f.dispatch = (i.retry->>'dispatch')::bigint - 1
          for update of f skip locked
        ), sent as (
          insert into outboxd.messages (topic, key, idempotency_key, retry)
          select topic, key, case when octet_length(idempotency_key) between 1 and 1024 then idempotency_key end, retry
          from picked returning seq, retry
        )
        update outboxd.failures f set state = 'retrying', dispatch = f.dispatch + 1, dispatch_seq = sent.seq,
          target = (sent.retry->>'target')::uuid, next_attempt_at = null, published_at = null, expires_at = null,
          changed_at = clock_timestamp()
        from sent where f.consumer_group = sent.retry->>'group' and f.message_id = (sent.retry->>'id')::uuid
        returning f.consumer_group";
}

/// A retry that was given out and not heard of.
#[derive(Clone, Debug)]
pub struct Unheard {
    pub group: String,
    pub message_id: Uuid,
    pub dispatch: i64,
    /// Its attempt had started: its lease has ended.
    pub was_running: bool,
    /// Those that count.
    pub attempts: u32,
    /// Dispatches before it that were not started either.
    pub undelivered: i16,
    /// Kafka refuses its message, for that reason.
    pub refused: Option<String>,
    pub agent: String,
    /// The agent reads on, and must have seen it.
    pub was_read: bool,
}

/// What is to become of it.
#[derive(Clone, Debug)]
pub struct Settlement {
    pub error: Option<String>,
    /// `None`: a dead letter no, due again after `after`.
    pub reason: Option<&'static str>,
    pub after: Duration,
    pub undelivered: i16,
}

/// A failure whose time has come.
#[derive(Clone, Debug)]
pub struct Due {
    pub group: String,
    pub message_id: Uuid,
    pub dispatch: i64,
    pub attempts: u32,
    pub last_agent: Option<Uuid>,
    pub key: Option<Vec<u8>>,
}

/// Is there anything to do? Asked each second.
pub async fn has_work(client: &Connection) -> Result<bool, PgError> {
    Ok(client.query_one(&client.prepare_once(HAS_WORK).await?, &[]).await?.get(0))
}

/// Begins the deadlines of what has been published; groups that are not named have the last one.
pub async fn see_published(
    client: &Connection,
    deadlines: &[(&str, Duration)],
    default: Duration,
) -> Result<(), PgError> {
    let groups: Vec<&str> = deadlines.iter().map(|(group, _)| *group).collect();
    let limits: Vec<i64> = deadlines.iter().map(|(_, deadline)| millis(*deadline)).collect();
    client.execute(&client.prepare_once(SEE_PUBLISHED).await?, &[&groups, &limits, &millis(default)]).await?;
    Ok(())
}

/// What was given out and is over without a word.
pub async fn unheard(client: &Connection) -> Result<Vec<Unheard>, PgError> {
    let rows = client.query(&client.prepare_once(UNHEARD).await?, &[]).await?;
    Ok(rows
        .iter()
        .map(|row| Unheard {
            group: row.get(0),
            message_id: row.get(1),
            dispatch: row.get(2),
            was_running: row.get::<_, &str>(3) == "running",
            attempts: u32::try_from(row.get::<_, i32>(4)).unwrap_or(0),
            undelivered: row.get(5),
            refused: row.get(6),
            agent: row.get(7),
            was_read: row.get::<_, Option<bool>>(8).unwrap_or(false),
        })
        .collect())
}

/// Carries that out where it still holds, and lets the keys go of those that died, for groups that `release` names.
/// Returns how many died.
pub async fn settle(
    client: &mut Connection,
    settled: &[(Unheard, Settlement)],
    release: impl Fn(&str) -> bool,
) -> Result<usize, PgError> {
    let groups: Vec<&str> = settled.iter().map(|(unheard, _)| unheard.group.as_str()).collect();
    let ids: Vec<Uuid> = settled.iter().map(|(unheard, _)| unheard.message_id).collect();
    let dispatches: Vec<i64> = settled.iter().map(|(unheard, _)| unheard.dispatch).collect();
    let reasons: Vec<Option<&str>> = settled.iter().map(|(_, settlement)| settlement.reason).collect();
    let errors: Vec<Option<&str>> =
        settled.iter().map(|(_, settlement)| settlement.error.as_deref()).collect();
    let after: Vec<i64> = settled.iter().map(|(_, settlement)| millis(settlement.after)).collect();
    let undelivered: Vec<i16> = settled.iter().map(|(_, settlement)| settlement.undelivered).collect();
    let transaction =
        client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?;
    let rows = transaction
        .query(SETTLE, &[&groups, &ids, &dispatches, &reasons, &errors, &after, &undelivered])
        .await?;
    let dead: Vec<_> = rows.iter().filter(|row| row.get::<_, &str>(2) == "dead").collect();
    let heads = dead.iter().filter_map(|row| {
        let (group, message_id, topic) = (row.get::<_, String>(0), row.get(1), row.get(3));
        let key_digest = row.get::<_, Option<Vec<u8>>>(4).filter(|_| release(&group))?;
        Some(Head { group, topic, key_digest, message_id })
    });
    held::release(&transaction, &heads.collect::<Vec<_>>(), Successor::Any).await?;
    transaction.commit().await?;
    Ok(dead.len())
}

/// Lets keys go whose head is not open any more. Returns how many.
pub async fn let_forsaken_go(client: &mut Connection) -> Result<usize, PgError> {
    let transaction =
        client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?;
    let forsaken = held::forsaken(&transaction).await?;
    held::release(&transaction, &forsaken, Successor::Any).await?;
    transaction.commit().await?;
    Ok(forsaken.len())
}

/// The agents that take retries of groups that have some due.
pub async fn candidates(client: &Connection) -> Result<Vec<(String, Candidate)>, PgError> {
    let rows = client.query(&client.prepare_once(CANDIDATES).await?, &[]).await?;
    let count = |number: i32| u32::try_from(number).unwrap_or(0);
    Ok(rows
        .iter()
        .map(|row| {
            let candidate = Candidate {
                agent: row.get(1),
                in_flight: count(row.get(2)),
                error_rate: row.get(3),
                retries: count(row.get(4)),
            };
            (row.get(0), candidate)
        })
        .collect())
}

/// The oldest of each group, as many as it has room for.
pub async fn due(client: &Connection, room: &[(&str, i64)]) -> Result<Vec<Due>, PgError> {
    let (groups, rooms): (Vec<&str>, Vec<i64>) = room.iter().copied().unzip();
    let rows = client.query(&client.prepare_once(DUE).await?, &[&groups, &rooms]).await?;
    Ok(rows
        .iter()
        .map(|row| Due {
            group: row.get(0),
            message_id: row.get(1),
            dispatch: row.get(2),
            attempts: u32::try_from(row.get::<_, i32>(3)).unwrap_or(0),
            last_agent: row.get(4),
            key: row.get(5),
        })
        .collect())
}

/// Gives them to their targets, with the key that each message has as far as it is text. One that has changed meanwhile
/// is left out, and so is one whose target has stopped. Returns the group of each that was given out.
pub async fn dispatch(
    client: &mut Connection,
    dispatches: &[(Dispatch, Option<String>)],
) -> Result<Vec<String>, PgError> {
    let transaction =
        client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?;
    let groups: Vec<&str> = dispatches.iter().map(|(item, _)| item.group.as_str()).collect();
    let targets: Vec<Uuid> = dispatches.iter().map(|(item, _)| item.target).collect();
    let rows = transaction.query(TAKERS, &[&groups, &targets]).await?;
    let takers: HashSet<(&str, Uuid)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let (mut topics, mut columns, mut keys) = (Vec::new(), Vec::new(), Vec::new());
    for (item, key) in dispatches {
        if takers.contains(&(item.group.as_str(), item.target)) {
            topics.push(dispatch::topic(&item.group));
            columns.push(Json(item));
            keys.push(key.as_deref());
        }
    }
    let rows = transaction.query(DISPATCH, &[&topics, &columns, &keys]).await?;
    transaction.commit().await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
