//! The board and the history, for those who look.

use std::time::Duration;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde::Serialize;
use tokio_postgres::{GenericClient, Row};
use utoipa::ToSchema;

use crate::domain::schedule::Schedule;
use crate::pg::connect::PgError;
use crate::pg::sql::{millis, statements};

statements! {
    /// A service runs unless it is paused; a consumer is paused by its group.
    LIST = "
        select j.name, scope, role, schedule, timezone,
          case when not enabled then 'disabled'
            when coalesce(j.paused_at, g.paused_at) is not null and lease is null then 'paused'
            when entered_at < clock_timestamp() - interval '1 hour' then 'absent'
            when (lease is not null and busy_until > clock_timestamp()) or (scope = 'agent' and schedule = 'continuous') then 'running'
            else 'waiting' end,
          coalesce(j.paused_at, g.paused_at), coalesce(j.paused_by, g.paused_by), run_requested_at, run_requested_by, firing,
          requested_by, agent, started_at, ended_at, result, error, succeeded_at, runs, missed, clock_timestamp()
        from outboxd.jobs j left join outboxd.groups g on j.name = 'consume-' || g.name
        where $1::text is null or j.name = $1 order by j.name";

    RUNS = "
        select id, job, firing, requested_by, started_at, ended_at, agent, result, error, rows
        from outboxd.job_runs
        where ($1::text is null or job = $1) and ($2::bigint is null or id < $2) order by id desc limit $3";

    FORGET_RUNS = "
        delete from outboxd.job_runs where id in (
          select id from outboxd.job_runs where ended_at < clock_timestamp() - $1::bigint * interval '1 ms' limit $2)";

    /// Runs that nobody will do again or tell of: their job was switched off or left the file, and then they were not heard
    /// of any more.
    TELL_LOST = "
        with lost as (
          select name, firing, requested_by, started_at, agent, 'lost' as result,
            'its agent was not heard of any more, and no other has the job' as error
          from outboxd.jobs
          where lease is not null and busy_until < clock_timestamp()
            and (not enabled or entered_at < clock_timestamp() - interval '1 hour')
          for update skip locked
        ), told as (
          update outboxd.jobs j set lease = null, ended_at = clock_timestamp(), result = lost.result, error = lost.error
          from lost where j.name = lost.name
        )
        insert into outboxd.job_runs (job, firing, requested_by, started_at, agent, result, error)
        select name, firing, requested_by, started_at, agent, result, error from lost";

    /// Jobs that no agent has had for a month, and none runs.
    FORGET_JOBS = "
        delete from outboxd.jobs where entered_at < clock_timestamp() - interval '30 days'
          and (lease is null or busy_until < clock_timestamp())";
}

/// How many firings ahead are told.
const AHEAD: usize = 5;

/// A line of `jobs list`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Job {
    pub name: String,
    pub scope: String,
    pub role: String,
    pub schedule: String,
    pub timezone: String,
    pub state: String,
    pub paused_at: Option<DateTime<Utc>>,
    pub paused_by: Option<String>,
    pub run_requested_at: Option<DateTime<Utc>>,
    pub run_requested_by: Option<String>,
    /// Of the run under way, or the last one: its nominal time.
    pub firing: Option<DateTime<Utc>>,
    /// Who wanted it; `None`: it was due.
    pub requested_by: Option<String>,
    pub agent: Option<String>,
    pub started_at: Option<DateTime<Utc>>,
    pub ended_at: Option<DateTime<Utc>>,
    pub result: Option<String>,
    pub error: Option<String>,
    pub succeeded_at: Option<DateTime<Utc>>,
    pub runs: i64,
    pub missed: i64,
    /// The next firings; none of one that is always due, paused or switched off.
    pub next: Vec<DateTime<Utc>>,
}

/// A line of `jobs history`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Run {
    pub id: i64,
    pub job: String,
    pub firing: DateTime<Utc>,
    pub requested_by: Option<String>,
    pub started_at: Option<DateTime<Utc>>,
    pub ended_at: DateTime<Utc>,
    pub agent: String,
    pub result: String,
    pub error: Option<String>,
    pub rows: Option<i64>,
}

/// Every job that an agent has entered, or that one.
pub async fn list(client: &impl GenericClient, name: Option<&str>) -> Result<Vec<Job>, PgError> {
    Ok(client.query(LIST, &[&name]).await?.iter().map(job).collect())
}

/// The newest first; `before` pages on.
pub async fn runs(
    client: &impl GenericClient,
    job: Option<&str>,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<Run>, PgError> {
    Ok(client.query(RUNS, &[&job, &before, &limit]).await?.iter().map(run).collect())
}

/// Tells of runs that were lost with their job.
pub async fn tell_lost(client: &impl GenericClient) -> Result<u64, PgError> {
    Ok(client.execute(TELL_LOST, &[]).await?)
}

/// Forgets runs older than that, up to `limit`, and jobs that nobody has any more; says how many runs.
pub async fn forget(client: &impl GenericClient, kept: Duration, limit: i64) -> Result<u64, PgError> {
    client.execute(FORGET_JOBS, &[]).await?;
    Ok(client.execute(FORGET_RUNS, &[&millis(kept), &limit]).await?)
}

fn job(row: &Row) -> Job {
    let (schedule, timezone, state): (String, String, String) = (row.get(3), row.get(4), row.get(5));
    let next = if matches!(state.as_str(), "paused" | "disabled") {
        Vec::new()
    } else {
        firings_ahead(&schedule, &timezone, row.get(20))
    };
    Job {
        name: row.get(0),
        scope: row.get(1),
        role: row.get(2),
        schedule,
        timezone,
        state,
        paused_at: row.get(6),
        paused_by: row.get(7),
        run_requested_at: row.get(8),
        run_requested_by: row.get(9),
        firing: row.get(10),
        requested_by: row.get(11),
        agent: row.get(12),
        started_at: row.get(13),
        ended_at: row.get(14),
        result: row.get(15),
        error: row.get(16),
        succeeded_at: row.get(17),
        runs: row.get(18),
        missed: row.get(19),
        next,
    }
}

/// None of what a newer outboxd wrote and this one cannot read.
fn firings_ahead(schedule: &str, timezone: &str, now: DateTime<Utc>) -> Vec<DateTime<Utc>> {
    let schedule = timezone.parse::<Tz>().ok().and_then(|timezone| Schedule::parse(schedule, timezone).ok());
    schedule.map(|schedule| schedule.after(now).take(AHEAD).collect()).unwrap_or_default()
}

fn run(row: &Row) -> Run {
    Run {
        id: row.get(0),
        job: row.get(1),
        firing: row.get(2),
        requested_by: row.get(3),
        started_at: row.get(4),
        ended_at: row.get(5),
        agent: row.get(6),
        result: row.get(7),
        error: row.get(8),
        rows: row.get(9),
    }
}
