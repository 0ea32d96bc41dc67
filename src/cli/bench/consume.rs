//! `outboxd bench consume`.

use clap::Args;

use super::relay::ShapeOptions;
use super::{Common, room};
use crate::bench::{self, ConsumeOptions, ConsumeReport};
use crate::cli::global::Global;
use crate::cli::output::{self, maybe};
use crate::failure::Exit;

/// How fast a group handles a topic, with evidence for every message, beside reading it alone
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  outboxd bench consume\n  outboxd bench consume --messages 20000 --rounds 1 --json"
)]
pub struct Options {
    /// How many messages the topic holds
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1_000..=100_000_000))]
    messages: u64,
    /// How often each is measured; medians are told
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Give every message an idempotency key
    #[arg(long)]
    idempotency_keys: bool,
    #[command(flatten)]
    shape: ShapeOptions,
    #[command(flatten)]
    common: Common,
}

impl Options {
    pub async fn run(&self, global: &Global) -> anyhow::Result<Exit> {
        let options = ConsumeOptions {
            messages: self.messages,
            rounds: self.rounds,
            shape: self.shape.shape(),
            keys: self.idempotency_keys,
        };
        let measure = async |bench: &mut bench::Workbench| bench::consume::run(bench, options).await;
        self.common.run(global, measure, show, |report| report.lost == 0).await
    }
}

fn show(report: &ConsumeReport) -> Result<(), output::OutputError> {
    let reading = ["reading alone", &format!("{:.0}", report.reading_per_second), "", "", "", "", ""];
    let group = [
        "group, handler that does nothing".to_owned(),
        format!("{:.0}", report.handled_per_second),
        format!("{:.2}", report.ratio),
        format!("{:.4}", report.transactions_per_message),
        maybe(report.cpu_seconds_per_million.map(|seconds| format!("{seconds:.2}"))),
        maybe(report.peak_memory_bytes.map(room)),
        report.lost.to_string(),
    ];
    let columns = ["", "MSG/S", "RATIO", "TRANSACTIONS PER MESSAGE", "CPU S PER M", "MEMORY", "LOST"];
    output::table(columns, [reading.map(str::to_owned), group])
}
