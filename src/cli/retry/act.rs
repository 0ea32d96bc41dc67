//! Carrying a decision out: on the ids that were named, or on all that fit the filters.

use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use uuid::Uuid;

use super::filters::{Filters, Page, Rate, rate};
use super::operator::operator;
use super::{find, table};
use crate::cli::confirm::confirm;
use crate::cli::global::{Global, connect};
use crate::cli::output;
use crate::failure::{Exit, Failure, Kind};
use crate::pg::connect::Connection;
use crate::pg::operations;
use crate::pg::retry::{self, BATCH, Decision, Entry, Filter, Place};

/// With a rate, one takes about this long.
const STRIDE: Duration = Duration::from_millis(200);

/// A preview shows no more than these.
const PREVIEW: usize = 20;

#[derive(Args, Debug)]
pub struct Options {
    /// Their own ids, or the derived ones
    #[arg(conflicts_with_all = ["Filters", "Page", "all"])]
    ids: Vec<Uuid>,
    #[command(flatten)]
    filters: Filters,
    #[command(flatten)]
    page: Page,
    /// All there are: without it, something must narrow them down
    #[arg(long)]
    all: bool,
    /// No faster than this, like 100/s
    #[arg(long, value_parser = rate)]
    rate: Option<Rate>,
    /// Show which they are, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// Words for a decision: what it does, what it has done.
fn words(decision: Decision) -> (&'static str, &'static str) {
    match decision {
        Decision::Replay => ("Send", "sent again"),
        Decision::Discard => ("Discard", "discarded"),
    }
}

impl Options {
    pub async fn run(&self, global: &Global, decision: Decision) -> anyhow::Result<Exit> {
        if self.ids.is_empty() && !self.all && !self.filters.filter().is_narrow() {
            let what =
                "nothing is changed: without an id or a filter that means all of them, which takes --all";
            return Err(Failure::new(Kind::Refused, what).into());
        }
        if self.ids.is_empty() {
            self.filters.filter().check(decision).map_err(|why| Failure::new(Kind::Usage, why))?;
        }
        let config = global.load()?.config;
        let mut client = connect(&config, "retry").await?;
        let (entries, selection) = self.select(&client, decision).await?;
        let (verb, done) = words(decision);
        if self.dry_run {
            preview(&entries)?;
            return Ok(Exit::Done);
        }
        if entries.is_empty() {
            output::line("no message fits: nothing to do")?;
            return Ok(Exit::Done);
        }
        if !self.yes {
            preview(&entries)?;
        }
        confirm(&format!("{verb} {}?", messages(entries.len())), self.yes)?;
        let operation = operations::begin(&client, decision.command(), &selection, &operator()).await?;
        let mut changed = 0;
        let places = retry::in_order(entries);
        let carried_out = self.carry_out(&mut client, decision, operation, &places, &mut changed).await;
        let result = match &carried_out {
            Ok(true) => "done".to_owned(),
            Ok(false) => "interrupted".to_owned(),
            Err(error) => error.to_string(),
        };
        // If the database is gone, its end stays open there, which tells as much.
        let noted = operations::end(&client, operation, &result).await;
        let told = format!("{} {done}", messages(usize::try_from(changed).unwrap_or_default()));
        match carried_out {
            Ok(true) => {
                noted?;
                output::line(&told)?;
                Ok(Exit::Done)
            }
            Ok(false) => {
                Err(Failure::new(Kind::Other, format!("interrupted: {told}, the rest is as it was")).into())
            }
            Err(error) if changed > 0 => {
                Err(anyhow::Error::from(error).context(Failure::new(Kind::Other, format!("{told}; then"))))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Which they are now, and how the record names them.
    async fn select(&self, client: &Connection, decision: Decision) -> anyhow::Result<(Vec<Entry>, Value)> {
        if self.ids.is_empty() {
            let filter: Filter = self.page.of(self.filters.filter(), None);
            let entries = retry::list(client, &filter).await?;
            return Ok((entries, serde_json::to_value(&filter)?));
        }
        Ok((find(client, decision.states(), &self.ids).await?, json!({ "ids": self.ids })))
    }

    /// Says whether it came to its end: an interrupt is heard between two batches.
    async fn carry_out(
        &self,
        client: &mut Connection,
        decision: Decision,
        operation: i64,
        places: &[Place],
        changed: &mut i64,
    ) -> Result<bool, crate::pg::PgError> {
        let batch = self.rate.map_or(BATCH, batch_for);
        let bar = bar(places.len());
        let interrupt = tokio::signal::ctrl_c();
        tokio::pin!(interrupt);
        for places in places.chunks(batch) {
            let begun = Instant::now();
            *changed += retry::decide(client, decision, operation, places).await?;
            bar.inc(places.len() as u64);
            let rest = self
                .rate
                .map_or(Duration::ZERO, |rate| rate.time_for(places.len()).saturating_sub(begun.elapsed()));
            tokio::select! {
                biased;
                _ = &mut interrupt => return Ok(false),
                () = tokio::time::sleep(rest) => {}
            }
        }
        bar.finish_and_clear();
        Ok(true)
    }
}

/// As many as the rate allows in a stride.
fn batch_for(rate: Rate) -> usize {
    (1..=BATCH).rev().find(|batch| rate.time_for(*batch) <= STRIDE).unwrap_or(1)
}

fn preview(entries: &[Entry]) -> Result<(), output::OutputError> {
    table(&entries[..entries.len().min(PREVIEW)])?;
    output::line(&match entries.len().checked_sub(PREVIEW) {
        Some(more @ 1..) => format!("... and {more} more: {}", messages(entries.len())),
        _ => messages(entries.len()),
    })
}

fn messages(count: usize) -> String {
    if count == 1 { "1 message".to_owned() } else { format!("{count} messages") }
}

/// On standard error, if that is a terminal.
fn bar(length: usize) -> ProgressBar {
    let bar = ProgressBar::new(length as u64);
    match ProgressStyle::with_template("{wide_bar} {pos}/{len}  {per_sec}, {eta} left") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_as_large_as_the_rate_allows() {
        let batch = |text| batch_for(rate(text).unwrap());
        assert_eq!((batch("100/s"), batch("1/s"), batch("100000/s")), (20, 1, BATCH));
    }
}
