//! What `partitions` and `cleanup` do about evidence: its leaves, and what is past retention.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use crate::config::Retention;
use crate::domain::evidence::{EvidenceLeaf, missing};
use crate::pg::PgError;
use crate::pg::connect::Connection;
use crate::pg::evidence::{self, Found};
use crate::pg::leaves::{Busy, Reclaimed};

/// How many rows one statement deletes.
const BATCH: i64 = 5_000;

/// How much of the table of operations one run reads: 80 MB.
const PAGES: i64 = 10_000;

/// The same in one statement.
const PAGES_AT_ONCE: i64 = 1_000;

/// Where in the table of operations the next run goes on.
#[derive(Debug, Default)]
pub(super) struct Walk(AtomicI64);

/// Makes the leaves that will be needed; says how many. One that is busy is made by a later run, and evidence goes to the
/// default partition meanwhile.
pub(super) async fn make_ahead(client: &Connection, kept: Duration) -> Result<usize, PgError> {
    let existing: Vec<EvidenceLeaf> =
        evidence::leaves(client).await?.iter().map(|found| found.leaf).collect();
    let mut made = 0;
    for leaf in missing(&existing, evidence::now(client).await?, kept) {
        match evidence::make(client, leaf).await? {
            Ok(()) => made += 1,
            Err(Busy) => break,
        }
    }
    Ok(made)
}

/// Removes what is past retention; says how much of what.
pub(super) async fn clean(
    client: &mut Connection,
    rules: &Retention,
    walk: &Walk,
    until: Instant,
) -> Result<[(i64, &'static str); 5], PgError> {
    let now = evidence::now(client).await?;
    let is_past = |found: &Found| (now - found.leaf.to).to_std().is_ok_and(|age| age > rules.handled);
    let found: Vec<Found> = evidence::leaves(client).await?.into_iter().filter(is_past).collect();
    let (mut emptied, mut dropped) = (0, 0);
    for Found { leaf, is_empty } in found {
        if Instant::now() >= until {
            break;
        }
        if is_empty {
            dropped += i64::from(evidence::drop_empty(client, leaf).await?.is_ok());
        } else if evidence::reclaim(client, leaf, rules.handled).await? == Reclaimed::Yes {
            emptied += 1;
        }
    }
    let mut rows = 0;
    while Instant::now() < until {
        let forgotten = evidence::forget_in_default(client, rules.handled, BATCH).await?;
        rows += i64::try_from(forgotten).unwrap_or(i64::MAX);
        if forgotten == 0 {
            break;
        }
    }
    let keys = forget_keys(client, rules, walk, until).await?;
    let attempts = evidence::forget_attempts(client, rules.handled, BATCH).await?;
    Ok([
        (emptied, "leaves of the evidence emptied"),
        (dropped, "of them dropped"),
        (rows, "rows of evidence without a leaf deleted"),
        (keys, "finished operations forgotten"),
        (i64::try_from(attempts).unwrap_or(i64::MAX), "failed attempts forgotten"),
    ])
}

async fn forget_keys(
    client: &Connection,
    rules: &Retention,
    walk: &Walk,
    until: Instant,
) -> Result<i64, PgError> {
    let mut keys = 0;
    let mut pages = 0;
    while Instant::now() < until && pages < PAGES {
        let from = walk.0.load(Ordering::Relaxed);
        let (forgotten, next) = evidence::forget_keys(client, rules.idempotency, from, PAGES_AT_ONCE).await?;
        keys += i64::try_from(forgotten).unwrap_or(i64::MAX);
        walk.0.store(next, Ordering::Relaxed);
        pages += PAGES_AT_ONCE;
        if next == 0 {
            break;
        }
    }
    Ok(keys)
}
