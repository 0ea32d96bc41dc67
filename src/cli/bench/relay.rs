//! `outboxd bench relay`.

use clap::Args;

use super::{Common, room};
use crate::bench::{self, Drains, RelayOptions, RelayReport, Scenario, Shape};
use crate::cli::global::Global;
use crate::cli::output::{self, maybe};
use crate::failure::Exit;

/// How fast a backlog drains: the relay, and the same rows streamed and sent without any bookkeeping, in turn
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  outboxd bench relay\n  outboxd bench relay --messages 100000 --rounds 1 --json\n  outboxd bench relay --scenario held-transaction,late-commit"
)]
pub struct Options {
    /// How many messages wait
    #[arg(long, default_value_t = 500_000, value_parser = clap::value_parser!(u64).range(1_000..=100_000_000))]
    messages: u64,
    /// How often each is measured; medians are told
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Under what else, each with its ratio to the relay alone: held-transaction, held-snapshot, late-commit,
    /// large-backlog
    #[arg(long, value_delimiter = ',', value_parser = scenario)]
    scenario: Vec<Scenario>,
    /// Messages of the transaction that commits late
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1_000..=100_000_000))]
    late: u64,
    /// Messages of the large backlog
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(1_000..=1_000_000_000))]
    large: u64,
    #[command(flatten)]
    shape: ShapeOptions,
    #[command(flatten)]
    common: Common,
}

fn scenario(text: &str) -> Result<Scenario, String> {
    let names = || Scenario::ALL.map(Scenario::name).join(", ");
    Scenario::ALL
        .into_iter()
        .find(|scenario| scenario.name() == text)
        .ok_or_else(|| format!("one of {}", names()))
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

impl ShapeOptions {
    pub fn shape(self) -> Shape {
        Shape { payload_bytes: self.payload_bytes as usize, keys: self.keys, partitions: self.partitions }
    }
}

impl Options {
    pub async fn run(&self, global: &Global) -> anyhow::Result<Exit> {
        let options = RelayOptions {
            messages: self.messages,
            rounds: self.rounds,
            shape: self.shape.shape(),
            scenarios: self.scenario.clone(),
            late: self.late,
            large: self.large,
        };
        let measure = async |bench: &mut bench::Workbench| bench::relay::run(bench, options).await;
        self.common.run(global, measure, show, RelayReport::is_right).await
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
    let mut rows =
        vec![row("stream and send", &report.bound, None), row("relay", &report.relay, Some(report.ratio))];
    for scenario in &report.scenarios {
        rows.extend(scenario.normal.as_ref().map(|normal| row("relay, small backlog", normal, None)));
        rows.push(row(&format!("relay, {}", scenario.scenario), &scenario.relay, Some(scenario.ratio)));
    }
    output::table(columns, rows)
}

fn row(name: &str, drains: &Drains, ratio: Option<f64>) -> [String; 10] {
    let two = |value: f64| format!("{value:.2}");
    [
        name.to_owned(),
        format!("{:.0}", drains.messages_per_second),
        maybe(ratio.map(two)),
        format!("{:.1}", drains.bytes_per_second / 1e6),
        maybe(drains.cpu_seconds_per_million.map(two)),
        maybe(drains.postgres_cpu_seconds_per_million.map(two)),
        maybe(drains.peak_memory_bytes.map(room)),
        drains.lost.to_string(),
        drains.out_of_order.to_string(),
        drains.repeats.to_string(),
    ]
}
