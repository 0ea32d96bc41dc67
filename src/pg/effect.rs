//! The effects of an `sql` handler and their evidence: one transaction, so that they happen exactly once.

mod calling;
mod together;

use std::time::Duration;

use deadpool_postgres::Transaction;

use super::claims::{self, Claimant, Claimed, OperationKey, Wanted};
use super::completing::{self, Finished, Scope};
use super::connect::{PgError, is_conflict, is_connection, is_cut};
use super::pool::Lent;
use crate::domain::chains::Chain;
use crate::domain::delivery::Delivery;
use crate::failpoint;

use self::calling::Then;

pub use together::{Bounds, Together, apply_together};

/// What is called.
#[derive(Clone, Copy, Debug)]
pub struct Function<'a> {
    /// An identifier that the configuration has checked.
    pub name: &'a str,
    /// It takes an array of deliveries.
    pub takes_batch: bool,
    /// In milliseconds, and never 0, which would be no limit.
    pub statement_timeout: i32,
}

impl Function<'_> {
    /// What a call may take.
    pub fn limit(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.statement_timeout).unwrap_or(0))
    }
}

/// A message whose effect is a function of the database.
#[derive(Clone, Copy, Debug)]
pub struct Effect<'a> {
    pub delivery: &'a Delivery,
    /// One that is not done lets none behind it in its chain be done.
    pub chain: Option<Chain>,
    pub keys: &'a [OperationKey],
    pub payload_hash: i64,
}

impl<'a> Effect<'a> {
    fn wanted(&self) -> Wanted<'a> {
        Wanted { message_id: self.delivery.message_id, payload_hash: self.payload_hash, keys: self.keys }
    }

    fn finished(&self) -> Finished {
        Finished::new(self.delivery.message_id, &self.delivery.record, self.delivery.attempt)
    }
}

/// What became of it; only `Done` has left anything behind.
#[derive(Debug)]
pub enum Affected {
    Done,
    /// There is evidence already.
    Repeat,
    /// Another message has done this operation.
    Duplicate {
        by: uuid::Uuid,
        same_payload: bool,
    },
    /// Another start holds a key now.
    Busy,
    /// The function refused, by an exception of its own or by its time, or what it did was refused at the commit.
    Failed(tokio_postgres::Error),
    /// One before it in its chain is not done, or too many have failed in a row.
    Untried,
    /// It failed behind others of its transaction, which may have left it something: only alone it is judged.
    Unjudged,
    /// The connection was lost while the function ran: it may be what ends it.
    Lost,
}

impl Affected {
    /// Its connection is of no use any more.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost)
    }
}

/// Does it. An error of the connection, or of COMMIT, leaves open whether it was done: the next try finds out, for the
/// evidence comes first and waits for whoever is inserting the same.
pub async fn apply(
    client: &mut Lent,
    scope: Scope<'_>,
    function: Function<'_>,
    effect: Effect<'_>,
) -> Result<Affected, PgError> {
    let transaction = client.transaction().await?;
    completing::be_durable(&transaction).await?;
    let affected = perform_last(&transaction, scope, function, effect).await?;
    if !matches!(affected, Affected::Done) {
        return Ok(affected);
    }
    failpoint::hit("effect-before-commit");
    let committed = transaction.commit().await;
    failpoint::hit("effect-after-commit");
    match committed {
        Err(error) if is_refusal(&error) => Ok(Affected::Failed(error)),
        committed => Ok(committed.map(|()| Affected::Done)?),
    }
}

/// Evidence, keys and effect, in this transaction with nothing else behind them that may be put off. See `perform`.
pub(super) async fn perform_last(
    transaction: &Transaction<'_>,
    scope: Scope<'_>,
    function: Function<'_>,
    effect: Effect<'_>,
) -> Result<Affected, PgError> {
    perform(transaction, scope, function, effect, Then::Commit).await
}

/// Evidence, keys and effect, in this transaction, which is to be rolled back unless they are done.
async fn perform(
    transaction: &Transaction<'_>,
    scope: Scope<'_>,
    function: Function<'_>,
    effect: Effect<'_>,
    then: Then,
) -> Result<Affected, PgError> {
    if completing::write(transaction, scope, &[effect.finished()]).await? == 0 {
        return Ok(Affected::Repeat);
    }
    let claimant = Claimant { group: scope.group, agent: scope.agent };
    if !claims::claim_done(transaction, claimant, &[effect.wanted()]).await? {
        let done = claims::find_done(transaction, scope.group, &[effect.wanted()]).await?.pop().flatten();
        return Ok(done.map_or(Affected::Busy, |done| duplicate(&done)));
    }
    match calling::call(transaction, function, &[effect], then).await {
        Ok(()) => Ok(Affected::Done),
        Err(error) if is_cut(&error) => Ok(Affected::Lost),
        Err(error) if is_refusal(&error) || is_of_client(&error) => Ok(Affected::Failed(error)),
        Err(error) => Err(error.into()),
    }
}

/// Of a call that is not cut: what was to be said, or was answered, makes no sense.
fn is_of_client(error: &tokio_postgres::Error) -> bool {
    error.code().is_none()
}

fn duplicate(done: &Claimed) -> Affected {
    match *done {
        Claimed::Done { by, same_payload } => Affected::Duplicate { by, same_payload },
        Claimed::All(_) | Claimed::Busy => Affected::Busy,
    }
}

/// The server's own answer to what was asked, and so nothing of it is done.
pub(super) fn is_refusal(error: &tokio_postgres::Error) -> bool {
    !is_connection(error) && !is_conflict(error)
}
