//! The board of jobs: what is due, who runs it, and how it went. A firing is claimed by compare and set on the last one,
//! with a lease that ends by itself; the end of a run names its lease.

pub mod firing;
pub mod history;
pub mod orders;
pub mod trial;

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::connect::{Connection, Connector, PgError, Prepared};
use super::sql::{millis, statements};

statements! {
    /// What is asked each second is planned once, maybe while its tables are empty, and must not read all of them later.
    BOUND = "select set_config('statement_timeout', '5s', false), set_config('enable_seqscan', 'off', false)";

    /// A schedule that is another now, or was switched off, says nothing of the time before. In order of names, so that
    /// agents that start together do not wait for each other in a circle.
    ENTER = "
        insert into outboxd.jobs as j (name, scope, role, schedule, timezone, enabled, run_requested_at, run_requested_by)
        select name, scope, role, schedule, timezone, enabled, case when at_start then clock_timestamp() end,
          case when at_start then 'start' end
        from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::boolean[], $7::boolean[])
          as entry (name, scope, role, schedule, timezone, enabled, at_start)
        order by name
        on conflict (name) do update set scope = excluded.scope, role = excluded.role, schedule = excluded.schedule,
          timezone = excluded.timezone, enabled = excluded.enabled, entered_at = clock_timestamp(),
          last_firing = case when (j.schedule, j.timezone) is distinct from (excluded.schedule, excluded.timezone)
            or (excluded.enabled and not j.enabled) then clock_timestamp() else j.last_firing end,
          run_requested_at = coalesce(j.run_requested_at, excluded.run_requested_at),
          run_requested_by = coalesce(j.run_requested_by, excluded.run_requested_by)";

    TOUCH = "update outboxd.jobs set entered_at = clock_timestamp() where name = any($1)";

    /// With what an operator has ordered for the agent itself: each second costs one statement.
    BOARD = "
        select clock_timestamp(),
          exists (select from outboxd.agents a where a.id = $3 and a.drain_ordered_at is not null),
          name, last_firing, busy_until, lease,
          coalesce(lease is not null and busy_until > clock_timestamp()
            and busy_until <= clock_timestamp() + $2::bigint * interval '2 ms', false),
          paused_at is not null, run_requested_at, run_requested_by, firing, started_at
        from outboxd.jobs where name = any($1)";

    /// A lease that ends in a far future is one of a clock that was wrong. A run that was not heard of any more is told.
    CLAIM = "
        with free as (
          select name, lease, firing, requested_by, agent, started_at from outboxd.jobs
          where name = $1 and last_firing = $2 and $4 <= clock_timestamp()
            and ($5::timestamptz is null or run_requested_at = $5) and ($5 is not null or paused_at is null)
            and (lease is null or busy_until <= clock_timestamp()
              or busy_until > clock_timestamp() + $8::bigint * interval '2 ms')
            and ($11::uuid is null or lease = $11)
          for update skip locked
        ), lost as (
          insert into outboxd.job_runs (job, firing, requested_by, started_at, agent, result, error)
          select name, firing, requested_by, started_at, agent, 'lost', 'its agent was not heard of any more'
          from free where lease is not null
        ), told as (
          insert into outboxd.job_runs (job, firing, agent, result, error)
          select name, $4, $6, 'missed', $10 from free where $10::text is not null
        )
        update outboxd.jobs j set last_firing = $3, lease = $7, busy_until = clock_timestamp() + $8::bigint * interval '1 ms',
          firing = $4, agent = $6, started_at = clock_timestamp(), ended_at = null, result = null, error = null,
          requested_by = case when $5 is not null then j.run_requested_by end,
          run_requested_at = case when $5 is null then j.run_requested_at end,
          run_requested_by = case when $5 is null then j.run_requested_by end,
          runs = j.runs + 1, missed = j.missed + $9
        from free where j.name = free.name";

    PASS = "
        with passed as (
          update outboxd.jobs set last_firing = $3, missed = missed + $5
          where name = $1 and last_firing = $2 and $3 <= clock_timestamp() and paused_at is null returning name
        )
        insert into outboxd.job_runs (job, firing, agent, result, error)
        select name, $3, $4, 'missed', $6 from passed where $6::text is not null";

    RENEW = "
        update outboxd.jobs set busy_until = clock_timestamp() + $2::bigint * interval '1 ms' where lease = any($1)
        returning lease";

    END = "
        with ended as (
          update outboxd.jobs set lease = null, busy_until = clock_timestamp(), ended_at = clock_timestamp(), result = $3,
            error = $4, succeeded_at = case when $3 = 'done' then clock_timestamp() else succeeded_at end
          where lease = $2 and name = $1 returning name, firing, requested_by, started_at, ended_at, agent
        ), kept as (
          insert into outboxd.job_runs (job, firing, requested_by, started_at, ended_at, agent, result, error, rows)
          select name, firing, requested_by, started_at, ended_at, agent, $3, $4, $5 from ended where $6::boolean
        )
        select count(*) from ended";

    /// Of a job that each agent runs for itself: no claim, and the board shows the run that ended last.
    NOTE = "
        with noted as (
          update outboxd.jobs set firing = $2, requested_by = $3, agent = $4,
            started_at = clock_timestamp() - $5::bigint * interval '1 ms', ended_at = clock_timestamp(), result = $6,
            error = $7, succeeded_at = case when $6 = 'done' then clock_timestamp() else succeeded_at end,
            runs = runs + 1
          where name = $1 returning name, firing, requested_by, started_at, ended_at, agent
        )
        insert into outboxd.job_runs (job, firing, requested_by, started_at, ended_at, agent, result, error, rows)
        select name, firing, requested_by, started_at, ended_at, agent, $6, $7, $8 from noted where $9::boolean";
}

