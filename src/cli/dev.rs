//! `outboxd dev`.

use std::path::PathBuf;

use clap::Args;

use crate::app::{self, DevOptions};
use crate::failure::Exit;

/// Try it: every role in one process, with a private PostgreSQL and Kafka in the process
///
/// It needs PostgreSQL's programs, not a running server, and no Kafka. It prints where everything is and stays up until
/// SIGTERM. Not for load.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  outboxd dev --demo\n  outboxd dev --data-dir ./outboxd-dev")]
pub struct Options {
    /// Feed it with orders, show what becomes of them, and end
    #[arg(long)]
    demo: bool,
    /// Keep the data there; without, it is gone at the end
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Options {
    /// The demo's account is its own log.
    pub(super) fn tells_by_itself(&self) -> bool {
        self.demo
    }

    pub async fn run(&self) -> anyhow::Result<Exit> {
        app::dev(DevOptions { demo: self.demo, data_dir: self.data_dir.clone() }).await
    }
}
