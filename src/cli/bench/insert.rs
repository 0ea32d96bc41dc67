//! `outboxd bench insert`.

use clap::Args;

use super::{Common, Load, millis};
use crate::bench::{self, InsertOptions, InsertReport, Inserts};
use crate::cli::global::Global;
use crate::cli::output;
use crate::failure::Exit;

/// What the application pays: single-row inserts with the relay at work, beside a table like the outbox with none
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  outboxd bench insert\n  outboxd bench insert --clients 32 --seconds 10 --json"
)]
pub struct Options {
    /// Of the runs at a given rate, in transactions a second
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// How often each is measured; medians are told
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    #[command(flatten)]
    load: Load<5>,
    #[command(flatten)]
    common: Common,
}

impl Options {
    pub async fn run(&self, global: &Global) -> anyhow::Result<Exit> {
        let options = InsertOptions {
            clients: self.load.applications.clients,
            duration: self.load.duration(),
            rounds: self.rounds,
            rate: f64::from(self.rate),
            payload_bytes: self.load.applications.payload_bytes as usize,
            partitions: self.load.applications.partitions,
        };
        let measure = async |bench: &mut bench::Workbench| bench::insert::run(bench, options).await;
        self.common.run(global, measure, show, InsertReport::is_right).await
    }
}

fn show(report: &InsertReport) -> Result<(), output::OutputError> {
    let columns = ["", "TX/S", "RATIO", "COMMIT P50 MS", "P99 MS", "MAX MS", "ERRORS", "LOCK WAITS"];
    let row = |name: String, inserts: &Inserts, ratio: Option<f64>| {
        [
            name,
            format!("{:.0}", inserts.transactions_per_second),
            output::maybe(ratio.map(|ratio| format!("{ratio:.2}"))),
            millis(inserts.commit_ms.p50),
            millis(inserts.commit_ms.p99),
            millis(inserts.commit_ms.max),
            inserts.errors.to_string(),
            inserts.lock_waits.to_string(),
        ]
    };
    let offered = format!("{:.0} tx/s offered", report.offered_per_second);
    let rows = [
        row("plain table".to_owned(), &report.plain, None),
        row("outbox, relay at work".to_owned(), &report.outbox, Some(report.ratio)),
        row(format!("plain table, {offered}"), &report.plain_offered, None),
        row(format!("outbox, relay at work, {offered}"), &report.outbox_offered, Some(report.ratio_offered)),
    ];
    output::table(columns, rows)?;
    let InsertReport { published, lost, out_of_order, repeats, .. } = report;
    output::line(&format!(
        "{published} published, {lost} lost, {out_of_order} out of order, {repeats} repeats"
    ))
}
