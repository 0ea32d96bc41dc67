//! `outboxd bench relay`.

use clap::Args;

use super::Common;
use crate::bench::relay::{Drains, RelayReport};
use crate::bench::{self, RelayOptions, Shape};
use crate::cli::global::Global;
use crate::cli::output::{self, maybe};
use crate::failure::Exit;

/// How fast a backlog drains: the relay, and the same rows streamed and sent without any bookkeeping, in turn
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  outboxd bench relay\n  outboxd bench relay --messages 100000 --rounds 1 --json"
)]
pub struct Options {
    /// How many messages wait
    #[arg(long, default_value_t = 500_000, value_parser = clap::value_parser!(u64).range(1_000..=100_000_000))]
    messages: u64,
    /// How often each is measured; medians are told
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    #[command(flatten)]
    shape: ShapeOptions,
    #[command(flatten)]
    common: Common,
}

/// What the messages look like.
#[derive(Args, Clone, Copy, Debug)]
pub struct ShapeOptions {
    /// The size of a payload
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(16..=900_000))]
    payload_bytes: u32,
    /// How many keys take turns
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// Of the topics
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(i32).range(1..=1_000))]
    partitions: i32,
}

impl Options {
    pub async fn run(&self, global: &Global) -> anyhow::Result<Exit> {
        let config = global.load()?.config;
        let options = RelayOptions {
            messages: self.messages,
            rounds: self.rounds,
            partitions: self.shape.partitions,
            shape: Shape { payload_bytes: self.shape.payload_bytes as usize, keys: self.shape.keys },
        };
        let measure = async |bench: &mut bench::Workbench| bench::relay::run(bench, options).await;
        let report = bench::on_a_workbench(config, self.common.keep, measure).await?;
        if self.common.json {
            output::json(&report)?;
        } else {
            show(&report)?;
        }
        Ok(if report.is_right() { Exit::Done } else { Exit::Failed })
    }
}

fn show(report: &RelayReport) -> Result<(), output::OutputError> {
    let columns = [
        "",
        "MSG/S",
        "RATIO",
        "MB/S",
        "CPU S PER M",
        "POSTGRES CPU S PER M",
        "MEMORY",
        "LOST",
        "OUT OF ORDER",
        "REPEATS",
    ];
    let rows = [row("relay", &report.relay, report.ratio), row("stream and send", &report.bound, 1.0)];
    output::table(columns, rows)
}

fn row(name: &str, drains: &Drains, ratio: f64) -> [String; 10] {
    let two = |value: f64| format!("{value:.2}");
    [
        name.to_owned(),
        format!("{:.0}", drains.messages_per_second),
        two(ratio),
        format!("{:.1}", drains.bytes_per_second / 1e6),
        maybe(drains.cpu_seconds_per_million.map(two)),
        maybe(drains.postgres_cpu_seconds_per_million.map(two)),
        maybe(drains.peak_memory_bytes.map(|bytes| format!("{} MB", bytes / 1_000_000))),
        drains.lost.to_string(),
        drains.out_of_order.to_string(),
        drains.repeats.to_string(),
    ]
}
