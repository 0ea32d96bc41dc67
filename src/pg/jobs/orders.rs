//! What operators order: pause, resume, run now. Each order and its record are one statement; agents obey within a second
//! or two, also those that start later. A consumer is paused by its group, which its agents hear of.

use tokio_postgres::GenericClient;

use crate::pg::connect::PgError;
use crate::pg::operations::Operator;
use crate::pg::sql::statements;

statements! {
    PAUSE = "
        with changed as (
          update outboxd.jobs set paused_at = clock_timestamp(), paused_by = $2
          where name = $1 and name not like 'consume-%' and name <> 'heartbeat' and paused_at is null and outboxd.durable()
          returning name
        ), of_group as (
          update outboxd.groups set paused_at = clock_timestamp(), paused_by = $2
          where 'consume-' || name = $1 and paused_at is null and outboxd.durable() returning name
        )
        insert into outboxd.operations (command, selection, os_user, host, ended_at, result)
        select 'jobs pause', jsonb_build_object('job', $1::text), $2, $3, clock_timestamp(),
          case when exists (select from changed union all select from of_group) then 'done' else 'it was paused already' end
        returning result = 'done'";

    /// What was due meanwhile is not made up for.
    RESUME = "
        with changed as (
          update outboxd.jobs set paused_at = null, paused_by = null, last_firing = greatest(last_firing, clock_timestamp())
          where name = $1 and paused_at is not null and outboxd.durable() returning name
        ), of_group as (
          update outboxd.groups set paused_at = null, paused_by = null
          where 'consume-' || name = $1 and paused_at is not null and outboxd.durable() returning name
        )
        insert into outboxd.operations (command, selection, os_user, host, ended_at, result)
        select 'jobs resume', jsonb_build_object('job', $1::text), $2, $3, clock_timestamp(),
          case when exists (select from changed union all select from of_group) then 'done' else 'it was not paused' end
        returning result = 'done'";

    RUN = "
        with changed as (
          update outboxd.jobs set run_requested_at = clock_timestamp(), run_requested_by = $2
          where name = $1 and enabled and outboxd.durable() returning name
        )
        insert into outboxd.operations (command, selection, os_user, host, ended_at, result)
        select 'jobs run', jsonb_build_object('job', $1::text), $2, $3, clock_timestamp(),
          case when exists (select from changed) then 'done' else 'it is switched off' end
        returning result = 'done'";
}

/// Why an order to this job makes no sense, if it makes none.
pub fn refusal(job: &str, is_to_run: bool) -> Option<&'static str> {
    match job {
        "heartbeat" => Some("an agent without a heartbeat counts as dead: it cannot be ordered"),
        consume if consume.starts_with("consume-") && is_to_run => {
            Some("it runs all the time, unless it is paused")
        }
        _ => None,
    }
}

/// Nothing of it starts by schedule any more, in the whole cluster; false: it was so already.
pub async fn pause(client: &impl GenericClient, job: &str, by: &Operator) -> Result<bool, PgError> {
    order(client, PAUSE, job, by).await
}

/// It goes on with its next firing; false: it was not paused.
pub async fn resume(client: &impl GenericClient, job: &str, by: &Operator) -> Result<bool, PgError> {
    order(client, RESUME, job, by).await
}

/// It runs as soon as it does not run; paused or not. False: it is switched off.
pub async fn run_now(client: &impl GenericClient, job: &str, by: &Operator) -> Result<bool, PgError> {
    order(client, RUN, job, by).await
}

async fn order(client: &impl GenericClient, sql: &str, job: &str, by: &Operator) -> Result<bool, PgError> {
    Ok(client.query_one(sql, &[&job, &by.os_user, &by.host]).await?.get(0))
}
