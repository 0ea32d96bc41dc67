//! Connections that many tasks share. One that may be broken is not lent again.

use std::time::Duration;

use deadpool_postgres::{Object, PoolError};

use super::connect::{Connector, PgError, QueryError, describe, is_connection};
use crate::telemetry::metrics::count_db_error;

/// What a group asks is found by primary keys. Of a table that was empty when it was analyzed (the leaf of the next hours,
/// each night) the planner believes that all of it is read for nothing, and that plan is kept while the table fills.
pub const SESSION: &str = "set enable_seqscan = off";

/// A connection on loan. It keeps the statements that it was asked to prepare.
pub type Lent = Object;

/// Makes connections when they are needed, up to `pool_size`, and keeps them.
pub struct Pool {
    inner: deadpool_postgres::Pool,
    connector: Connector,
}

impl Pool {
    pub fn new(connector: &Connector) -> Result<Self, PgError> {
        Ok(Self { inner: connector.pool()?, connector: connector.clone() })
    }

    /// How many connections there may be.
    pub fn max_size(&self) -> usize {
        self.inner.status().max_size
    }

    /// Waits for a free connection, or makes one, and asks the database for at most `patience`. A connection that
    /// failed, did not answer, or was left in the middle of a statement is closed.
    pub async fn ask<T>(
        &self,
        patience: Duration,
        question: impl AsyncFnOnce(&mut Lent) -> Result<T, PgError>,
    ) -> Result<T, PgError> {
        self.ask_unless_lost(|_| false, patience, question).await
    }

    /// Of some answers it is known that they came with the end of their connection.
    pub async fn ask_unless_lost<T>(
        &self,
        is_lost: impl FnOnce(&T) -> bool,
        patience: Duration,
        question: impl AsyncFnOnce(&mut Lent) -> Result<T, PgError>,
    ) -> Result<T, PgError> {
        let mut loan = Loan(Some(self.lend().await?));
        let Some(client) = &mut loan.0 else {
            return Err(self.unreachable(anyhow::anyhow!("no connection")));
        };
        let answer = tokio::time::timeout(patience, question(client)).await.unwrap_or_else(|_| {
            let waited = humantime::format_duration(patience);
            Err(self.unreachable(anyhow::anyhow!("no answer within {waited}")))
        });
        match answer {
            Err(PgError::Query(QueryError(error))) if is_connection(&error) => {
                Err(self.unreachable(anyhow::anyhow!(describe(&error))))
            }
            Err(error) if error.is_connection() => Err(error),
            Ok(answer) if is_lost(&answer) => Ok(answer),
            answer => {
                loan.give_back();
                answer
            }
        }
    }

    async fn lend(&self) -> Result<Object, PgError> {
        self.inner.get().await.map_err(|error| {
            count_db_error();
            match error {
                PoolError::Backend(error) => self.unreachable(anyhow::anyhow!(describe(&error))),
                error => self.unreachable(anyhow::anyhow!(error)),
            }
        })
    }

    fn unreachable(&self, source: anyhow::Error) -> PgError {
        PgError::Unreachable { address: self.connector.address(), source }
    }
}

/// Closes its connection when dropped, unless it was given back.
struct Loan(Option<Object>);

impl Loan {
    fn give_back(mut self) {
        self.0.take();
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            drop(Object::take(client));
        }
    }
}
