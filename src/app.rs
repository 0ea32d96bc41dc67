//! The composition root: the only place that wires configuration, pools, clients and tasks.

mod daemon;
mod dev;

use std::net::SocketAddr;
use std::sync::Arc;

use daemon::Daemon;
pub use dev::{DevOptions, dev};

use crate::config::{Config, Loaded};
use crate::domain::health::Vitals;
use crate::failure::Exit;
use crate::lifecycle::Lifecycle;
use crate::producer::{Relay, RelayStatus};

/// What the command line says of a daemon, over its file.
#[derive(Clone, Debug, Default)]
pub struct DaemonOptions {
    pub name: Option<String>,
    pub listen: Option<SocketAddr>,
}

impl DaemonOptions {
    fn over(self, mut config: Config) -> Config {
        config.agent.name = self.name.or(config.agent.name);
        config.http.listen = self.listen.or(config.http.listen);
        config
    }
}

/// The relay and the producer's jobs, until SIGTERM.
pub async fn producer(loaded: Loaded, options: DaemonOptions) -> anyhow::Result<Exit> {
    let config = options.over(loaded.config);
    let lifecycle = Lifecycle::on_signals(config.agent.drain_timeout)?;
    run_producer(config, lifecycle).await
}

/// The consumers of those groups, which are declared, until SIGTERM.
pub async fn consumer(loaded: Loaded, groups: Vec<String>, options: DaemonOptions) -> anyhow::Result<Exit> {
    let config = options.over(loaded.config);
    let lifecycle = Lifecycle::on_signals(config.agent.drain_timeout)?;
    run_consumer(config, groups, lifecycle).await
}

async fn run_consumer(_: Config, _: Vec<String>, _: Lifecycle) -> anyhow::Result<Exit> {
    anyhow::bail!("not wired yet")
}

async fn run_producer(config: Config, lifecycle: Lifecycle) -> anyhow::Result<Exit> {
    let status = Arc::new(RelayStatus::default());
    let vitals: Vec<Arc<dyn Vitals>> = vec![Arc::clone(&status) as Arc<dyn Vitals>];
    let mut daemon = Daemon::start(config, lifecycle.clone(), "producer", Vec::new(), vitals).await?;
    let Some(member) = daemon.join().await? else { return Ok(Exit::Done) };
    let relay = Relay {
        agent: member.name.clone(),
        connector: daemon.connector(&member.name),
        kafka: daemon.config.kafka.clone(),
        settings: daemon.config.producer.clone(),
        status,
    };
    let work = async {
        relay.run(&lifecycle.drain).await;
        Ok(Vec::new())
    };
    daemon.work(member, work).await
}
