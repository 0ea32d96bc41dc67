//! `outboxd bench idle`.

use std::time::Duration;

use clap::Args;

use super::{Common, percent, room};
use crate::bench::{self, IdleReport};
use crate::cli::global::Global;
use crate::cli::output::{self, maybe};
use crate::failure::Exit;

/// What the relay and its database sessions take while there is nothing to do
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  outboxd bench idle --seconds 60")]
pub struct Options {
    /// How long it is watched, in seconds
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    #[command(flatten)]
    common: Common,
}

impl Options {
    pub async fn run(&self, global: &Global) -> anyhow::Result<Exit> {
        let duration = Duration::from_secs(self.seconds.into());
        let measure = async |bench: &mut bench::Workbench| bench::idle::run(bench, duration).await;
        self.common.run(global, measure, show, |_| true).await
    }
}

fn show(report: &IdleReport) -> Result<(), output::OutputError> {
    output::line(&output::facts(vec![
        ("relay", percent(report.cpu_percent)),
        ("its sessions", maybe(report.sessions_cpu_percent.map(percent))),
        ("memory", room(report.peak_memory_bytes)),
        ("a client that only asks as often", percent(report.asking_cpu_percent)),
        ("its session", maybe(report.asking_session_cpu_percent.map(percent))),
    ]))
}
