//! `outboxd bench latency`.

use std::time::Duration;

use clap::Args;

use super::{Common, Load, millis, percent, room};
use crate::bench::{self, LatencyOptions, LatencyReport, Spread};
use crate::cli::global::Global;
use crate::cli::output::{self, maybe};
use crate::failure::Exit;

/// From an application's commit to the broker, at a given rate
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  outboxd bench latency\n  outboxd bench latency --rate 100 --warm-up 2 --seconds 5 --json"
)]
pub struct Options {
    /// Transactions a second, of one message each
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// Seconds at that rate before measuring; a broker that has worked for long needs few
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    warm_up: u32,
    #[command(flatten)]
    load: Load<20>,
    #[command(flatten)]
    common: Common,
}

impl Options {
    pub async fn run(&self, global: &Global) -> anyhow::Result<Exit> {
        let options = LatencyOptions {
            rate: f64::from(self.rate),
            warm_up: Duration::from_secs(self.warm_up.into()),
            duration: self.load.duration(),
            clients: self.load.applications.clients,
            payload_bytes: self.load.applications.payload_bytes as usize,
            partitions: self.load.applications.partitions,
        };
        let measure = async |bench: &mut bench::Workbench| bench::latency::run(bench, options).await;
        self.common.run(global, measure, show, |report| report.lost == 0).await
    }
}

fn show(report: &LatencyReport) -> Result<(), output::OutputError> {
    let row = |name: &str, spread: Spread| {
        let Spread { p50, p95, p99, max } = spread;
        [name.to_owned(), millis(p50), millis(p95), millis(p99), millis(max)]
    };
    let rows = [
        row("commit", report.commit_ms),
        row("commit to arrival", report.commit_to_arrival_ms),
        row("commit to append", report.commit_to_append_ms),
        row("without a database: send to acknowledgement", report.send_to_ack_ms),
        row("without a database: send to arrival", report.send_to_arrival_ms),
    ];
    output::table(["MILLISECONDS", "P50", "P95", "P99", "MAX"], rows)?;
    let server = &report.postgres;
    output::line(&output::facts(vec![
        ("transactions", format!("{:.0} a second, {} lost", report.committed_per_second, report.lost)),
        ("warm-up", format!("{:.0} s before", report.warm_up_seconds)),
        ("relay", maybe(report.cpu_percent.map(percent)) + ", " + &maybe(report.peak_memory_bytes.map(room))),
        ("server", format!("fsync {}, synchronous_commit {}", server.fsync, server.synchronous_commit)),
    ]))
}
