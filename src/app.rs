//! The composition root: the only place that wires configuration, pools, clients and tasks.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::config::Loaded;
use crate::failure::Exit;

/// What the command line says of a daemon, over its file.
#[derive(Clone, Debug, Default)]
pub struct DaemonOptions {
    pub name: Option<String>,
    pub listen: Option<SocketAddr>,
}

#[derive(Clone, Debug, Default)]
pub struct DevOptions {
    /// Feed it, show it working, and end.
    pub demo: bool,
    /// Where its data is kept; temporary without.
    pub data_dir: Option<PathBuf>,
}

/// The relay and the producer's jobs, until SIGTERM.
pub async fn producer(_: Loaded, _: DaemonOptions) -> anyhow::Result<Exit> {
    std::future::ready(Err(anyhow::anyhow!("not wired yet"))).await
}

/// The consumers of those groups, which are declared, until SIGTERM.
pub async fn consumer(_: Loaded, _: Vec<String>, _: DaemonOptions) -> anyhow::Result<Exit> {
    std::future::ready(Err(anyhow::anyhow!("not wired yet"))).await
}

/// Every role in one process on an embedded default.
pub async fn dev(_: DevOptions) -> anyhow::Result<Exit> {
    std::future::ready(Err(anyhow::anyhow!("not wired yet"))).await
}
