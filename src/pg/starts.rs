//! Messages that were in doubt when their partition was assigned: one of them may have killed its process.

use std::collections::HashSet;

use deadpool_postgres::GenericClient;
use uuid::Uuid;

use super::connect::PgError;
use super::pool::Lent;
use super::sql::statements;

statements! {
    NOTE = "
        insert into outboxd.starts (consumer_group, message_id)
        select $1, noted.id from unnest($2::uuid[]) as noted (id) order by noted.id
        on conflict do nothing returning message_id";

    START = "
        update outboxd.starts set starts = starts + 1 where consumer_group = $1 and message_id = $2 returning starts";

    FORGET = "delete from outboxd.starts where consumer_group = $1 and message_id = any($2)";
}

/// Notes them; returns those that were not noted before. The others an agent had when it ended without a word.
pub async fn note(client: &Lent, group: &str, ids: &[Uuid]) -> Result<HashSet<Uuid>, PgError> {
    let statement = client.prepare_cached(NOTE).await?;
    let rows = client.query(&statement, &[&group, &ids]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Counts a start of one that is in doubt, just before it; the count with this one.
pub async fn start(client: &Lent, group: &str, id: Uuid) -> Result<u32, PgError> {
    let row = client.query_opt(START, &[&group, &id]).await?;
    Ok(row.map_or(0, |row| u32::try_from(row.get::<_, i32>(0)).unwrap_or(0)))
}

/// They are finished, or were never started.
pub async fn forget(client: &impl GenericClient, group: &str, ids: &[Uuid]) -> Result<(), PgError> {
    if ids.is_empty() {
        return Ok(());
    }
    let statement = client.prepare_cached(FORGET).await?;
    client.execute(&statement, &[&group, &ids]).await?;
    Ok(())
}
