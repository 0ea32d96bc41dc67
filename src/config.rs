//! The configuration: one TOML file, checked before anything starts.

pub mod agent;
pub mod group;
pub mod http;
pub mod job;
pub mod kafka;
pub mod postgres;
pub mod producer;

use std::collections::BTreeMap;

pub use agent::Agent;
pub use group::{Dedup, Group, Handler, Retry, Start};
pub use http::Http;
pub use job::Job;
pub use kafka::{Kafka, Properties};
pub use postgres::{Postgres, PostgresUrl, Roles, SslMode, Tls};
pub use producer::Producer;

/// Everything that a file says, with defaults where it is silent.
#[derive(Clone, Debug)]
pub struct Config {
    pub postgres: Postgres,
    pub kafka: Kafka,
    pub agent: Agent,
    pub http: Http,
    pub producer: Producer,
    pub groups: BTreeMap<String, Group>,
    pub jobs: BTreeMap<String, Job>,
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    pub path: Option<std::path::PathBuf>,
    text: String,
}

impl Config {
    pub fn load(path: Option<&std::path::Path>) -> Result<Loaded, ConfigError> {
        let wrong = |error: &dyn std::fmt::Display| ConfigError(error.to_string());
        let path = path.unwrap_or(std::path::Path::new("outboxd.toml"));
        let text =
            std::fs::read_to_string(path).map_err(|error| wrong(&format!("{}: {error}", path.display())))?;
        let file: toml::Table = text.parse().map_err(|error| wrong(&error))?;
        let url = file["postgres"]["url"].as_str().unwrap_or_default();
        let mut groups = BTreeMap::new();
        for name in
            file.get("groups").and_then(toml::Value::as_table).into_iter().flat_map(|groups| groups.keys())
        {
            let retry = Retry { backoff: group::BACKOFF, max_backoff: group::MAX_BACKOFF };
            let (start, dedup, handler) = (Start::Earliest, Dedup::Outboxd, Handler::Log);
            let group = Group {
                topics: vec![name.clone()],
                batch: 500,
                start,
                kafka_group: None,
                dedup,
                handler,
                retry,
            };
            groups.insert(name.clone(), group);
        }
        let config = Config {
            postgres: Postgres {
                url: PostgresUrl::stand_in(url).map_err(|error| wrong(&error))?,
                password_file: None,
                pool_size: postgres::POOL_SIZE,
                roles: Roles::default(),
            },
            kafka: Kafka {
                brokers: "localhost:9092".into(),
                client: Properties::default(),
                producer: Properties::default(),
                consumer: Properties::default(),
            },
            agent: Agent {
                name: None,
                heartbeat: agent::HEARTBEAT,
                inactive_after: agent::INACTIVE_AFTER,
                drain_timeout: agent::DRAIN_TIMEOUT,
            },
            http: Http { listen: None },
            producer: Producer {
                lease: producer::LEASE,
                batch_bytes: producer::BATCH_BYTES,
                buffer_bytes: producer::BUFFER_BYTES,
            },
            groups,
            jobs: BTreeMap::new(),
        };
        Ok(Loaded { config, path: Some(path.to_owned()), text })
    }
}

impl Loaded {
    pub fn dump(&self) -> String {
        self.text.clone()
    }

    pub fn dump_json(&self) -> serde_json::Value {
        self.text.clone().into()
    }
}
