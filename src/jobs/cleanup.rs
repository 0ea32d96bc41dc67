//! `cleanup`: what is past `[retention]` goes, by whole leaves where it can, in small steps where it cannot.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::every;
use super::evidence::{self, Walk};
use super::logs::Logs;
use super::runner::{Done, Job, Outcome};
use crate::config::{Ceiling, Kafka, Retention};
use crate::domain::leaves::Leaf;
use crate::pg::connect::Connection;
use crate::pg::failures;
use crate::pg::jobs::history;
use crate::pg::leaves::{self, Found, Reclaimed};
use crate::pg::operations;
use crate::pg::retention::{self, Behind};
use crate::pg::{Connector, PgError};

pub const NAME: &str = "cleanup";

/// A run begins no further step after this.
const ENOUGH: Duration = Duration::from_secs(30);

/// How many rows one statement deletes.
const BATCH: i64 = 5_000;

/// A leaf that fills slowly is ended early, so that it can go, but not more often than this,
const END_LEAF_AFTER: Duration = Duration::from_secs(3_600);

/// and only if few numbers are lost by it: they are used up one by one.
const FEW: i64 = 1 << 21;

pub fn job(connector: Connector, kafka: Kafka, retention: Retention) -> Job {
    let shared = Arc::new((connector, kafka, retention, Walk::default()));
    Job::new(NAME, every(60), move |_| {
        let shared = Arc::clone(&shared);
        Box::pin(async move {
            let (connector, kafka, retention, walk) = &*shared;
            let mut client = leaves::connect(connector).await?;
            work(&mut client, &mut Logs::new(kafka), retention, walk).await
        })
    })
}

async fn work(client: &mut Connection, logs: &mut Logs<'_>, rules: &Retention, walk: &Walk) -> Outcome {
    let until = Instant::now() + ENOUGH;
    let found = leaves::leaves(client).await?;
    let covered = retention::covered(client).await?;
    let (behind, ahead): (Vec<Found>, Vec<Found>) =
        found.into_iter().partition(|found| found.leaf.to - 1 <= covered);
    let reclaimed = reclaim(client, logs, rules, &behind, until).await?;
    let dropped = drop_empty(client, &behind, until).await?;
    let deleted = delete_from_default(client, logs, rules, until).await?;
    end_old_leaf(client, rules, &ahead).await?;
    let forgotten = forget_publications(client, rules).await?;
    let decided = count(retention::forget_decided(client, rules.discarded, BATCH).await?);
    let failures = count(failures::forget_discarded(client, rules.discarded, BATCH).await?);
    let dead = match rules.dead_letters {
        Ceiling::Never => 0,
        Ceiling::After(age) => count(failures::forget_dead(client, age, BATCH).await?),
    };
    let operations = count(operations::forget(client, rules.audit, BATCH).await?);
    let lost = count(history::tell_lost(&**client).await?);
    let runs = count(history::forget(&**client, rules.runs, BATCH).await?);
    let counts = [
        (reclaimed, "leaves emptied"),
        (dropped, "empty leaves dropped"),
        (deleted, "published messages deleted from the default partition"),
        (forgotten, "publications forgotten"),
        (decided, "discarded or replayed messages forgotten"),
        (failures, "discarded failures forgotten"),
        (dead, "dead letters deleted, as `[retention] dead_letters` says"),
        (operations, "operations forgotten"),
        (lost, "runs lost with their job"),
        (runs, "runs of jobs forgotten"),
    ];
    Ok(Done::counted(counts.into_iter().chain(evidence::clean(client, rules, walk, until).await?)))
}

/// What retention says of a range whose rows are published.
enum Verdict {
    Young,
    Waits,
    Free,
    /// `max` is over, and this group has not passed it.
    Overdue(Behind),
}

async fn judge(
    client: &Connection,
    logs: &mut Logs<'_>,
    rules: &Retention,
    range: Leaf,
) -> Result<Verdict, PgError> {
    let Some(age) = retention::age(client, range).await? else { return Ok(Verdict::Free) };
    if age < rules.published {
        return Ok(Verdict::Young);
    }
    for behind in retention::behind(client, range).await? {
        // What is in no log any more, no group will ever be past.
        if logs.may_hold(&behind).await {
            return Ok(match rules.max {
                Ceiling::After(max) if age >= max => Verdict::Overdue(behind),
                _ => Verdict::Waits,
            });
        }
    }
    Ok(Verdict::Free)
}

