//! The few connections that requests share, so that whoever asks a lot waits and nothing else does.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::problem::Problem;
use crate::pg::connect::Connection;
use crate::pg::{Connector, PgError, inspect};

const MOST: usize = 4;

/// Who does not get one of them in this time is told to come again.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) struct Database {
    connector: Connector,
    places: Semaphore,
    idle: Mutex<Vec<Connection>>,
}

impl Database {
    pub(super) fn new(connector: Connector) -> Self {
        Self { connector, places: Semaphore::new(MOST), idle: Mutex::default() }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection whose statements end in time; it goes back when it is dropped.
    pub(super) async fn lend(&self) -> Result<Lent<'_>, Problem> {
        let busy = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many requests ask the database");
        let place = tokio::time::timeout(PATIENCE, self.places.acquire()).await;
        let place = place.ok().and_then(Result::ok).ok_or_else(busy)?;
        let kept = std::iter::from_fn(|| self.idle().pop()).find(|connection| !connection.is_closed());
        let connection = match kept {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        Ok(Lent { connection: Some(connection), database: self, _place: place })
    }

    async fn connect(&self) -> Result<Connection, PgError> {
        let connection = self.connector.connect().await?;
        inspect::bound(&connection).await?;
        Ok(connection)
    }
}

pub(super) struct Lent<'a> {
    /// Taken when it is dropped.
    connection: Option<Connection>,
    database: &'a Database,
    _place: SemaphorePermit<'a>,
}

impl Deref for Lent<'_> {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        match &self.connection {
            Some(connection) => connection,
            None => unreachable!("it is there until it is dropped"),
        }
    }
}

impl DerefMut for Lent<'_> {
    fn deref_mut(&mut self) -> &mut Connection {
        match &mut self.connection {
            Some(connection) => connection,
            None => unreachable!("it is there until it is dropped"),
        }
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take().filter(|connection| !connection.is_closed()) {
            self.database.idle().push(connection);
        }
    }
}
