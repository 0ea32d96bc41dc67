//! What a group's agents say and hear once a second: who is at work, and what an operator or a breaker has ordered.

use std::time::Duration;

use tokio_postgres::{GenericClient, IsolationLevel};
use uuid::Uuid;

use super::connect::PgError;
use super::pool::Lent;
use super::sql::{millis, statements};

statements! {
    CONTROL = "
        with me as (
          insert into outboxd.members as m (consumer_group, agent_id, agent, in_flight, error_rate, takes_retries, lag,
            rate, paused_partitions)
          values ($1, $2, $3, $4, $5, $6, $9, $10, $11)
          on conflict (consumer_group, agent_id) do update set agent = excluded.agent, seen_at = clock_timestamp(),
            in_flight = excluded.in_flight, error_rate = excluded.error_rate, takes_retries = excluded.takes_retries,
            lag = excluded.lag, rate = excluded.rate, paused_partitions = excluded.paused_partitions
        ), policy as (
          update outboxd.groups set holds_keys = $8 where name = $1 and holds_keys <> $8
        )
        select g.paused_at is not null, g.paused_by,
          (extract(epoch from g.breaker_until - clock_timestamp()) * 1000)::bigint, g.breaker_reason,
          1 + (select count(*) from outboxd.members m where m.consumer_group = $1 and m.agent_id <> $2
            and m.seen_at > clock_timestamp() - $7::bigint * interval '1 ms'),
          exists (select from outboxd.agents a where a.id = $2 and a.drain_ordered_at is not null)
        from outboxd.groups g where g.name = $1";

    STOP_TAKING = "
        update outboxd.members set takes_retries = false where consumer_group = $1 and agent_id = $2";

    LEAVE = "delete from outboxd.members where consumer_group = $1 and agent_id = $2";

    HAND_BACK_ALL = "
        update outboxd.failures set state = 'due', next_attempt_at = clock_timestamp(), target = null, expires_at = null,
          changed_at = clock_timestamp()
        where outboxd.durable() and consumer_group = $1 and target = $2 and state = 'retrying'";

    OPEN_BREAKER = "
        update outboxd.groups set breaker_until = clock_timestamp() + $2::bigint * interval '1 ms', breaker_reason = $3
        where name = $1";

    CLOSE_BREAKER = "
        update outboxd.groups set breaker_until = null, breaker_reason = null where name = $1 and breaker_until is not null";

    PAUSE = "
        update outboxd.groups set paused_at = clock_timestamp(), paused_by = $2 where name = $1 and paused_at is null";

    RESUME = "
        update outboxd.groups set paused_at = null, paused_by = null, breaker_until = null, breaker_reason = null
        where name = $1 and (paused_at is not null or breaker_until is not null)";
}

/// Who says nothing for so long is not at work.
const SILENT: Duration = Duration::from_secs(5);

/// What an agent says of itself.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    pub group: &'a str,
    pub agent: Uuid,
    pub agent_name: &'a str,
    pub at_work: AtWork,
}

/// How it is getting on.
#[derive(Clone, Copy, Debug, Default)]
pub struct AtWork {
    pub in_flight: u64,
    /// Of the last minute, 0 to 1.
    pub error_rate: f64,
    /// Handled a second, lately.
    pub rate: f64,
    /// Messages of its partitions that are not finished.
    pub lag: i64,
    pub paused_partitions: usize,
    pub takes_retries: bool,
    /// What it does with later messages of a key that failed.
    pub holds_keys: bool,
}

/// What is ordered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// By whom the group is paused.
    pub paused_by: Option<String>,
    /// In milliseconds, how long the breaker stays open; past that it is half open. `None`: closed.
    pub breaker: Option<i64>,
    pub breaker_reason: Option<String>,
    /// Agents at work for the group, this one too.
    pub members: i64,
    /// This agent takes nothing new on.
    pub drain: bool,
}

/// Says and hears; `None` if the group is not there any more.
pub async fn control(client: &Lent, member: Member<'_>) -> Result<Option<Orders>, PgError> {
    let Member { group, agent, agent_name, at_work } = member;
    let AtWork { takes_retries, holds_keys, lag, .. } = at_work;
    let in_flight = i32::try_from(at_work.in_flight).unwrap_or(i32::MAX);
    let paused_partitions = i32::try_from(at_work.paused_partitions).unwrap_or(i32::MAX);
    #[allow(clippy::cast_possible_truncation, reason = "a share from 0 to 1, and a rate for people")]
    let (error_rate, rate) = (at_work.error_rate as f32, at_work.rate as f32);
    let silent = millis(SILENT);
    let statement = client.prepare_cached(CONTROL).await?;
    let row = client
        .query_opt(
            &statement,
            &[
                &group,
                &agent,
                &agent_name,
                &in_flight,
                &error_rate,
                &takes_retries,
                &silent,
                &holds_keys,
                &lag,
                &rate,
                &paused_partitions,
            ],
        )
        .await?;
    Ok(row.map(|row| {
        let paused: bool = row.get(0);
        let by: Option<String> = row.get(1);
        Orders {
            paused_by: paused.then(|| by.unwrap_or_else(|| "an operator".into())),
            breaker: row.get(2),
            breaker_reason: row.get(3),
            members: row.get(4),
            drain: row.get(5),
        }
    }))
}

/// It takes no more retries. Returns how many it had been given and had not started: they are due again.
pub async fn stop_taking(client: &mut Lent, group: &str, agent: Uuid) -> Result<u64, PgError> {
    hand_back(client, STOP_TAKING, group, agent).await
}

/// It is not at work any more. Returns the same.
pub async fn leave(client: &mut Lent, group: &str, agent: Uuid) -> Result<u64, PgError> {
    hand_back(client, LEAVE, group, agent).await
}

/// First the row that whoever gives it retries has locked: what is given out is committed then, and more is not.
async fn hand_back(client: &mut Lent, first: &str, group: &str, agent: Uuid) -> Result<u64, PgError> {
    let transaction =
        client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?;
    transaction.execute(first, &[&group, &agent]).await?;
    let handed_back = transaction.execute(HAND_BACK_ALL, &[&group, &agent]).await?;
    transaction.commit().await?;
    Ok(handed_back)
}

/// Opens the group's breaker for all of its agents.
pub async fn open_breaker(client: &Lent, group: &str, pause: Duration, reason: &str) -> Result<(), PgError> {
    let pause = millis(pause);
    client.execute(OPEN_BREAKER, &[&group, &pause, &reason.replace('\0', "")]).await?;
    Ok(())
}

pub async fn close_breaker(client: &Lent, group: &str) -> Result<(), PgError> {
    client.execute(CLOSE_BREAKER, &[&group]).await?;
    Ok(())
}

/// Orders the group's agents to start nothing; false: it was paused already.
pub async fn pause(client: &impl GenericClient, group: &str, by: &str) -> Result<bool, PgError> {
    Ok(client.execute(PAUSE, &[&group, &by]).await? > 0)
}

/// Takes that back, and closes the breaker; false: neither was so.
pub async fn resume(client: &impl GenericClient, group: &str) -> Result<bool, PgError> {
    Ok(client.execute(RESUME, &[&group]).await? > 0)
}