async fn reclaim(
    client: &mut Connection,
    logs: &mut Logs<'_>,
    rules: &Retention,
    behind: &[Found],
    until: Instant,
) -> Result<i64, PgError> {
    let mut reclaimed = 0;
    for Found { leaf, .. } in behind.iter().filter(|found| !found.is_empty) {
        if Instant::now() >= until {
            break;
        }
        let checked_at = retention::now(client).await?;
        let overdue = match judge(client, logs, rules, *leaf).await? {
            Verdict::Young => break,
            Verdict::Waits => continue,
            Verdict::Free => None,
            Verdict::Overdue(behind) => Some((behind, retention::count(client, *leaf).await?)),
        };
        if leaves::reclaim(client, *leaf, &checked_at).await? == Reclaimed::Yes {
            reclaimed += 1;
            if let Some((behind, messages)) = overdue {
                tell_unread(&behind, messages);
            }
        }
    }
    Ok(reclaimed)
}

/// What goes unread is never silent.
fn tell_unread(behind: &Behind, messages: i64) {
    let Behind { group, topic, partition, offset, next_offset, .. } = behind;
    let stands = next_offset.map_or("has no position there".to_owned(), |next| format!("stands at {next}"));
    tracing::warn!(
        group,
        topic,
        partition,
        messages,
        "`[retention] max` is over: {messages} published messages were dropped from the outbox, though group {group} is \
         not past all of them ({topic}/{partition} goes up to offset {offset}, and it {stands})"
    );
}

/// Of those that were empty before this run, so that a look at them is not for nothing: dropped when it is free.
async fn drop_empty(client: &mut Connection, behind: &[Found], until: Instant) -> Result<i64, PgError> {
    let mut dropped = 0;
    for Found { leaf, .. } in behind.iter().filter(|found| found.is_empty) {
        // If the parent is in use now, it will be for the next one.
        if Instant::now() >= until || leaves::drop_empty(client, *leaf).await?.is_err() {
            break;
        }
        dropped += 1;
    }
    Ok(dropped)
}

async fn delete_from_default(
    client: &Connection,
    logs: &mut Logs<'_>,
    rules: &Retention,
    until: Instant,
) -> Result<i64, PgError> {
    let mut deleted = 0;
    let mut from = 0;
    while Instant::now() < until {
        let strays = retention::in_default(client, from, BATCH).await?;
        // The lane that got least far says where the others go on.
        let Some(next) = strays.iter().map(|stray| stray.range.to).min() else { break };
        for mut stray in strays {
            stray.range.to = stray.range.to.min(next);
            if stray.range.from >= stray.range.to {
                continue;
            }
            let overdue = match judge(client, logs, rules, stray.range).await? {
                Verdict::Young => return Ok(deleted),
                Verdict::Waits => continue,
                Verdict::Free => None,
                Verdict::Overdue(behind) => Some(behind),
            };
            let gone = retention::delete_published(client, stray).await?;
            deleted += gone;
            if let Some(behind) = overdue.filter(|_| gone > 0) {
                tell_unread(&behind, gone);
            }
        }
        from = next;
    }
    Ok(deleted)
}

/// A leaf goes as a whole. With few messages it would never fill: the sequence goes on in the next one instead.
async fn end_old_leaf(client: &Connection, rules: &Retention, ahead: &[Found]) -> Result<(), PgError> {
    let next = leaves::sequence(client).await?.last_seq + 1;
    let Some(place) = ahead.iter().position(|found| found.leaf.from <= next && next < found.leaf.to) else {
        return Ok(());
    };
    let (current, following) = (ahead[place], ahead.get(place + 1));
    let is_followed = following.is_some_and(|following| following.leaf.from == current.leaf.to);
    if current.is_empty || !is_followed || current.leaf.to - next > FEW {
        return Ok(());
    }
    let limit = rules.published.max(END_LEAF_AFTER);
    if retention::oldest(client, current.leaf).await?.is_some_and(|age| age > limit) {
        leaves::advance_sequence(client, current.leaf.to).await?;
    }
    Ok(())
}

async fn forget_publications(client: &Connection, rules: &Retention) -> Result<i64, PgError> {
    let in_leaves =
        leaves::leaves(client).await?.iter().find(|found| !found.is_empty).map(|found| found.leaf.from);
    let in_default = retention::oldest_in_default(client).await?;
    let kept = in_leaves.into_iter().chain(in_default).min().unwrap_or(i64::MAX);
    Ok(count(retention::forget_publications(client, rules.audit, kept, BATCH).await?))
}

fn count(rows: u64) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}
