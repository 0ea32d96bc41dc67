//! A job of the user's tried out: its conditions asked and its statement understood, as who runs it, and nothing changed.

use std::time::Instant;

use tokio_postgres::Transaction;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use super::firing::{Trouble, ask, limit};
use crate::config::job::{Action, Own};
use crate::pg::connect::{Connection, PgError};

/// What is wrong with it, if something is.
pub async fn try_out(client: &mut Connection, own: &Own) -> Result<Option<String>, PgError> {
    let mut transaction = client.build_transaction().read_only(true).start().await?;
    for (what, condition) in [("`on`", &own.on), ("`when`", &own.when)] {
        let Some(condition) = condition else { continue };
        // What fails is undone, so that the rest can be tried.
        let point = transaction.transaction().await?;
        let asked = asked(&point, own, condition).await;
        point.rollback().await?;
        if let Err(trouble) = asked
            && let Some(words) = said(trouble, what)?
        {
            return Ok(Some(words));
        }
    }
    let Action::Sql { statement } = &own.action else { return Ok(None) };
    match understood(&transaction, own, statement).await {
        Ok(()) => Ok(None),
        Err(trouble) => said(trouble, "the action"),
    }
}

async fn asked(transaction: &Transaction<'_>, own: &Own, condition: &str) -> Result<(), Trouble> {
    limit(transaction, own, Instant::now() + own.statement_timeout).await?;
    ask(transaction, condition).await.map(drop)
}

/// Whether there are the rights for it, only running it would tell.
async fn understood(transaction: &Transaction<'_>, own: &Own, statement: &str) -> Result<(), Trouble> {
    limit(transaction, own, Instant::now() + own.statement_timeout).await?;
    transaction.prepare_typed(statement, &[Type::TIMESTAMPTZ]).await?;
    Ok(())
}

fn said(trouble: Trouble, what: &str) -> Result<Option<String>, PgError> {
    // One that writes cannot be tried, and may be right.
    if matches!(&trouble, Trouble::Database(error) if error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION))
    {
        return Ok(None);
    }
    Ok(trouble.end(what)?.error)
}
