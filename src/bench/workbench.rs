//! Where a benchmark works: databases and topics of its own on the configured server and cluster, taken away at the end.

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::FromClientConfigAndContext;
use secrecy::ExposeSecret;
use tempfile::TempDir;
use toml::{Table, Value};

use super::Progress;
use crate::config::{Config, Properties};
use crate::kafka::KafkaFailure;
use crate::kafka::client::{self, Logged};
use crate::kafka::error::{Refusal, refusal};
use crate::kafka::topics::{TopicState, Topics};
use crate::lifecycle::Lifecycle;
use crate::pg::connect::Connection;
use crate::pg::{Connector, benching, migrate};

/// What begins the names of all that is made here.
const PREFIX: &str = "outboxd_bench";
const CLIENT: &str = "outboxd-bench";

/// How long a new topic may take to have its partitions.
const TOPIC_PATIENCE: Duration = Duration::from_secs(60);

/// How long tidying up may take after a signal.
const TIDYING: Duration = Duration::from_secs(60);

pub struct Workbench {
    pub config: Config,
    pub progress: Progress,
    admin: Connection,
    kafka: AdminClient<Logged>,
    topics: Topics,
    folder: TempDir,
    databases: Vec<String>,
    topic_names: Vec<String>,
}

/// A migrated database with an outbox that is nobody's but ours.
pub struct Outbox {
    pub config: Config,
    /// For the processes that are measured.
    pub file: PathBuf,
    /// What they log.
    pub log: PathBuf,
    connector: Connector,
}

impl Outbox {
    /// The configuration with a group that does nothing but keep evidence.
    pub fn with_group(&self, group: &str, topic: &str) -> anyhow::Result<PathBuf> {
        let handler = Table::from_iter([("kind".to_owned(), Value::from("log"))]);
        let settings = Table::from_iter([
            ("topics".to_owned(), Value::Array(vec![Value::from(topic)])),
            ("handler".to_owned(), Value::Table(handler)),
        ]);
        let groups = Table::from_iter([(group.to_owned(), Value::Table(settings))]);
        let mut table = configuration(&self.config);
        table.insert("groups".into(), Value::Table(groups));
        let file = self.file.with_extension(format!("{group}.toml"));
        write_private(&file, &table.to_string())?;
        Ok(file)
    }

    pub async fn connect(&self) -> anyhow::Result<Connection> {
        Ok(self.connector.connect().await?)
    }
}

/// Does that work, and takes everything away again however it ends, also by a signal; `keep` leaves it.
pub async fn on_a_workbench<T>(
    config: Config,
    keep: bool,
    work: impl AsyncFnOnce(&mut Workbench) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let lifecycle = Lifecycle::on_signals(TIDYING)?;
    let mut bench = Workbench::new(config).await?;
    let outcome = tokio::select! {
        outcome = work(&mut bench) => outcome,
        () = lifecycle.drain.cancelled() => Err(anyhow::anyhow!("interrupted")),
    };
    if keep {
        bench.leave();
        return outcome;
    }
    bench.progress.say("tidying up");
    let tidied = tokio::select! {
        tidied = bench.remove() => tidied,
        _ = lifecycle.second_signal() => Err(anyhow::anyhow!("cut short by a second signal")),
    };
    match (outcome, tidied) {
        (Ok(done), tidied) => tidied.map(|()| done),
        (Err(error), Ok(())) => Err(error),
        (Err(error), Err(left)) => Err(error.context(format!("{left:#}; then"))),
    }
}

impl Workbench {
    async fn new(config: Config) -> anyhow::Result<Self> {
        let admin = Connector::new(&config.postgres, "outboxd/bench").connect().await?;
        let topics = Topics::new(&config.kafka, CLIENT)?;
        topics.answer().await?;
        let kafka = client::consumer_config(&config.kafka, CLIENT)?;
        let kafka = AdminClient::from_config_and_context(&kafka, Logged)?;
        let folder = tempfile::Builder::new().prefix("outboxd-bench-").tempdir()?;
        let (databases, topic_names) = (Vec::new(), Vec::new());
        let progress = Progress::new();
        Ok(Self { config, progress, admin, kafka, topics, folder, databases, topic_names })
    }

    /// Makes and migrates a database.
    pub async fn outbox(&mut self) -> anyhow::Result<Outbox> {
        let name = format!("{PREFIX}_{:016x}", fastrand::u64(..));
        self.databases.push(name.clone());
        benching::create_database(&self.admin, &name).await?;
        let mut config = self.config.clone();
        config.postgres.url = config.postgres.url.of_database(&name)?;
        let connector = Connector::new(&config.postgres, "outboxd/bench");
        // Whoever made the database owns it: no roles are needed.
        migrate::migrate(&mut connector.connect().await?, None).await?;
        let file = self.folder.path().join(format!("{name}.toml"));
        write_private(&file, &configuration(&config).to_string())?;
        let log = self.folder.path().join(format!("{name}.log"));
        Ok(Outbox { config, file, log, connector })
    }

