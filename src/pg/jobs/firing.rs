//! A firing of a user's job in one transaction: the claim, its condition, its statement or message, and the record of the
//! run. So whatever dies on the way, the firing is done once, or it is due as before.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{IsolationLevel, Transaction};

use super::{CLAIM, Claim, END, End, LEASE};
use crate::config::job::{Action, Message, Own};
use crate::domain::job_text::fill;
use crate::failpoint;
use crate::pg::connect::{Connection, PgError, describe, is_conflict, is_connection};
use crate::pg::sql::{millis, statements};

statements! {
    /// A process that is frozen in the middle holds the board's row no longer than this.
    BOUND = "set local idle_in_transaction_session_timeout = '15s'";

    DURABLE = "select outboxd.durable()";

    /// Whether a condition may fire now: it was false since it last did, and that is long enough ago.
    WATCH = "
        select armed, fired_at is null or fired_at + $3::bigint * interval '1 ms' <= clock_timestamp() from outboxd.jobs
        where name = $1 and last_firing = $2 and $4 <= clock_timestamp() and paused_at is null
          and (lease is null or busy_until <= clock_timestamp())
        for update skip locked";

    WATCHED = "update outboxd.jobs set last_firing = $2, armed = armed or not $3::boolean where name = $1";

    FIRED = "update outboxd.jobs set armed = false, fired_at = clock_timestamp() where name = $1";

    ENQUEUE = "
        select outboxd.enqueue($1::text, $2::bytea, key => $3::text, type => $4::text, headers => $5::jsonb,
          idempotency_key => $6::text)";
}

/// What became of a firing.
#[derive(Debug)]
pub enum Fired {
    /// Another was first, or it is paused.
    NotOurs,
    /// Its `on` was asked, and there is no reason to run.
    Quiet,
    /// It is claimed; what is to be done happens outside of the database, under the lease.
    Leased,
    /// It is over. The board knows, if there was a claim.
    Ended(End),
}

/// Fires. Without a claim each agent runs the job for itself. An error leaves the firing as it was.
pub async fn fire(
    client: &mut Connection,
    name: &str,
    firing: DateTime<Utc>,
    claim: Option<&Claim>,
    own: &Own,
    timeout: Duration,
) -> Result<Fired, PgError> {
    let until = Instant::now() + timeout;
    let mut transaction =
        client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?;
    transaction.batch_execute(BOUND).await?;
    transaction.execute(DURABLE, &[]).await?;
    let wanted = match claim {
        // Who asks for a run asks for no condition to become true.
        Some(Claim { requested: Some(_), .. }) | None => Ok(true),
        Some(claim) => match watch(&mut transaction, claim, own, until).await? {
            Watched::NotOurs => return Ok(Fired::NotOurs),
            Watched::Quiet(condition) => {
                transaction.execute(WATCHED, &[&name, &claim.new_last_firing, &condition]).await?;
                transaction.commit().await?;
                return Ok(Fired::Quiet);
            }
            Watched::Fires => Ok(true),
            Watched::Failed(end) => Err(end),
        },
    };
    if let Some(claim) = claim
        && !take(&transaction, claim).await?
    {
        return Ok(Fired::NotOurs);
    }
    // One that could not be asked has not fired.
    if wanted.is_ok() && own.on.is_some() && claim.is_some() {
        transaction.execute(FIRED, &[&name]).await?;
    }
    let done = match wanted {
        Ok(_) => act(&mut transaction, name, firing, own, until).await?,
        Err(end) => Some(end),
    };
    let Some(end) = done else {
        transaction.commit().await?;
        return Ok(Fired::Leased);
    };
    if let Some(claim) = claim {
        let End { result, error, rows, is_kept } = &end;
        transaction.query_one(END, &[&name, &claim.lease, result, error, rows, is_kept]).await?;
    }
    failpoint::hit("job-before-commit");
    transaction.commit().await?;
    Ok(Fired::Ended(end))
}

async fn take(transaction: &Transaction<'_>, claim: &Claim) -> Result<bool, PgError> {
    let claimed = transaction.execute(CLAIM, &claim.params(&millis(LEASE), &i64::from(claim.missed))).await?;
    Ok(claimed > 0)
}

enum Watched {
    NotOurs,
    /// With what the condition said.
    Quiet(bool),
    Fires,
    Failed(End),
}

async fn watch(
    transaction: &mut Transaction<'_>,
    claim: &Claim,
    own: &Own,
    until: Instant,
) -> Result<Watched, PgError> {
    let Some(on) = &own.on else { return Ok(Watched::Fires) };
    let cooldown = millis(own.cooldown);
    let row =
        transaction.query_opt(WATCH, &[&claim.name, &claim.last_firing, &cooldown, &claim.firing]).await?;
    let Some(row) = row else { return Ok(Watched::NotOurs) };
    let may_fire = row.get::<_, bool>(0) && row.get(1);
    let point = transaction.transaction().await?;
    let asked = async {
        limit(&point, own, until).await?;
        ask(&point, on).await
    };
    Ok(match asked.await {
        Ok(condition) => {
            leave(point).await?;
            if condition && may_fire { Watched::Fires } else { Watched::Quiet(condition) }
        }
        Err(trouble) => {
            point.rollback().await?;
            Watched::Failed(trouble.end("`on`")?)
        }
    })
}

