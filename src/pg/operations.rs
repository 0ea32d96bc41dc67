//! What operators do, on record: `outboxd.operations`.

use std::time::Duration;

use serde_json::Value;

use super::connect::{Connection, PgError};
use super::sql::{millis, statements};

statements! {
    BEGIN = "
        insert into outboxd.operations (command, selection, os_user, host)
        select $1, $2, $3, $4 where outboxd.durable() returning id";

    END = "update outboxd.operations set ended_at = clock_timestamp(), result = $2 where id = $1";

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

/// Forgets those older than `audit`, up to `limit`; says how many.
pub async fn forget(client: &Connection, audit: Duration, limit: i64) -> Result<u64, PgError> {
    let audit = millis(audit);
    Ok(client.execute(FORGET, &[&audit, &limit]).await?)
}
