//! `partitions`: leaves of the outbox are there before the sequence is, for a day at the highest rate seen, and leaves of
//! the evidence before their time is.

use std::sync::Arc;
use std::time::Duration;

use super::runner::{Done, Failure, Job, Outcome};
use super::{every, evidence};
use crate::config::Retention;
use crate::domain::leaves::{Leaf, Step, next_step};
use crate::pg::connect::Connection;
use crate::pg::leaves::{self, Busy};
use crate::pg::{Connector, PgError};

pub const NAME: &str = "partitions";

/// Rescue, jump, and what may come up meanwhile.
const STEPS: usize = 5;

pub fn job(connector: Connector, retention: &Retention) -> Job {
    let connector = Arc::new(connector);
    let kept = retention.handled;
    let job = Job::new(NAME, every(60), move |_| {
        let connector = Arc::clone(&connector);
        Box::pin(async move { work(&leaves::connect(&connector).await?, kept).await })
    });
    job.at_start()
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
    Ok(Done::told(done.len(), (!done.is_empty()).then(|| done.join("; "))))
}

/// The steps of a rescue are transactions of their own: none holds a lock while the default is read.
async fn rescue(client: &Connection, row: &[Leaf]) -> Result<(), Failure> {
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

async fn make(client: &Connection, row: &[Leaf]) -> Result<(), Failure> {
    for leaf in row {
        step_free(leaves::make(client, *leaf).await?, "no leaf is made")?;
    }
    Ok(())
}

fn step_free(step: Result<(), Busy>, what: &str) -> Result<(), Failure> {
    step.map_err(|Busy| {
        PgError::Setup(format!("{what} while others use outboxd.messages or its default partition")).into()
    })
}

fn end(row: &[Leaf]) -> i64 {
    row.last().map_or(0, |last| last.to)
}