/// A job as an agent has it.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    pub name: &'a str,
    pub scope: &'static str,
    pub role: &'static str,
    pub schedule: String,
    pub timezone: &'static str,
    pub enabled: bool,
    /// A run is wanted now.
    pub at_start: bool,
}

/// A job as the board has it.
#[derive(Clone, Debug)]
pub struct Standing {
    pub last_firing: DateTime<Utc>,
    pub busy_until: Option<DateTime<Utc>>,
    /// Of a run that has not told its end, be it under way or lost.
    pub lease: Option<Uuid>,
    /// It is under way.
    pub is_running: bool,
    pub is_paused: bool,
    pub run_requested_at: Option<DateTime<Utc>>,
    pub run_requested_by: Option<String>,
    /// Of the run under way, or the last one.
    pub firing: Option<DateTime<Utc>>,
    pub started_at: Option<DateTime<Utc>>,
}

/// What an agent wants to start.
#[derive(Clone, Debug)]
pub struct Claim {
    pub name: String,
    /// As the board had it, and what is to be there.
    pub last_firing: DateTime<Utc>,
    pub new_last_firing: DateTime<Utc>,
    pub firing: DateTime<Utc>,
    /// The order that it obeys, if it was not due.
    pub requested: Option<DateTime<Utc>>,
    pub agent: String,
    pub lease: Uuid,
    /// The lease of the lost run that is done again; another may have done it.
    pub lost: Option<Uuid>,
    pub missed: u32,
    /// In words, if firings went by.
    pub note: Option<String>,
}

impl Claim {
    fn params<'a>(&'a self, lasts: &'a i64, missed: &'a i64) -> [&'a (dyn ToSql + Sync); 11] {
        let Self { name, last_firing, new_last_firing, firing, requested, agent, lease, lost, note, .. } =
            self;
        [name, last_firing, new_last_firing, firing, requested, agent, lease, lasts, missed, note, lost]
    }
}

/// What an agent sees when it looks.
#[derive(Debug)]
pub struct Look {
    /// By the database's clock.
    pub now: DateTime<Utc>,
    /// An operator has taken the agent out of service.
    pub is_ordered_out: bool,
    pub standings: HashMap<String, Standing>,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct End {
    pub result: &'static str,
    pub error: Option<String>,
    pub rows: Option<i64>,
    /// There is something to tell in the history.
    pub is_kept: bool,
}

/// How long a claim holds if nobody renews it.
pub const LEASE: Duration = Duration::from_secs(30);

/// The runner's connection to the board.
pub struct Board {
    client: Connection,
    look: Prepared,
}

impl Board {
    pub async fn open(connector: &Connector) -> Result<Self, PgError> {
        let client = connector.connect().await?;
        client.set(BOUND).await?;
        let look = client.prepare(BOARD).await?;
        Ok(Self { client, look })
    }

