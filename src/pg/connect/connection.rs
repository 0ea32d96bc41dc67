//! A connection that one task owns, and how its statements go: prepared under a name, or each in one piece without one.

use std::collections::HashMap;
use std::future::Future;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::TryStreamExt;
use tokio::task::JoinHandle;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, Row, RowStream, SimpleQueryMessage, Statement};
use uuid::Uuid;

type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// A connection that one task owns; it ends when dropped.
///
/// Its statements go the way that `prepared_statements` says; those of its transactions, which have one session to
/// themselves, are always prepared.
pub struct Connection {
    pub(super) client: Client,
    pub(super) warnings: Arc<AtomicU64>,
    pub(super) driver: JoinHandle<()>,
    /// There is a pooler before the server: what is set or prepared in a session is not there in the next transaction.
    pub(super) unnamed: Option<Unnamed>,
    /// Prepared at their first use, for as long as it lasts.
    pub(super) kept: Mutex<HashMap<&'static str, Prepared>>,
}

/// How statements go that have no name: one after the other.
pub(super) struct Unnamed {
    types: Arc<ParameterTypes>,
    turn: tokio::sync::Mutex<()>,
}

impl Unnamed {
    pub(super) fn new(types: Arc<ParameterTypes>) -> Self {
        Self { types, turn: tokio::sync::Mutex::default() }
    }
}

/// Ends the connection when dropped, unless the answer was heard.
struct Unheard<'a>(Option<&'a JoinHandle<()>>);

impl Drop for Unheard<'_> {
    fn drop(&mut self) {
        if let Some(driver) = self.0 {
            driver.abort();
        }
    }
}

/// A statement that is used again and again on the connection that prepared it.
#[derive(Clone)]
pub struct Prepared {
    sql: &'static str,
    /// `None`: it has no name there.
    statement: Option<Statement>,
}

/// A statement to run: its text, or `Prepared`.
#[derive(Clone, Copy)]
pub struct Sql<'a> {
    text: &'a str,
    statement: Option<&'a Statement>,
}

impl<'a> From<&'a str> for Sql<'a> {
    fn from(text: &'a str) -> Self {
        Self { text, statement: None }
    }
}

impl<'a> From<&'a Prepared> for Sql<'a> {
    fn from(prepared: &'a Prepared) -> Self {
        Self { text: prepared.sql, statement: prepared.statement.as_ref() }
    }
}

impl Connection {
    pub async fn prepare(&self, sql: &'static str) -> Result<Prepared, Error> {
        let statement = match &self.unnamed {
            Some(unnamed) => {
                self.alone(unnamed, Box::pin(unnamed.types.of(&self.client, sql))).await?;
                None
            }
            None => Some(self.client.prepare(sql).await?),
        };
        Ok(Prepared { sql, statement })
    }

    /// The same at the first use, for whoever has no place to keep it.
    pub async fn prepare_once(&self, sql: &'static str) -> Result<Prepared, Error> {
        let kept = |connection: &Self| {
            connection.kept.lock().unwrap_or_else(PoisonError::into_inner).get(sql).cloned()
        };
        if let Some(prepared) = kept(self) {
            return Ok(prepared);
        }
        let prepared = self.prepare(sql).await?;
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(sql, prepared.clone());
        Ok(prepared)
    }

    /// Settings of the session; left out where it is not ours, and the next client would have them.
    pub async fn set(&self, settings: &str) -> Result<(), Error> {
        match self.unnamed {
            Some(_) => Ok(()),
            None => self.client.batch_execute(settings).await,
        }
    }

    pub async fn query(&self, sql: impl Into<Sql<'_>>, params: Params<'_>) -> Result<Vec<Row>, Error> {
        let sql = sql.into();
        match (&self.unnamed, sql.statement) {
            (Some(unnamed), _) => {
                let ask = async {
                    let params = unnamed.types.with(&self.client, sql.text, params).await?;
                    self.client.query_typed(sql.text, &params).await
                };
                self.alone(unnamed, Box::pin(ask)).await
            }
            (None, Some(statement)) => self.client.query(statement, params).await,
            (None, None) => self.client.query(sql.text, params).await,
        }
    }

    pub async fn query_one(&self, sql: impl Into<Sql<'_>>, params: Params<'_>) -> Result<Row, Error> {
        let sql = sql.into();
        match (&self.unnamed, sql.statement) {
            (Some(unnamed), _) => {
                let ask = async {
                    let params = unnamed.types.with(&self.client, sql.text, params).await?;
                    self.client.query_typed_one(sql.text, &params).await
                };
                self.alone(unnamed, Box::pin(ask)).await
            }
            (None, Some(statement)) => self.client.query_one(statement, params).await,
            (None, None) => self.client.query_one(sql.text, params).await,
        }
    }

    pub async fn query_opt(&self, sql: impl Into<Sql<'_>>, params: Params<'_>) -> Result<Option<Row>, Error> {
        let sql = sql.into();
        match (&self.unnamed, sql.statement) {
            (Some(unnamed), _) => {
                let ask = async {
                    let params = unnamed.types.with(&self.client, sql.text, params).await?;
                    self.client.query_typed_opt(sql.text, &params).await
                };
                self.alone(unnamed, Box::pin(ask)).await
            }
            (None, Some(statement)) => self.client.query_opt(statement, params).await,
            (None, None) => self.client.query_opt(sql.text, params).await,
        }
    }

