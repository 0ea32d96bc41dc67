//! What operators order for a job, from wherever they do. The order stands in the database: every agent obeys within a second
//! or two, also those that start later. A consumer is paused by its group, which its agents hear of; before that has begun,
//! by its job, whose pause the group takes over.

use serde_json::json;
use tokio_postgres::Transaction;

use crate::pg::connect::{Connection, PgError};
use crate::pg::control;
use crate::pg::operations::{OnRecord, Operator};
use crate::pg::sql::statements;

statements! {
    /// Of a consumer, while its group has not begun.
    LOCK = "select from outboxd.jobs where name = $1 for update";

    PAUSE = "
        update outboxd.jobs set paused_at = clock_timestamp(), paused_by = $2
        where name = $1 and paused_at is null and outboxd.durable()
          and not exists (select from outboxd.groups g where 'consume-' || g.name = $1)";

    /// What was due meanwhile is not made up for.
    RESUME = "
        update outboxd.jobs set paused_at = null, paused_by = null, last_firing = greatest(last_firing, clock_timestamp())
        where name = $1 and paused_at is not null and outboxd.durable()";

    RUN = "
        update outboxd.jobs set run_requested_at = clock_timestamp(), run_requested_by = $2
        where name = $1 and enabled and entered_at > clock_timestamp() - interval '1 hour' and outboxd.durable()";
}

/// What the job of a group's consumers is called, before the group's name.
const CONSUMER: &str = "consume-";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobOrder {
    /// As soon as it does not run; paused or not.
    Run,
    /// Nothing of it starts by schedule any more, in the whole cluster.
    Pause,
    /// It goes on with its next firing.
    Resume,
}

/// Why an order is not carried out.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// It makes no sense for this job.
    #[error("{0}")]
    Refused(&'static str),
    #[error(transparent)]
    Database(#[from] PgError),
}

impl JobOrder {
    /// As commands, paths and the record call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Pause => "pause",
            Self::Resume => "resume",
        }
    }

    /// Why it makes no sense for that job, however it stands.
    pub fn refusal(self, job: &str) -> Option<&'static str> {
        match (self, job) {
            (_, "heartbeat") => Some("an agent without a heartbeat counts as dead: it cannot be ordered"),
            (Self::Run, job) if job.starts_with(CONSUMER) => {
                Some("it runs all the time, unless it is paused")
            }
            _ => None,
        }
    }

    fn command(self) -> &'static str {
        match self {
            Self::Run => "jobs run",
            Self::Pause => "jobs pause",
            Self::Resume => "jobs resume",
        }
    }

    /// Says whether that changed anything. The job is on the board.
    pub async fn carry_out(
        self,
        client: &mut Connection,
        job: &str,
        by: &Operator,
    ) -> Result<bool, OrderError> {
        if let Some(reason) = self.refusal(job) {
            return Err(OrderError::Refused(reason));
        }
        let group = job.strip_prefix(CONSUMER);
        let selection = json!({ "job": job });
        let order = OnRecord::begin(client, self.command(), &selection, by).await?;
        let client = &order.transaction;
        let changed = self.change(client, job, group, &by.to_string()).await;
        match (self, order.end(changed).await?) {
            (Self::Run, false) => {
                Err(OrderError::Refused("it is switched off in the file, or no agent has it any more"))
            }
            (_, changed) => Ok(changed),
        }
    }

    async fn change(
        self,
        client: &Transaction<'_>,
        job: &str,
        group: Option<&str>,
        by: &str,
    ) -> Result<bool, PgError> {
        if let Some(group) = group {
            client.execute(LOCK, &[&job]).await?;
            let changed = match self {
                Self::Run => false,
                Self::Pause => control::pause(client, group, by).await?,
                Self::Resume => control::resume(client, group).await?,
            };
            if changed {
                return Ok(true);
            }
        }
        let changed = match self {
            Self::Run => client.execute(RUN, &[&job, &by]).await?,
            Self::Pause => client.execute(PAUSE, &[&job, &by]).await?,
            Self::Resume => client.execute(RESUME, &[&job]).await?,
        };
        Ok(changed > 0)
    }
}
