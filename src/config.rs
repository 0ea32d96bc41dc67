//! The configuration: one TOML file, checked before anything starts.

pub mod agent;
mod differences;
mod dump;
mod error;
pub mod group;
pub mod http;
pub mod job;
pub mod kafka;
mod live;
mod load;
pub mod log;
mod mask;
mod nearest;
mod overrides;
pub mod postgres;
pub mod producer;
mod reference;
pub mod retention;
mod section;
mod setting;
mod sources;
pub mod topic;

use std::collections::BTreeMap;

pub use agent::Agent;
pub use error::ConfigError;
pub use group::{Dedup, Group, Handler, OnDead, OnFailure, Ordering, Rate, Retry, Start};
pub use http::Http;
pub use job::Job;
pub use kafka::{Kafka, Properties};
pub use live::is_live;
pub use load::Loaded;
pub use log::Log;
pub use postgres::{Postgres, PostgresUrl, Roles, SslMode, Tls};
pub use producer::Producer;
pub use reference::reference;
pub use retention::{Ceiling, Retention};
pub use topic::{Create, OnPoison, Topics};

/// Everything that a file says, with defaults where it is silent.
#[derive(Clone, Debug)]
pub struct Config {
    pub postgres: Postgres,
    pub kafka: Kafka,
    pub agent: Agent,
    pub http: Http,
    pub log: Log,
    pub producer: Producer,
    pub topics: Topics,
    pub retention: Retention,
    pub groups: BTreeMap<String, Group>,
    pub jobs: BTreeMap<String, Job>,
}

#[cfg(test)]
mod tests;
