//! `outboxd dev`: every role in one process, on a private Postgres and librdkafka's in-process broker.

mod demo;
mod postgres;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use postgres::EmbeddedPostgres;
use rdkafka::mocking::MockCluster;

use super::{prepare, run_consumer, run_producer};
use crate::config::Config;
use crate::config::agent::DRAIN_TIMEOUT;
use crate::domain::dispatch;
use crate::failure::Exit;
use crate::lifecycle::Lifecycle;
use crate::pg::connect::Connection;
use crate::pg::{Connector, PgError, agents, consuming, migrate};

/// What the example group is called and reads.
const TOPIC: &str = "orders";
const PARTITIONS: i32 = 3;

/// Between two looks whether the producer has joined.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(50);

#[derive(Clone, Debug, Default)]
pub struct DevOptions {
    /// Feed it, show it working, and end.
    pub demo: bool,
    /// Where its data is kept; temporary without.
    pub data_dir: Option<PathBuf>,
}

/// Starts everything, then shows it working or stays up until a signal.
pub async fn dev(options: DevOptions) -> anyhow::Result<Exit> {
    // First of all: a signal that comes while the server starts must not leave it behind.
    let lifecycle = Lifecycle::on_signals(DRAIN_TIMEOUT)?;
    let postgres = EmbeddedPostgres::start(options.data_dir.as_deref()).await?;
    let outcome = on(&postgres, &options, lifecycle).await;
    postgres.stop().await;
    outcome
}

async fn on(postgres: &EmbeddedPostgres, options: &DevOptions, lifecycle: Lifecycle) -> anyhow::Result<Exit> {
    let kafka = MockCluster::new(1).context("the in-process broker cannot be started")?;
    // It takes no request to make one.
    for topic in [TOPIC.to_owned(), dispatch::topic(TOPIC)] {
        kafka.create_topic(&topic, PARTITIONS, 1).context("the in-process broker refuses a topic")?;
    }
    let brokers = kafka.bootstrap_servers();
    let config = Config::parse(&configuration(postgres, &brokers), None, [])?.config;
    let connector = Connector::new(&config.postgres, "outboxd/dev");
    let mut client = connector.connect().await?;
    migrate::migrate(&mut client, Some(&config.postgres.roles)).await?;
    // The broker forgot everything when it ended, and so must the groups that stood on it.
    consuming::forget_groups(&client).await?;

    let handlers = prepare(&config, vec![TOPIC.into()])?;
    let producer = tokio::spawn(run_producer(config.clone(), lifecycle.clone(), None));
    let consumer = tokio::spawn(run_consumer(config, handlers, lifecycle.clone(), None));
    let shown = if options.demo {
        tokio::select! {
            shown = demo::run(&connector) => shown,
            () = lifecycle.drain.cancelled() => Ok(()),
        }
    } else {
        tokio::select! {
            dashboard = dashboard(&client) => {
                print!("{}", addresses(postgres, &brokers, &dashboard?, options.data_dir.as_deref()));
                lifecycle.drain.cancelled().await;
            }
            () = lifecycle.drain.cancelled() => {}
        }
        Ok(())
    };
    lifecycle.drain.cancel();
    let exits = [producer.await??, consumer.await??];
    shown?;
    Ok(exits.into_iter().find(|exit| *exit != Exit::Done).unwrap_or(Exit::Done))
}

/// Where the producer of this process serves it, once it has joined.
async fn dashboard(client: &Connection) -> Result<String, PgError> {
    let me = i64::from(std::process::id());
    loop {
        let mut agents = agents::list(client).await?.into_iter();
        let found = agents
            .find(|agent| agent.role == "producer" && agent.state == "active" && i64::from(agent.pid) == me);
        if let Some(http) = found.and_then(|agent| agent.http) {
            return Ok(http);
        }
        tokio::time::sleep(TRY_AGAIN_AFTER).await;
    }
}

fn configuration(postgres: &EmbeddedPostgres, brokers: &str) -> String {
    format!(
        "[postgres]\nurl = \"{}\"\n[kafka]\nbrokers = \"{brokers}\"\n\
         [groups.{TOPIC}]\ntopics = [\"{TOPIC}\"]\nhandler = {{ kind = \"log\" }}\n",
        postgres.app_url()
    )
}

fn addresses(postgres: &EmbeddedPostgres, brokers: &str, dashboard: &str, data_dir: Option<&Path>) -> String {
    let (url, psql) = (postgres.app_url(), postgres.psql());
    let data = match data_dir {
        Some(dir) => format!("kept in {}", dir.display()),
        None => "temporary: gone at the end (--data-dir keeps it)".into(),
    };
    format!(
        "outboxd dev is up: a producer, and a consumer of group `{TOPIC}` that logs what it gets.

  PostgreSQL  {url}
  Kafka       {brokers} (in-process, not for load; topic `{TOPIC}`, {PARTITIONS} partitions)
  Dashboard   {dashboard}
  Data        {data}

Send a message from SQL, inside a transaction of yours if you like:
  {psql} -c \"select outboxd.enqueue('{TOPIC}', '{{\\\"order\\\": 1}}'::jsonb, key => 'ada')\"
or from the command line:
  export OUTBOXD__POSTGRES__URL='{url}' OUTBOXD__KAFKA__BROKERS='{brokers}'
  outboxd send --topic {TOPIC} --key ada '{{\"order\": 2}}'
See what became of them, and who is at work:
  outboxd messages list
  outboxd agents list
  outboxd doctor

Ctrl-C ends it.
"
    )
}
