//! Where the configuration is looked for, and how file and environment become one.

use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::error::ConfigError;
use super::overrides::lay_over;
use super::section::{Entry, Section};
use super::sources::Sources;
use super::{Agent, Group, Http, Job, Kafka, Log, Postgres, Producer, Retention, Topics};
use super::{Config, group, job, topic};

const VARIABLE: &str = "OUTBOXD_CONFIG";
const HERE: &str = "outboxd.toml";
const SYSTEM: &str = "/etc/outboxd/outboxd.toml";

/// For messages about a configuration without a file.
pub const LOOKED_FOR: &str =
    ": there is no file (looked for --config, $OUTBOXD_CONFIG, ./outboxd.toml, /etc/outboxd/outboxd.toml)";

/// A valid configuration, and where each value of it comes from.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// `None`: defaults and environment only.
    pub path: Option<PathBuf>,
    pub(super) entries: Vec<Entry>,
}

impl Config {
    /// Reads `explicit`, or the first that exists of `$OUTBOXD_CONFIG`, `./outboxd.toml` and
    /// `/etc/outboxd/outboxd.toml`; without any, the environment alone. A file that was named must exist.
    pub fn load(explicit: Option<&Path>) -> Result<Loaded, ConfigError> {
        let environment: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(name, value)| {
                Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
            })
            .collect();
        let named =
            explicit.map(Path::to_owned).or_else(|| variable(&environment, VARIABLE).map(PathBuf::from));
        let path = named.or_else(|| [HERE, SYSTEM].map(PathBuf::from).into_iter().find(|path| path.exists()));
        let text = match &path {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Unreadable { path: path.clone(), source })?,
            None => String::new(),
        };
        Self::parse(&text, path.as_deref(), environment)
    }

    /// Of the environment, `OUTBOXD__...` overrides keys, and `CREDENTIALS_DIRECTORY` may hold a password.
    pub fn parse(
        text: &str,
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Loaded, ConfigError> {
        let environment: Vec<(String, String)> = environment.into_iter().collect();
        let sources = Sources::new(path.map(Path::to_owned), text, &environment);
        let mut table = DeTable::parse(sources.text())
            .map_err(|error| sources.error_at(&error.span().unwrap_or(0..0), error.message()))?
            .into_inner();
        lay_over(&mut table, &sources)?;
        let credentials = variable(&environment, "CREDENTIALS_DIRECTORY").map(PathBuf::from);
        let mut entries = Vec::new();
        let config = Section::read_root(&sources, &table, &mut entries, |root| {
            let postgres =
                root.table("postgres", |section| Postgres::read(section, credentials.as_deref()))?;
            let kafka = root.table("kafka", Kafka::read)?;
            let agent = root.table("agent", Agent::read)?;
            Ok(Self {
                postgres,
                kafka,
                http: root.table("http", Http::read)?,
                log: root.table("log", Log::read)?,
                producer: root.table("producer", Producer::read)?,
                topics: Topics(root.each("topics", topic::check_name, topic::Topic::read)?),
                retention: root.table("retention", Retention::read)?,
                groups: {
                    let mut kafka_groups = group::KafkaGroups::default();
                    root.each("groups", group::check_name, |section| {
                        let group = Group::read(section)?;
                        group.check_membership(section, agent.name.as_deref())?;
                        kafka_groups.enter(section, &group)?;
                        Ok(group)
                    })?
                },
                jobs: root.each("jobs", job::check_name, Job::read)?,
                agent,
            })
        })?;
        Ok(Loaded { config, path: path.map(Path::to_owned), entries })
    }
}

fn variable(environment: &[(String, String)], name: &str) -> Option<String> {
    environment
        .iter()
        .find(|(found, value)| found == name && !value.is_empty())
        .map(|(_, value)| value.clone())
}
