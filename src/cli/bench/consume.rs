//! `outboxd bench consume`.

use clap::Args;

use super::relay::ShapeOptions;
use super::{Common, room};
use crate::bench::{self, Beside, ConsumeOptions, ConsumeReport};
use crate::cli::global::Global;
use crate::cli::output::{self, maybe};
use crate::failure::Exit;

/// How fast a group handles a topic, with evidence for every message, beside reading it alone
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  outboxd bench consume\n  outboxd bench consume --messages 20000 --rounds 1 --json\n  \
                  outboxd bench consume --handled 50000000 --operations 20000000"
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
    /// How many rows of evidence another group has left before
    #[arg(long, default_value_t = 0, value_name = "ROWS", value_parser = clap::value_parser!(u64).range(..=10_000_000_000))]
    handled: u64,
    /// How many operations another group has finished before
    #[arg(long, default_value_t = 0, value_name = "ROWS", value_parser = clap::value_parser!(u64).range(..=10_000_000_000))]
    operations: u64,
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
            before: bench::Before { handled: self.handled, operations: self.operations },
        };
        let measure = async |bench: &mut bench::Workbench| bench::consume::run(bench, options).await;
        self.common.run(global, measure, show, |report| report.lost == 0).await
    }
}

fn show(report: &ConsumeReport) -> Result<(), output::OutputError> {
    let row = |what: &str, beside: &Beside, rest: [String; 4]| {
        let [transactions, cpu, memory, lost] = rest;
        let (reading, group) = (beside.reading_per_second, beside.handled_per_second);
        let ratio = format!("{:.2}", beside.ratio);
        [
            what.to_owned(),
            format!("{reading:.0}"),
            format!("{group:.0}"),
            ratio,
            transactions,
            cpu,
            memory,
            lost,
        ]
    };
    let rest = [
        format!("{:.4}", report.transactions_per_message),
        maybe(report.cpu_seconds_per_million.map(|seconds| format!("{seconds:.2}"))),
        maybe(report.peak_memory_bytes.map(room)),
        report.lost.to_string(),
    ];
    let rows = [
        row("from their start, messages a second", &report.whole, rest),
        row("the same, beside librdkafka's defaults", &report.beside_defaults, Default::default()),
        row("once started", &report.steady, Default::default()),
    ];
    let columns =
        ["", "READING ALONE", "GROUP", "RATIO", "TRANSACTIONS PER MESSAGE", "CPU S PER M", "MEMORY", "LOST"];
    output::table(columns, rows)
}