    /// Makes a topic whose records carry the time at which the broker took them.
    pub async fn topic(&mut self, partitions: i32) -> anyhow::Result<String> {
        let name = format!("{PREFIX}_{:016x}", fastrand::u64(..));
        self.topic_names.push(name.clone());
        // -1: as many replicas as the broker makes by default.
        let topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(-1))
            .set("message.timestamp.type", "LogAppendTime");
        for made in self.kafka.create_topics(&[topic], &AdminOptions::new()).await? {
            made.map_err(|(_, code)| KafkaFailure::Setup(format!("no topic can be made: {code}")))?;
        }
        let started = Instant::now();
        while !self.has_leaders(&name, partitions).await {
            if started.elapsed() > TOPIC_PATIENCE {
                bail!("topic {name} is not there after {}", humantime::format_duration(TOPIC_PATIENCE));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(name)
    }

    /// Every partition of it answers.
    async fn has_leaders(&self, topic: &str, partitions: i32) -> bool {
        if !matches!(self.topics.check(topic).await, Ok(TopicState::Ready { .. })) {
            return false;
        }
        for partition in 0..partitions {
            if self.topics.extent(&(topic.into(), partition)).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Everything stays; where it is, is told.
    fn leave(self) {
        let folder = self.folder.keep();
        tracing::warn!(
            databases = self.databases.join(","),
            topics = self.topic_names.join(","),
            folder = %folder.display(),
            "left as it is"
        );
    }

    /// Takes everything away, as far as that is possible.
    async fn remove(self) -> anyhow::Result<()> {
        let mut left = Vec::new();
        for name in &self.databases {
            if let Err(error) = benching::drop_database(&self.admin, name).await {
                left.push(format!("database {name} is left: {error}"));
            }
        }
        if !self.topic_names.is_empty() {
            let names: Vec<&str> = self.topic_names.iter().map(String::as_str).collect();
            match self.kafka.delete_topics(&names, &AdminOptions::new()).await {
                Ok(deleted) => left.extend(deleted.into_iter().filter_map(|deleted| {
                    let (name, code) = deleted.err()?;
                    let is_gone = refusal(code) == Refusal::TopicMissing;
                    (!is_gone).then(|| format!("topic {name} is left: {code}"))
                })),
                Err(error) => left.push(format!("topics are left, {}: {error}", names.join(", "))),
            }
        }
        if left.is_empty() { Ok(()) } else { bail!(left.join("; ")) }
    }
}

/// The parts of the configuration that a measured process needs, with an address of its own for its health.
fn configuration(config: &Config) -> Table {
    let text = |value: &str| Value::String(value.to_owned());
    let number = |value: u64| Value::Integer(i64::try_from(value).unwrap_or(i64::MAX));
    let properties = |properties: &Properties| {
        Value::Table(properties.0.iter().map(|(name, value)| (name.clone(), text(value))).collect())
    };
    let mut postgres = Table::new();
    postgres.insert("url".into(), text(config.postgres.url.written().expose_secret()));
    if let Some(path) = &config.postgres.password_file {
        postgres.insert("password_file".into(), text(&path.to_string_lossy()));
    }
    postgres.insert("pool_size".into(), number(config.postgres.pool_size as u64));
    postgres.insert("prepared_statements".into(), config.postgres.prepared_statements.into());
    let kafka = Table::from_iter([
        ("brokers".to_owned(), text(&config.kafka.brokers)),
        ("client".to_owned(), properties(&config.kafka.client)),
        ("producer".to_owned(), properties(&config.kafka.producer)),
        ("consumer".to_owned(), properties(&config.kafka.consumer)),
    ]);
    let producer = Table::from_iter([
        ("lease".to_owned(), text(&humantime::format_duration(config.producer.lease).to_string())),
        ("batch_bytes".to_owned(), number(config.producer.batch_bytes)),
        ("buffer_bytes".to_owned(), number(config.producer.buffer_bytes)),
    ]);
    let http = Table::from_iter([("listen".to_owned(), text("127.0.0.1:0"))]);
    let tables = [("postgres", postgres), ("kafka", kafka), ("producer", producer), ("http", http)];
    tables.into_iter().map(|(name, table)| (name.to_owned(), Value::Table(table))).collect()
}

/// It may hold a password.
fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes()).context("the configuration of the measured process cannot be written")
}
