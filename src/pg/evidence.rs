//! How long evidence and finished operations are kept: partitions of `outboxd.handled` by the time of their messages, and
//! what goes row by row.

use std::time::Duration;

use tokio_postgres::{IsolationLevel, Row};

use super::connect::{Connection, PgError};
use super::leaves::{Busy, Reclaimed};
use super::sql::{millis, statements};
use crate::domain::evidence::EvidenceLeaf;

statements! {
    EVIDENCE_LEAVES = "
        select from_time, to_time, coalesce(pg_relation_size(relation), 0) = 0 from outboxd.evidence_leaves order by from_time";

    NOW = "select clock_timestamp()";

    MAKE_EVIDENCE_LEAF = "select outboxd.make_evidence_leaf($1, $2)";
    RECLAIM_EVIDENCE_LEAF = "select outboxd.reclaim_evidence_leaf($1, $2, $3::bigint * interval '1 ms')";
    DROP_EVIDENCE_LEAF = "select outboxd.drop_evidence_leaf($1, $2)";

    FORGET_IN_DEFAULT = "
        delete from only outboxd.handled_default where ctid = any(array(
          select ctid from only outboxd.handled_default
          where handled_at < clock_timestamp() - $1::bigint * interval '1 ms' limit $2))";

    KEY_PAGES = "select pg_relation_size('outboxd.idempotency_keys') / 8192";

    /// Of those pages. An index on the time would be written with every operation; this reads the table now and then.
    /// A key that a failure still names stays, so that its retry finds the operation done.
    FORGET_KEYS = "
        delete from outboxd.idempotency_keys k
        where k.ctid >= $1::text::tid and k.ctid < $2::text::tid and k.state = 'done'
          and k.done_at < clock_timestamp() - $3::bigint * interval '1 ms'
          and not exists (select from outboxd.failures f
            where f.consumer_group = k.consumer_group and f.message_id = k.message_id)
          and not exists (select from outboxd.failures f
            where f.consumer_group = k.consumer_group and f.idempotency_key = k.key)";

    FORGET_ATTEMPTS = "
        delete from outboxd.attempts where ctid = any(array(
          select ctid from outboxd.attempts a where failed_at < clock_timestamp() - $1::bigint * interval '1 ms'
            and not exists (select from outboxd.failures f
              where f.consumer_group = a.consumer_group and f.message_id = a.message_id)
          limit $2))";
}

/// A leaf as it is in the database.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    pub leaf: EvidenceLeaf,
    pub is_empty: bool,
}

/// In order; without the default partition.
pub async fn leaves(client: &Connection) -> Result<Vec<Found>, PgError> {
    let found =
        |row: &Row| Found { leaf: EvidenceLeaf { from: row.get(0), to: row.get(1) }, is_empty: row.get(2) };
    Ok(client.query(EVIDENCE_LEAVES, &[]).await?.iter().map(found).collect())
}

/// The database's clock.
pub async fn now(client: &Connection) -> Result<chrono::DateTime<chrono::Utc>, PgError> {
    Ok(client.query_one(NOW, &[]).await?.get(0))
}

/// Makes a leaf, and moves there what the default partition has of its time.
pub async fn make(client: &Connection, leaf: EvidenceLeaf) -> Result<Result<(), Busy>, PgError> {
    let made: bool = client.query_one(MAKE_EVIDENCE_LEAF, &[&leaf.from, &leaf.to]).await?.get(0);
    Ok(if made { Ok(()) } else { Err(Busy) })
}

/// Empties a leaf, if nothing in it was handled within `kept`.
pub async fn reclaim(
    client: &mut Connection,
    leaf: EvidenceLeaf,
    kept: Duration,
) -> Result<Reclaimed, PgError> {
    let transaction =
        client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?;
    let row = transaction.query_one(RECLAIM_EVIDENCE_LEAF, &[&leaf.from, &leaf.to, &millis(kept)]).await?;
    let reclaimed = match row.get(0) {
        "reclaimed" => Reclaimed::Yes,
        "busy" => Reclaimed::Busy,
        _ => Reclaimed::Kept,
    };
    transaction.commit().await?;
    Ok(reclaimed)
}

/// Drops a leaf that is empty.
pub async fn drop_empty(client: &mut Connection, leaf: EvidenceLeaf) -> Result<Result<(), Busy>, PgError> {
    let transaction =
        client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?;
    let dropped: bool = transaction.query_one(DROP_EVIDENCE_LEAF, &[&leaf.from, &leaf.to]).await?.get(0);
    transaction.commit().await?;
    Ok(if dropped { Ok(()) } else { Err(Busy) })
}

/// Deletes, of evidence that no leaf takes, what was handled longer ago, up to `limit` rows; says how many.
pub async fn forget_in_default(client: &Connection, kept: Duration, limit: i64) -> Result<u64, PgError> {
    Ok(client.execute(FORGET_IN_DEFAULT, &[&millis(kept), &limit]).await?)
}

/// Deletes operations that were finished longer ago, in `pages` pages of their table from page `from` on; says how many,
/// and where to go on: 0 once the end was reached.
pub async fn forget_keys(
    client: &Connection,
    kept: Duration,
    from: i64,
    pages: i64,
) -> Result<(u64, i64), PgError> {
    let end: i64 = client.query_one(KEY_PAGES, &[]).await?.get(0);
    let to = from + pages;
    let place = |page: i64| format!("({page},0)");
    let forgotten = client.execute(FORGET_KEYS, &[&place(from), &place(to), &millis(kept)]).await?;
    Ok((forgotten, if to < end { to } else { 0 }))
}

/// Deletes failed attempts of messages that have no failure any more, up to `limit` rows; says how many.
pub async fn forget_attempts(client: &Connection, kept: Duration, limit: i64) -> Result<u64, PgError> {
    Ok(client.execute(FORGET_ATTEMPTS, &[&millis(kept), &limit]).await?)
}
