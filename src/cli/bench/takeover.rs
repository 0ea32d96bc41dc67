//! `outboxd bench takeover`.

use clap::Args;

use super::{Applications, Common, millis};
use crate::bench::{self, TakeoverOptions, TakeoverReport};
use crate::cli::global::Global;
use crate::cli::output;
use crate::failure::Exit;

/// How long messages wait when the relay that has their lane ends, or is killed, and another one is there
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  outboxd bench takeover\n  outboxd bench takeover --rounds 1 --json")]
pub struct Options {
    /// Transactions a second, of one message each
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// How often each is measured; all are told
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    #[command(flatten)]
    applications: Applications,
    #[command(flatten)]
    common: Common,
}

impl Options {
    pub async fn run(&self, global: &Global) -> anyhow::Result<Exit> {
        let options = TakeoverOptions {
            rounds: self.rounds,
            rate: f64::from(self.rate),
            clients: self.applications.clients,
            payload_bytes: self.applications.payload_bytes as usize,
            partitions: self.applications.partitions,
        };
        let measure = async |bench: &mut bench::Workbench| bench::takeover::run(bench, options).await;
        self.common.run(global, measure, show, TakeoverReport::is_right).await
    }
}

fn show(report: &TakeoverReport) -> Result<(), output::OutputError> {
    let all = |waits: &[f64]| waits.iter().map(|wait| millis(*wait)).collect::<Vec<_>>().join(", ") + " ms";
    output::line(&output::facts(vec![
        ("longest wait, owner asked to end", all(&report.hand_over_ms)),
        ("longest wait, owner killed", all(&report.takeover_ms)),
        ("lease", format!("{} s", report.lease_seconds)),
        (
            "messages",
            format!(
                "{}, {} lost, {} out of order, {} repeats",
                report.messages, report.lost, report.out_of_order, report.repeats
            ),
        ),
    ]))
}
