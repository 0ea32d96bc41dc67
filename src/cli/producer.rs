//! `outboxd producer`.

use std::net::SocketAddr;

use clap::Args;

use super::global::Global;
use crate::app::{self, DaemonOptions};
use crate::failure::Exit;

/// Publish: the relay and the producer's jobs, in the foreground, until SIGTERM
///
/// The first SIGTERM or SIGINT drains and ends with 0, the second cuts that short. It waits for a database or a broker
/// that does not answer, and says so.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  outboxd producer --name relay-1 --listen 127.0.0.1:9464")]
pub struct Options {
    #[command(flatten)]
    daemon: Daemon,
}

/// Of every daemon.
#[derive(Args, Debug)]
pub struct Daemon {
    /// The agent's name, instead of `[agent] name`
    #[arg(long)]
    name: Option<String>,
    /// Where its health is told, instead of `[http] listen`
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
}

impl Daemon {
    pub fn options(&self) -> DaemonOptions {
        DaemonOptions { name: self.name.clone(), listen: self.listen }
    }
}

impl Options {
    pub async fn run(&self, global: &Global) -> anyhow::Result<Exit> {
        app::producer(global.load()?, self.daemon.options()).await
    }
}
