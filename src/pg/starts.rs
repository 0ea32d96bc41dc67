//! Messages that were in doubt when their partition was assigned: one of them may have killed its process.

use std::collections::HashMap;

use deadpool_postgres::GenericClient;
use uuid::Uuid;

use super::connect::PgError;
use super::pool::Lent;
use super::sql::statements;
use crate::domain::suspicion::Suspicion;

statements! {
    /// With the starts of those that were noted before.
    NOTE = "
        with noted as (
          insert into outboxd.starts (consumer_group, message_id)
          select $1, noted.id from unnest($2::uuid[]) as noted (id) order by noted.id
          on conflict do nothing returning message_id
        )
        select message_id, null::integer, false from noted
        union all
        select message_id, starts, alone from outboxd.starts where consumer_group = $1 and message_id = any($2)";

    COUNT = "
        insert into outboxd.starts as s (consumer_group, message_id, starts, alone)
        select $1, started.id, 1, $3 from unnest($2::uuid[]) as started (id) order by started.id
        on conflict (consumer_group, message_id) do update set starts = s.starts + 1, alone = $3
        returning starts";

    FORGET = "delete from outboxd.starts where consumer_group = $1 and message_id = any($2)";
}

/// Notes them. Returns those that were noted before, an agent had them when it ended without a word, each with what it is
/// suspected on since.
pub async fn note(client: &Lent, group: &str, ids: &[Uuid]) -> Result<HashMap<Uuid, Suspicion>, PgError> {
    let statement = client.prepare_cached(NOTE).await?;
    let rows = client.query(&statement, &[&group, &ids]).await?;
    // One that somebody else notes at this moment is in neither half.
    let mut before: HashMap<Uuid, Suspicion> = ids.iter().map(|id| (*id, Suspicion::default())).collect();
    for row in &rows {
        match row.get::<_, Option<i32>>(1) {
            Some(starts) => {
                let starts = u32::try_from(starts).unwrap_or(0);
                before.insert(row.get(0), Suspicion { starts, was_alone: row.get(2) })
            }
            None => before.remove(&row.get(0)),
        };
    }
    Ok(before)
}

/// Counts a start of each of these, alone in its process or not. Returns how many those have that were suspected most.
pub async fn count(client: &Lent, group: &str, ids: &[Uuid], alone: bool) -> Result<u32, PgError> {
    let statement = client.prepare_cached(COUNT).await?;
    let rows = client.query(&statement, &[&group, &ids, &alone]).await?;
    Ok(rows.iter().filter_map(|row| u32::try_from(row.get::<_, i32>(0)).ok()).max().unwrap_or(0))
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
