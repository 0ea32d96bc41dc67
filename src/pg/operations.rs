//! What operators do, on record: `outboxd.operations`.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use tokio_postgres::{IsolationLevel, Transaction};
use utoipa::ToSchema;

use super::connect::{Connection, PgError};
use super::sql::{millis, statements};
use crate::failpoint;

statements! {
    BEGIN = "
        insert into outboxd.operations (command, selection, os_user, host)
        select $1, $2, $3, $4 where outboxd.durable() returning id";

    END = "update outboxd.operations set ended_at = clock_timestamp(), result = $2 where id = $1";

    SHOW = "
        select id, command, selection, database_user, os_user, host, began_at, ended_at, messages, result
        from outboxd.operations where id = $1";

    FORGET = "
        delete from outboxd.operations where id in (
          select id from outboxd.operations where began_at < clock_timestamp() - $1::bigint * interval '1 ms'
          order by began_at limit $2)";
}

/// Who asked for it, as far as the operating system knows.
#[derive(Clone, Debug)]
pub struct Operator {
    pub os_user: String,
    pub host: String,
}

/// For people.
impl fmt::Display for Operator {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} from {}", self.os_user, self.host)
    }
}

/// What was done, or is being done.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Operation {
    pub id: i64,
    pub command: String,
    /// The ids or the filters that it named.
    #[schema(value_type = Object)]
    pub selection: Value,
    pub database_user: String,
    pub os_user: String,
    pub host: String,
    pub began_at: DateTime<Utc>,
    /// `None`: it is under way, or was cut short.
    pub ended_at: Option<DateTime<Utc>>,
    /// That it has changed so far.
    pub messages: i64,
    /// `done`, or why not.
    pub result: Option<String>,
}

/// Notes that it begins, before anything is changed; returns its number.
pub async fn begin(
    client: &Connection,
    command: &str,
    selection: &Value,
    by: &Operator,
) -> Result<i64, PgError> {
    Ok(client.query_one(BEGIN, &[&command, selection, &by.os_user, &by.host]).await?.get(0))
}

pub async fn end(client: &Connection, operation: i64, result: &str) -> Result<(), PgError> {
    client.execute(END, &[&operation, &result]).await?;
    Ok(())
}

/// Something small that is done on record, both in one transaction: what is not on record to its end was not done.
pub struct OnRecord<'a> {
    pub transaction: Transaction<'a>,
    operation: i64,
}

impl<'a> OnRecord<'a> {
    pub async fn begin(
        client: &'a mut Connection,
        command: &str,
        selection: &Value,
        by: &Operator,
    ) -> Result<Self, PgError> {
        let transaction =
            client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?;
        let row = transaction.query_one(BEGIN, &[&command, selection, &by.os_user, &by.host]).await?;
        transaction.batch_execute("savepoint before_change").await?;
        Ok(Self { transaction, operation: row.get(0) })
    }

    /// Says whether it changed anything. What the database refused is on record as well.
    pub async fn end(self, changed: Result<bool, PgError>) -> Result<bool, PgError> {
        let result = match &changed {
            Ok(true) => "done".to_owned(),
            Ok(false) => "nothing to do".to_owned(),
            Err(error) => {
                self.transaction.batch_execute("rollback to savepoint before_change").await?;
                error.to_string()
            }
        };
        self.transaction.execute(END, &[&self.operation, &result]).await?;
        failpoint::hit("order-before-commit");
        self.transaction.commit().await?;
        changed
    }
}

/// One of them.
pub async fn show(client: &Connection, operation: i64) -> Result<Option<Operation>, PgError> {
    let row = client.query_opt(SHOW, &[&operation]).await?;
    Ok(row.map(|row| Operation {
        id: row.get(0),
        command: row.get(1),
        selection: row.get(2),
        database_user: row.get(3),
        os_user: row.get(4),
        host: row.get(5),
        began_at: row.get(6),
        ended_at: row.get(7),
        messages: row.get(8),
        result: row.get(9),
    }))
}

/// Forgets those older than `audit`, up to `limit`; says how many.
pub async fn forget(client: &Connection, audit: Duration, limit: i64) -> Result<u64, PgError> {
    let audit = millis(audit);
    Ok(client.execute(FORGET, &[&audit, &limit]).await?)
}
