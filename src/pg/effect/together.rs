//! The effects of a batch in one transaction. A part that does not come through whole is rolled back to its savepoint and
//! goes in halves, until what fails is alone.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use deadpool_postgres::Transaction;
use tokio_postgres::error::SqlState;

use super::calling::{Then, call};
use super::{Affected, Effect, Function, duplicate, is_of_client, is_refusal, perform};
use crate::failpoint;
use crate::pg::claims::{self, Claimant, Wanted};
use crate::pg::completing::{self, Finished, Scope};
use crate::pg::connect::{PgError, is_cut};
use crate::pg::pool::Lent;

/// What became of a part of several.
enum Part {
    Done,
    /// There is evidence of all of it.
    Repeats,
    /// Something in it is not as the rest.
    Refused,
    /// It takes too long to be tried again and again.
    Slow,
    Lost,
}

/// Where a batch ends though not all of it is tried.
pub struct Bounds<'a> {
    /// After so many failures in a row.
    pub failures: u32,
    /// Somebody waits for its end.
    pub is_stopping: &'a (dyn Fn() -> bool + Send + Sync),
}

/// What became of a batch.
#[derive(Debug)]
pub enum Together {
    /// Of each message in it; and how many went in each call that came through, for how long.
    Ended(Vec<Affected>, Vec<(usize, Duration)>),
    /// Nothing is done: a call of so many took longer than it may.
    TooLong(usize),
    /// Nothing is done, and each is to go in a transaction of its own.
    Apart,
}

impl Together {
    /// Its connection is of no use any more.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Ended(affected, _) if affected.iter().any(Affected::is_lost))
    }
}

/// Does them, of each chain in order and none behind one that is not done, for about as long as one call may take. Outcomes
/// that are not known are found out as with `apply`.
pub async fn apply_together(
    client: &mut Lent,
    scope: Scope<'_>,
    function: Function<'_>,
    effects: &[Effect<'_>],
    bounds: Bounds<'_>,
) -> Result<Together, PgError> {
    let begun = Instant::now();
    let mut transaction = client.transaction().await?;
    completing::be_durable(&transaction).await?;
    let wanted: Vec<Wanted<'_>> = effects.iter().map(Effect::wanted).collect();
    let done = claims::find_done(&transaction, scope.group, &wanted).await?;
    let mut affected: Vec<Option<Affected>> = done.iter().map(|done| done.as_ref().map(duplicate)).collect();
    let open = (0..effects.len()).filter(|place| affected[*place].is_none()).collect();
    let mut parts: VecDeque<Vec<usize>> = VecDeque::from([open]);
    let mut broken = HashSet::new();
    let (mut in_a_row, mut is_first) = (0, true);
    let mut calls = Vec::new();
    while in_a_row < bounds.failures
        && begun.elapsed() < function.limit()
        && !(bounds.is_stopping)()
        && let Some(mut part) = parts.pop_front()
    {
        let is_behind = |place: usize| effects[place].chain.is_some_and(|chain| broken.contains(&chain));
        for place in part.extract_if(.., |place| is_behind(*place)) {
            affected[place] = Some(Affected::Untried);
        }
        let savepoint = transaction.savepoint("part").await?;
        if let [one] = *part {
            let end = perform(&savepoint, scope, function, effects[one], Then::Others).await?;
            match &end {
                Affected::Done => savepoint.commit().await?,
                Affected::Lost => return Ok(lost(effects)),
                _ => savepoint.rollback().await?,
            }
            match &end {
                Affected::Done => (in_a_row, is_first) = (0, false),
                Affected::Failed(_) => in_a_row += 1,
                _ => {}
            }
            if matches!(end, Affected::Busy | Affected::Failed(_)) {
                broken.extend(effects[one].chain);
            }
            let is_judged = is_first || !matches!(end, Affected::Failed(_));
            affected[one] = Some(if is_judged { end } else { Affected::Unjudged });
            continue;
        }
        let of_part: Vec<Effect<'_>> = part.iter().map(|place| effects[*place]).collect();
        let called = Instant::now();
        match perform_all(&savepoint, scope, function, &of_part).await? {
            Part::Done => {
                savepoint.commit().await?;
                if !part.is_empty() {
                    (in_a_row, is_first) = (0, false);
                    calls.push((part.len(), called.elapsed()));
                }
                for place in part {
                    affected[place] = Some(Affected::Done);
                }
            }
            Part::Repeats => {
                savepoint.rollback().await?;
                for place in part {
                    affected[place] = Some(Affected::Repeat);
                }
            }
            Part::Refused => {
                savepoint.rollback().await?;
                let second = part.split_off(part.len() / 2);
                parts.push_front(second);
                parts.push_front(part);
            }
            Part::Slow => return Ok(Together::TooLong(part.len())),
            Part::Lost => return Ok(lost(effects)),
        }
    }
    failpoint::hit("effect-before-commit");
    let committed = transaction.commit().await;
    failpoint::hit("effect-after-commit");
    match committed {
        Err(error) if is_refusal(&error) => Ok(Together::Apart),
        committed => {
            committed?;
            let affected = affected.into_iter().map(|end| end.unwrap_or(Affected::Untried)).collect();
            Ok(Together::Ended(affected, calls))
        }
    }
}

/// Any of them may be what ended it.
fn lost(effects: &[Effect<'_>]) -> Together {
    Together::Ended(effects.iter().map(|_| Affected::Lost).collect(), Vec::new())
}

async fn perform_all(
    transaction: &Transaction<'_>,
    scope: Scope<'_>,
    function: Function<'_>,
    effects: &[Effect<'_>],
) -> Result<Part, PgError> {
    if effects.is_empty() {
        return Ok(Part::Done);
    }
    let mut finished: Vec<Finished> = effects.iter().map(Effect::finished).collect();
    // In the same order as whoever else writes the same.
    finished.sort_unstable_by_key(|finished| finished.message_id);
    match completing::write(transaction, scope, &finished).await? {
        0 => return Ok(Part::Repeats),
        written if usize::try_from(written).is_ok_and(|written| written == effects.len()) => {}
        _ => return Ok(Part::Refused),
    }
    let wanted: Vec<Wanted<'_>> = effects.iter().map(Effect::wanted).collect();
    let claimant = Claimant { group: scope.group, agent: scope.agent };
    if !claims::claim_done(transaction, claimant, &wanted).await? {
        return Ok(Part::Refused);
    }
    match call(transaction, function, effects, Then::Others).await {
        Ok(()) => Ok(Part::Done),
        Err(error) if is_cut(&error) => Ok(Part::Lost),
        Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => Ok(Part::Slow),
        Err(error) if is_refusal(&error) || is_of_client(&error) => Ok(Part::Refused),
        Err(error) => Err(error.into()),
    }
}
