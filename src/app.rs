//! The composition root: the only place that wires configuration, pools, clients and tasks.

mod daemon;
mod dev;
pub mod embed;
mod reload;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use daemon::{Daemon, Role};
pub use dev::{DevOptions, dev};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::config::{Config, Loaded};
use crate::consumer::handler::Handler;
use crate::consumer::{
    self, ConsumerError, ConsumerStatus, Drained, GroupContext, GroupStatus, Live, Solitude, handler,
};
use crate::failure::{Exit, Failure, Kind};
use crate::jobs::services::PROCESS_PENDING;
use crate::lifecycle::Lifecycle;
use reload::Reload;

use crate::producer::{Relay, RelayStatus};
use crate::telemetry::{self, metrics::Metrics};

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
    let reload = Reload::listen(&loaded, "producer")?;
    telemetry::follow(loaded.config.log.level.as_ref());
    let config = options.over(loaded.config);
    let lifecycle = Lifecycle::on_signals(config.agent.drain_timeout)?;
    run_producer(config, lifecycle, Some(reload)).await
}

/// The consumers of those groups, which are declared, until SIGTERM.
pub async fn consumer(loaded: Loaded, groups: Vec<String>, options: DaemonOptions) -> anyhow::Result<Exit> {
    let reload = Reload::listen(&loaded, "consumer")?;
    telemetry::follow(loaded.config.log.level.as_ref());
    let config = options.over(loaded.config);
    let lifecycle = Lifecycle::on_signals(config.agent.drain_timeout)?;
    let handlers = prepare(&config, groups)?;
    run_consumer(config, handlers, lifecycle, Some(reload)).await
}

async fn run_producer(config: Config, lifecycle: Lifecycle, reload: Option<Reload>) -> anyhow::Result<Exit> {
    let metrics = Arc::new(Metrics::default());
    let status = Arc::new(RelayStatus::new(Arc::clone(&metrics)));
    let vitals: Vec<Arc<dyn Role>> = vec![Arc::clone(&status) as Arc<dyn Role>];
    let mut daemon =
        Daemon::start(config, lifecycle.clone(), "producer", Vec::new(), vitals, metrics, reload).await?;
    let Some(member) = daemon.join().await? else { return Ok(Exit::Done) };
    let relay = Relay {
        agent: member.name.clone(),
        connector: daemon.connector(&member.name),
        kafka: daemon.config.kafka.clone(),
        settings: daemon.config.producer.clone(),
        topics: daemon.config.topics.clone(),
        status,
        ordered_out: member.ordered_out.subscribe(),
        gate: Arc::clone(&daemon.gate),
    };
    let is_off = daemon.config.jobs.get(PROCESS_PENDING).is_some_and(|job| !job.enabled);
    // A task: it is then woken on the thread that has waited for its database's answer.
    let running = AbortOnDropHandle::new(tokio::spawn(async move {
        if is_off {
            relay.status.switched_off();
            lifecycle.drain.cancelled().await;
        } else {
            relay.run(&lifecycle.drain).await;
        }
    }));
    let work = async { running.await.map(|()| Vec::new()).context("the relay has panicked") };
    daemon.work(member, work, |_| {}).await
}

/// Finds out what is wrong with a handler before anything is joined, let alone handled.
fn prepare(config: &Config, groups: Vec<String>) -> anyhow::Result<BTreeMap<String, Handler>> {
    let prepare = |name: String| {
        let group = config.groups.get(&name).with_context(|| format!("there is no group `{name}`"))?;
        let handler = handler::prepare(&group.handler)
            .with_context(|| Failure::new(Kind::Configuration, format!("group `{name}`, handler")))?;
        Ok((name, handler))
    };
    groups.into_iter().map(prepare).collect()
}

/// Consumes for these groups, which are declared.
async fn run_consumer(
    config: Config,
    handlers: BTreeMap<String, Handler>,
    lifecycle: Lifecycle,
    reload: Option<Reload>,
) -> anyhow::Result<Exit> {
    let groups: Vec<String> = handlers.keys().cloned().collect();
    let metrics = Arc::new(Metrics::default());
    let status: Vec<_> =
        groups.iter().map(|group| Arc::new(GroupStatus::new(group, Arc::clone(&metrics)))).collect();
    let vitals: Vec<Arc<dyn Role>> = vec![Arc::new(ConsumerStatus(status.clone()))];
    let mut daemon =
        Daemon::start(config, lifecycle.clone(), "consumer", groups, vitals, metrics, reload).await?;
    let Some(member) = daemon.join().await? else { return Ok(Exit::Done) };
    let live: BTreeMap<String, Live> =
        handlers.keys().map(|name| (name.clone(), Live::new(daemon.config.groups[name].clone()))).collect();
    let change = |config: &Config| {
        for (name, live) in &live {
            if let Some(group) = config.groups.get(name) {
                live.change(group);
            }
        }
    };
    let solitude = Solitude::default();
    let mut running = JoinSet::new();
    for ((name, handler), status) in handlers.into_iter().zip(status) {
        let context = GroupContext {
            handler,
            config: live[&name].clone(),
            connector: daemon.connector(&member.name),
            kafka: daemon.config.kafka.clone(),
            agent: member.id,
            agent_name: member.name.clone(),
            name,
            status,
            solitude: solitude.clone(),
            patience: consumer::PATIENCE,
        };
        running.spawn(consumer::run(context, lifecycle.drain.clone(), lifecycle.abort.clone()));
    }
    daemon.work(member, all(running, lifecycle.drain.clone()), change).await
}

/// Waits for every group. One that cannot go on drains the others, and is what the end tells.
async fn all(
    mut running: JoinSet<Result<Drained, ConsumerError>>,
    drain: CancellationToken,
) -> anyhow::Result<Vec<String>> {
    let mut left = Vec::new();
    let mut failure = None;
    while let Some(ended) = running.join_next().await {
        match ended? {
            Ok(drained) => left.extend(drained.left),
            Err(error) => {
                drain.cancel();
                failure.get_or_insert(Failure::new(Kind::Configuration, error.to_string()));
            }
        }
    }
    failure.map_or(Ok(left), |failure| Err(failure.into()))
}