    pub fn client(&self) -> &Connection {
        &self.client
    }

    pub async fn enter(&self, entries: &[Entry<'_>]) -> Result<(), PgError> {
        fn column<'e, T>(entries: &'e [Entry<'_>], of: impl Fn(&'e Entry<'_>) -> T) -> Vec<T> {
            entries.iter().map(of).collect()
        }
        self.client
            .execute(
                ENTER,
                &[
                    &column(entries, |entry| entry.name),
                    &column(entries, |entry| entry.scope),
                    &column(entries, |entry| entry.role),
                    &column(entries, |entry| entry.schedule.as_str()),
                    &column(entries, |entry| entry.timezone),
                    &column(entries, |entry| entry.enabled),
                    &column(entries, |entry| entry.at_start),
                ],
            )
            .await?;
        Ok(())
    }

    /// Says that this agent still has them.
    pub async fn touch(&self, names: &[&str]) -> Result<(), PgError> {
        self.client.execute(TOUCH, &[&names]).await?;
        Ok(())
    }

    /// The database's time, what it has of these jobs, and what is ordered for the agent.
    pub async fn look(&self, names: &[&str], agent: Uuid) -> Result<Look, PgError> {
        let rows = self.client.query(&self.look, &[&names, &millis(LEASE), &agent]).await?;
        let Some(first) = rows.first() else {
            return Err(PgError::Setup("no job of this agent is on the board any more".into()));
        };
        let standings = rows.iter().map(|row| {
            let standing = Standing {
                last_firing: row.get(3),
                busy_until: row.get(4),
                lease: row.get(5),
                is_running: row.get(6),
                is_paused: row.get(7),
                run_requested_at: row.get(8),
                run_requested_by: row.get(9),
                firing: row.get(10),
                started_at: row.get(11),
            };
            (row.get(2), standing)
        });
        Ok(Look { now: first.get(0), is_ordered_out: first.get(1), standings: standings.collect() })
    }

    /// False: another was first, or it is paused, or not due by the database's clock.
    pub async fn claim(&self, claim: &Claim) -> Result<bool, PgError> {
        Ok(self.client.execute(CLAIM, &claim.params(&millis(LEASE), &i64::from(claim.missed))).await? > 0)
    }

    /// Uses firings up without a start; false: another was first.
    pub async fn pass(
        &self,
        name: &str,
        last_firing: DateTime<Utc>,
        to: DateTime<Utc>,
        agent: &str,
        missed: u32,
        note: Option<&str>,
    ) -> Result<bool, PgError> {
        let missed = i64::from(missed);
        Ok(self.client.execute(PASS, &[&name, &last_firing, &to, &agent, &missed, &note]).await? > 0)
    }

    /// Those of the leases that still hold.
    pub async fn renew(&self, leases: &[Uuid]) -> Result<Vec<Uuid>, PgError> {
        let rows = self.client.query(RENEW, &[&leases, &millis(LEASE)]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// False: its lease had ended, and another may be at work.
    pub async fn end(&self, name: &str, lease: Uuid, end: &End) -> Result<bool, PgError> {
        let End { result, error, rows, is_kept } = end;
        let error = error.as_deref().map(without_nul);
        let row = self.client.query_one(END, &[&name, &lease, result, &error, rows, is_kept]).await?;
        Ok(row.get::<_, i64>(0) > 0)
    }

    /// Tells of a run that needed no claim.
    pub async fn note(
        &self,
        name: &str,
        firing: DateTime<Utc>,
        requested_by: Option<&str>,
        agent: &str,
        took: Duration,
        end: &End,
    ) -> Result<(), PgError> {
        let End { result, error, rows, is_kept } = end;
        let (error, took) = (error.as_deref().map(without_nul), millis(took));
        self.client
            .execute(NOTE, &[&name, &firing, &requested_by, &agent, &took, result, &error, rows, is_kept])
            .await?;
        Ok(())
    }
}

/// Text of Postgres has no room for it.
fn without_nul(text: &str) -> String {
    text.replace('\0', "")
}
