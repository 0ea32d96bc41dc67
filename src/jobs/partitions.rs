//! `partitions`: leaves of the outbox are there before the sequence is, for a day at the highest rate seen, and leaves of
//! the evidence before their time is.

use std::sync::Arc;
use std::time::Duration;

use super::{Job, Outcome, evidence};
use crate::config::Retention;
use crate::domain::leaves::{Leaf, Step, next_step};
use crate::domain::schedule::Schedule;
use crate::pg::connect::Connection;
use crate::pg::leaves::{self, Busy};
use crate::pg::{Connector, PgError};

pub const NAME: &str = "partitions";

/// Rescue, jump, and what may come up meanwhile.
const STEPS: usize = 5;

pub fn job(connector: Connector, retention: &Retention) -> Job {
    let connector = Arc::new(connector);
    let kept = retention.handled;
    Job {
        name: NAME,
        schedule: Schedule::Every(Duration::from_secs(60)),
        at_start: true,
        body: Box::new(move || {
            let connector = Arc::clone(&connector);
            Box::pin(async move {
                let client = connector.connect().await?;
                if !leaves::claim(&client, NAME).await? {
                    return Ok(None);
                }
                let outcome = work(&client, kept).await;
                leaves::give_back(&client, NAME).await?;
                outcome
            })
        }),
    }
}

async fn work(client: &Connection, kept: Duration) -> Outcome {
    step_free(leaves::free_range(client).await?, "a constraint that a rescue left behind is not removed")?;
    let mut done = Vec::new();
    for _ in 0..STEPS {
        let sequence = leaves::sequence(client).await?;
        let rate = leaves::observe_rate(client, sequence.last_seq).await?;
        let ranges: Vec<Leaf> = leaves::leaves(client).await?.iter().map(|found| found.leaf).collect();
        match next_step(&ranges, sequence.last_seq, rate, sequence.default_is_small) {
            Step::Enough => break,
            Step::Extend(row) => {
                make(client, &row).await?;
                done.push(format!("made {} leaves up to seq {}", row.len(), end(&row)));
            }
            Step::Rescue(row) => {
                rescue(client, &row).await?;
                done.push(format!(
                    "the default partition has rows: made {} leaves far beyond, up to seq {}",
                    row.len(),
                    end(&row)
                ));
            }
            Step::Jump(to) => {
                leaves::advance_sequence(client, to).await?;
                done.push(format!("the sequence goes on at {to}"));
            }
        }
    }
    let evidence = evidence::make_ahead(client, kept).await?;
    if evidence > 0 {
        done.push(format!("made {evidence} leaves of the evidence"));
    }
    Ok((!done.is_empty()).then(|| done.join("; ")))
}

/// The steps of a rescue are transactions of their own: none holds a lock while the default is read.
async fn rescue(client: &Connection, row: &[Leaf]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let Some(first) = row.first() else { return Ok(()) };
    step_free(leaves::reserve_range(client, first.from, end(row)).await?, "no range is reserved")?;
    let made = async {
        step_free(leaves::validate_range(client).await?, "the default partition is not read")?;
        make(client, row).await
    };
    let made = made.await;
    // Also after a failure; what is busy now, the next run removes first.
    let freed = leaves::free_range(client).await?;
    made?;
    step_free(freed, "the constraint of a rescue is not removed")
}

async fn make(client: &Connection, row: &[Leaf]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    for leaf in row {
        step_free(leaves::make(client, *leaf).await?, "no leaf is made")?;
    }
    Ok(())
}

fn step_free(step: Result<(), Busy>, what: &str) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    step.map_err(|Busy| {
        PgError::Setup(format!("{what} while others use outboxd.messages or its default partition")).into()
    })
}

fn end(row: &[Leaf]) -> i64 {
    row.last().map_or(0, |last| last.to)
}
