//! Dead letters that are to be copied to a topic.

use tokio_postgres::Row;
use uuid::Uuid;

use super::connect::{Connection, PgError};
use super::sql::statements;
use crate::domain::dead_letter::DeadLetter;
use crate::domain::delivery::Record;

statements! {
    UNCOPIED = "
        select consumer_group, message_id, dispatch, topic, partition, \"offset\", recorded_at, key, payload, header_names,
          header_values, reason, coalesce(error, '')
        from outboxd.failures
        where state = 'dead' and copied_at is null and consumer_group = any($1) order by changed_at limit $2";

    /// Not if it was replayed meanwhile.
    COPIED = "
        update outboxd.failures f set copied_at = clock_timestamp()
        from unnest($1::text[], $2::uuid[], $3::bigint[]) as c (consumer_group, message_id, dispatch)
        where f.consumer_group = c.consumer_group and f.message_id = c.message_id and f.dispatch = c.dispatch
          and f.state = 'dead'";
}

/// One that is not known to be copied.
#[derive(Clone, Debug)]
pub struct Uncopied {
    pub message_id: Uuid,
    pub dispatch: i64,
    pub letter: DeadLetter,
}

/// Of these groups, the oldest.
pub async fn uncopied(client: &Connection, groups: &[&str], limit: i64) -> Result<Vec<Uncopied>, PgError> {
    Ok(client.query(UNCOPIED, &[&groups, &limit]).await?.iter().map(letter).collect())
}

fn letter(row: &Row) -> Uncopied {
    let bytes = |place: usize| row.get::<_, Option<Vec<u8>>>(place).map(Into::into);
    let names: Vec<String> = row.get(9);
    let values: Vec<Option<Vec<u8>>> = row.get(10);
    let values = values.into_iter().map(|value| value.map(Into::into));
    let record = Record {
        topic: row.get::<_, &str>(3).into(),
        partition: row.get(4),
        offset: row.get(5),
        timestamp: row.get(6),
        key: bytes(7),
        payload: bytes(8),
        headers: names.into_iter().zip(values).collect(),
    };
    let letter = DeadLetter { group: row.get(0), record, reason: row.get(11), error: row.get(12) };
    Uncopied { message_id: row.get(1), dispatch: row.get(2), letter }
}

/// Their copies are acknowledged.
pub async fn copied(client: &Connection, copies: &[Uncopied]) -> Result<(), PgError> {
    let groups: Vec<&str> = copies.iter().map(|copy| copy.letter.group.as_str()).collect();
    let ids: Vec<Uuid> = copies.iter().map(|copy| copy.message_id).collect();
    let dispatches: Vec<i64> = copies.iter().map(|copy| copy.dispatch).collect();
    client.execute(COPIED, &[&groups, &ids, &dispatches]).await?;
    Ok(())
}
