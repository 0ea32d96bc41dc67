//! Parse, start the runtime, exit code.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use outboxd::cli::Cli;
use outboxd::failure::Failure;
use outboxd::telemetry::{self, Logging};
use tikv_jemallocator::Jemalloc;
use tokio::runtime::Runtime;

/// For librdkafka as well, which allocates more than we do, and frees on other threads than it allocates on: a relay at
/// full speed takes a sixth less CPU with it than with the allocator of glibc (`docs/performance.md`).
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let exit = match prepare(&cli) {
        Ok(runtime) => {
            let exit = runtime.block_on(cli.run());
            // A thread of librdkafka's or a blocked read must not keep a process that is done.
            runtime.shutdown_background();
            exit
        }
        Err(error) => cli.report(&error),
    };
    exit.into()
}

fn prepare(cli: &Cli) -> anyhow::Result<Runtime> {
    telemetry::init(Logging {
        level: cli.log_level(),
        default_level: cli.default_log_level(),
        json: cli.logs_are_json(),
        color: cli.colors_stderr(),
    })
    .map_err(|error| Failure::usage(error.to_string()))?;
    Runtime::new().context("the runtime cannot be started")
}
