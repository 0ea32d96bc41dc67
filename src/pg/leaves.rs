//! The partitions of the outbox: what there is, and the steps that make, empty and drop them. Each step takes its locks
//! without waiting, and says if they were not to be had.

use std::time::Duration;

use tokio_postgres::{IsolationLevel, Row};

use super::connect::{Connection, Connector, PgError};
use super::sql::statements;
use crate::domain::leaves::{Leaf, Rate};

statements! {
    /// Ends a step that takes too long: reading a large default partition is the longest.
    BOUND = "set statement_timeout = '45s'";

    LEAVES = "
        select from_seq, to_seq, coalesce(pg_relation_size(relation), 0) = 0 from outboxd.leaves order by from_seq";

    SEQUENCE = "
        select coalesce(pg_sequence_last_value('outboxd.messages_seq'), 0), pg_relation_size('outboxd.messages_default')";

    RATE = "
        select last_seq, extract(epoch from clock_timestamp() - read_at)::float8, per_day, peak_per_day
        from outboxd.insert_rate";

    SET_RATE = "
        update outboxd.insert_rate set last_seq = $1, read_at = clock_timestamp(), per_day = $2, peak_per_day = $3";

    MAKE_LEAF = "select outboxd.make_leaf($1, $2)";
    FREE_RANGE = "select outboxd.free_range()";
    RESERVE_RANGE = "select outboxd.reserve_range($1, $2)";
    VALIDATE_RANGE = "select outboxd.validate_range()";
    ADVANCE_SEQUENCE = "select outboxd.advance_sequence($1)";
    RECLAIM_LEAF = "select outboxd.reclaim_leaf($1, $2, $3::text::timestamptz)";
    DROP_LEAF = "select outboxd.drop_leaf($1, $2)";
}

/// Up to this size of the default partition an attach may scan it under its lock: a millisecond.
const SMALL: i64 = 1 << 20;

/// A shorter time between two looks says nothing about the rate.
const SHORTEST_LOOK: Duration = Duration::from_secs(30);

/// The locks of a step were not to be had: others use what it needs. Nothing has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// What became of a leaf that was to be emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reclaimed {
    Yes,
    /// Not all of it is published, or something of it has just been.
    Kept,
    Busy,
}

/// Where the sequence is.
#[derive(Clone, Copy, Debug)]
pub struct Sequence {
    pub last_seq: i64,
    pub default_is_small: bool,
}

/// A leaf as it is in the database.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    pub leaf: Leaf,
    pub is_empty: bool,
}

/// A connection for work that takes its time, and not more.
pub async fn connect(connector: &Connector) -> Result<Connection, PgError> {
    let client = connector.connect().await?;
    client.set(BOUND).await?;
    Ok(client)
}

/// In order; without the default partition.
pub async fn leaves(client: &Connection) -> Result<Vec<Found>, PgError> {
    let found = |row: &Row| Found { leaf: Leaf { from: row.get(0), to: row.get(1) }, is_empty: row.get(2) };
    Ok(client.query(&client.prepare_once(LEAVES).await?, &[]).await?.iter().map(found).collect())
}

pub async fn sequence(client: &Connection) -> Result<Sequence, PgError> {
    let row = client.query_one(SEQUENCE, &[]).await?;
    Ok(Sequence { last_seq: row.get(0), default_is_small: row.get::<_, i64>(1) <= SMALL })
}

/// Looks how far the sequence has come since the last look, and keeps what that says.
pub async fn observe_rate(client: &Connection, last_seq: i64) -> Result<Rate, PgError> {
    let row = client.query_one(RATE, &[]).await?;
    let rate = Rate { per_day: row.get(2), peak_per_day: row.get(3) };
    let elapsed = Duration::try_from_secs_f64(row.get(1)).unwrap_or_default();
    if elapsed < SHORTEST_LOOK {
        return Ok(rate);
    }
    let rate = rate.observe(last_seq - row.get::<_, i64>(0), elapsed);
    client.execute(SET_RATE, &[&last_seq, &rate.per_day, &rate.peak_per_day]).await?;
    Ok(rate)
}

pub async fn make(client: &Connection, leaf: Leaf) -> Result<Result<(), Busy>, PgError> {
    done(client.query_one(MAKE_LEAF, &[&leaf.from, &leaf.to]).await)
}

/// Removes what a rescue left behind that was cut short.
pub async fn free_range(client: &Connection) -> Result<Result<(), Busy>, PgError> {
    done(client.query_one(FREE_RANGE, &[]).await)
}

/// Tells the default partition that this range is not for it; its rows are not read yet.
pub async fn reserve_range(client: &Connection, from: i64, to: i64) -> Result<Result<(), Busy>, PgError> {
    done(client.query_one(RESERVE_RANGE, &[&from, &to]).await)
}

/// Reads the default partition, while others go on inserting, so that no attach need do it.
pub async fn validate_range(client: &Connection) -> Result<Result<(), Busy>, PgError> {
    done(client.query_one(VALIDATE_RANGE, &[]).await)
}

/// The next message gets `to`, where a leaf begins.
pub async fn advance_sequence(client: &Connection, to: i64) -> Result<(), PgError> {
    client.query_one(ADVANCE_SEQUENCE, &[&to]).await?;
    Ok(())
}

/// Empties a leaf, if all of it is published and none of it since `checked_at`, a time as Postgres writes it.
pub async fn reclaim(client: &mut Connection, leaf: Leaf, checked_at: &str) -> Result<Reclaimed, PgError> {
    // Whatever the default of this user: each statement has to see what committed before it.
    let transaction =
        client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?;
    let row = transaction.query_one(RECLAIM_LEAF, &[&leaf.from, &leaf.to, &checked_at]).await?;
    transaction.commit().await?;
    Ok(match row.get(0) {
        "reclaimed" => Reclaimed::Yes,
        "busy" => Reclaimed::Busy,
        _ => Reclaimed::Kept,
    })
}

/// Drops a leaf that is empty and behind all lanes.
pub async fn drop_empty(client: &mut Connection, leaf: Leaf) -> Result<Result<(), Busy>, PgError> {
    let transaction =
        client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?;
    let dropped = done(transaction.query_one(DROP_LEAF, &[&leaf.from, &leaf.to]).await)?;
    transaction.commit().await?;
    Ok(dropped)
}

fn done(row: Result<Row, tokio_postgres::Error>) -> Result<Result<(), Busy>, PgError> {
    Ok(if row?.get(0) { Ok(()) } else { Err(Busy) })
}
