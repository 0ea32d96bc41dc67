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