    pub async fn execute(&self, sql: impl Into<Sql<'_>>, params: Params<'_>) -> Result<u64, Error> {
        let sql = sql.into();
        match (&self.unnamed, sql.statement) {
            (Some(unnamed), _) => {
                let ask = async {
                    let params = unnamed.types.with(&self.client, sql.text, params).await?;
                    self.client.execute_typed(sql.text, &params).await
                };
                self.alone(unnamed, Box::pin(ask)).await
            }
            (None, Some(statement)) => self.client.execute(statement, params).await,
            (None, None) => self.client.execute(sql.text, params).await,
        }
    }

    /// Hands over the rows one by one, as they come, until there are enough.
    pub async fn read<E: From<Error>>(
        &self,
        prepared: &Prepared,
        params: Params<'_>,
        mut take: impl FnMut(&Row) -> Result<ControlFlow<()>, E>,
    ) -> Result<(), E> {
        match (&self.unnamed, &prepared.statement) {
            (Some(unnamed), _) => {
                let ask = async {
                    let params = unnamed.types.with(&self.client, prepared.sql, params).await?;
                    let mut rows = pin!(self.client.query_typed_raw(prepared.sql, params).await?);
                    let mut taken = Ok(ControlFlow::Continue(()));
                    while let Some(row) = rows.try_next().await? {
                        // Those beyond enough are heard out.
                        if let Ok(ControlFlow::Continue(())) = taken {
                            taken = take(&row);
                        }
                    }
                    taken.map(|_| ())
                };
                self.alone(unnamed, Box::pin(ask)).await
            }
            (None, Some(statement)) => {
                hand_over(self.client.query_raw(statement, params.iter().copied()).await?, take).await
            }
            (None, None) => {
                hand_over(self.client.query_raw(prepared.sql, params.iter().copied()).await?, take).await
            }
        }
    }

    /// Asks when nothing else is under way: a pooler takes the first of two answers for the end of the transaction, and
    /// the second may reach nobody, or somebody else. For the same reason the connection ends if an answer is not waited
    /// for.
    async fn alone<T, E>(&self, unnamed: &Unnamed, ask: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let _turn = unnamed.turn.lock().await;
        let mut unheard = Unheard(Some(&self.driver));
        let answer = ask.await;
        unheard.0 = None;
        answer
    }

    /// How many warnings the server has sent so far. A commit that raised one (a cancelled wait for a synchronous
    /// standby comes as success with a warning) is not known to be durable.
    pub fn warnings(&self) -> u64 {
        self.warnings.load(Ordering::SeqCst)
    }

    /// Returns when the connection has ended; not to be asked again.
    pub async fn closed(&mut self) {
        // How it ended is of no interest.
        let _ = (&mut self.driver).await;
    }
}

impl std::ops::Deref for Connection {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

impl std::ops::DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn hand_over<E: From<Error>>(
    rows: RowStream,
    mut take: impl FnMut(&Row) -> Result<ControlFlow<()>, E>,
) -> Result<(), E> {
    let mut rows = pin!(rows);
    while let Some(row) = rows.try_next().await? {
        if take(&row)?.is_break() {
            break;
        }
    }
    Ok(())
}

/// Of the parameters of each statement, as the server takes them: a statement without a name is sent with them. Learned
/// once, for all connections of a connector.
#[derive(Default)]
pub(super) struct ParameterTypes(Mutex<HashMap<String, Arc<[Type]>>>);

impl ParameterTypes {
    async fn with<'a>(
        &self,
        client: &Client,
        sql: &str,
        params: Params<'a>,
    ) -> Result<Vec<(&'a (dyn ToSql + Sync), Type)>, Error> {
        let types = self.of(client, sql).await?;
        Ok(params.iter().copied().zip(types.iter().cloned()).collect())
    }

    async fn of(&self, client: &Client, sql: &str) -> Result<Arc<[Type]>, Error> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(sql).cloned();
        if let Some(types) = known {
            return Ok(types);
        }
        let types: Arc<[Type]> = learn(client, sql).await?.into();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(sql.to_owned(), Arc::clone(&types));
        Ok(types)
    }
}

/// Has the server prepare it, tell and forget it in one message, which is one transaction of one session, also if nobody
/// waits for the answer. A name of its own, should the server be stopped before it forgets.
async fn learn(client: &Client, sql: &str) -> Result<Vec<Type>, Error> {
    let name = format!("outboxd_{}", Uuid::new_v4().simple());
    let question = format!(
        "prepare {name} as {sql};
         select array_to_string(parameter_types::oid[], ',') from pg_prepared_statements where name = '{name}';
         deallocate {name}"
    );
    let answer = client.simple_query(&question).await?;
    let row = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    let types = row.unwrap_or_default().split_terminator(',');
    // None of ours has a type that is not the server's own.
    Ok(types.map(|oid| oid.parse().ok().and_then(Type::from_oid).unwrap_or(Type::UNKNOWN)).collect())
}