/// `None`: it is for others to act.
async fn act(
    transaction: &mut Transaction<'_>,
    name: &str,
    firing: DateTime<Utc>,
    own: &Own,
    until: Instant,
) -> Result<Option<End>, PgError> {
    let point = transaction.transaction().await?;
    let asked = async {
        limit(&point, own, until).await?;
        match &own.when {
            Some(when) => ask(&point, when).await,
            None => Ok(true),
        }
    };
    let is_wanted = match asked.await {
        Ok(is_wanted) => is_wanted,
        Err(trouble) => {
            point.rollback().await?;
            return trouble.end("`when`").map(Some);
        }
    };
    if !is_wanted {
        leave(point).await?;
        return Ok(Some(ended("skipped", Some("`when` is not true".into()), None)));
    }
    let done = async {
        let rows = match &own.action {
            Action::Sql { statement } => run(&point, statement, firing).await?,
            Action::Enqueue(message) => enqueue(&point, message, name, firing).await?,
            Action::Http { .. } | Action::Exec { .. } => return Ok::<_, Trouble>(None),
        };
        point.batch_execute("set constraints all immediate").await?;
        Ok(Some(rows))
    };
    match done.await {
        Ok(rows) => {
            leave(point).await?;
            Ok(rows.map(|rows| ended("done", None, Some(rows))))
        }
        Err(trouble) => {
            point.rollback().await?;
            trouble.end("the action").map(Some)
        }
    }
}

/// The user's statements run for so long, and as whom he says.
pub(super) async fn limit(point: &Transaction<'_>, own: &Own, until: Instant) -> Result<(), Trouble> {
    let left = until.saturating_duration_since(Instant::now()).min(own.statement_timeout).as_millis().max(1);
    point.batch_execute(&format!("set local statement_timeout = {left}")).await?;
    if let Some(role) = &own.run_as {
        point.batch_execute(&format!("set local role \"{}\"", role.replace('"', "\"\""))).await?;
    }
    Ok(())
}

/// Ours again.
async fn leave(point: Transaction<'_>) -> Result<(), PgError> {
    point.batch_execute("reset role; set local statement_timeout to default").await?;
    Ok(point.commit().await?)
}

pub(super) async fn ask(point: &Transaction<'_>, condition: &str) -> Result<bool, Trouble> {
    let statement = point.prepare(condition).await?;
    if !matches!(statement.columns(), [column] if *column.type_() == Type::BOOL) {
        return Err(Trouble::Said("must give one boolean".into()));
    }
    let rows = point.query(&statement, &[]).await?;
    match &rows[..] {
        [row] => Ok(row.get::<_, Option<bool>>(0).unwrap_or(false)),
        rows => Err(Trouble::Said(format!("must give one boolean, and gave {} rows", rows.len()))),
    }
}

/// A parameter, if there is one, is the firing's time.
async fn run(point: &Transaction<'_>, sql: &str, firing: DateTime<Utc>) -> Result<i64, Trouble> {
    let statement = point.prepare_typed(sql, &[Type::TIMESTAMPTZ]).await?;
    let rows = match statement.params() {
        [] => point.execute(&statement, &[]).await?,
        [Type::TIMESTAMPTZ] => point.execute(&statement, &[&firing]).await?,
        _ => {
            return Err(Trouble::Said(
                "may have one parameter, $1, the time of the firing as a timestamptz".into(),
            ));
        }
    };
    Ok(i64::try_from(rows).unwrap_or(i64::MAX))
}

async fn enqueue(
    point: &Transaction<'_>,
    message: &Message,
    name: &str,
    firing: DateTime<Utc>,
) -> Result<i64, Trouble> {
    let Message { topic, key, payload, event_type, headers, idempotency_key } = message;
    let fill = |text: &String| fill(text, name, firing);
    let payload = fill(payload);
    let mut filled: Map<String, Value> =
        headers.iter().map(|(name, text)| (name.clone(), fill(text).into())).collect();
    let is_told = filled.keys().any(|name| name.eq_ignore_ascii_case("content-type"));
    if !is_told && serde_json::from_str::<Value>(&payload).is_ok() {
        filled.insert("content-type".into(), "application/json".into());
    }
    let (key, idempotency_key) = (key.as_ref().map(fill), idempotency_key.as_ref().map(fill));
    let headers = Value::Object(filled);
    point
        .query_one(ENQUEUE, &[topic, &payload.as_bytes(), &key, event_type, &headers, &idempotency_key])
        .await?;
    Ok(1)
}

fn ended(result: &'static str, error: Option<String>, rows: Option<i64>) -> End {
    End { result, error, rows, is_kept: true }
}

/// What went wrong with a statement of the user's.
pub(super) enum Trouble {
    Database(tokio_postgres::Error),
    Said(String),
}

impl From<tokio_postgres::Error> for Trouble {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Database(error)
    }
}

impl Trouble {
    /// The end of the run; a lost connection or a conflict is nobody's fault, and the firing stays due.
    pub(super) fn end(self, of: &str) -> Result<End, PgError> {
        match self {
            Self::Database(error) if is_connection(&error) || is_conflict(&error) => Err(error.into()),
            Self::Database(error) => {
                let is_cut = error.code() == Some(&SqlState::QUERY_CANCELED);
                let words = format!("{of}: {}", describe(&error)).replace('\0', "");
                Ok(ended(if is_cut { "cut" } else { "failed" }, Some(words), None))
            }
            Self::Said(words) => Ok(ended("failed", Some(format!("{of} {words}")), None)),
        }
    }
}
