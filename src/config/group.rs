//! `[groups.NAME]`: what a consumer reads, and what it does with a message.

mod handler;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::error::ConfigError;
use super::section::Section;
use super::setting::{DAY, MILLISECOND, Problem, SECOND, Setting, Written, any, chosen, lasting, within};
use crate::domain::backoff::Backoff;
use crate::domain::dispatch;
use crate::domain::message::is_topic_name;

pub const BATCH: usize = 500;
pub const TIMEOUT: Duration = Duration::from_secs(10);
pub const BACKOFF: Duration = Duration::from_secs(1);
pub const MAX_BACKOFF: Duration = Duration::from_secs(3600);
pub const MAX_ATTEMPTS: usize = 20;
pub const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub struct Group {
    pub topics: Vec<String>,
    /// Messages looked up and completed at once.
    pub batch: usize,
    pub start: Start,
    /// Kafka's name of the group; the group's own by default.
    pub kafka_group: Option<String>,
    pub dedup: Dedup,
    pub handler: Handler,
    pub retry: Retry,
}

/// Where a group that is new begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    #[default]
    Earliest,
    Latest,
}

/// What makes two records one message, besides outboxd's own id and idempotency key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dedup {
    #[default]
    Outboxd,
    /// Foreign messages by header `id` or `ce_id` too.
    Id,
}

/// `[groups.NAME.handler]`.
#[derive(Clone, Debug)]
pub enum Handler {
    /// Writes a line to the log.
    Log,
    /// A program per message.
    Exec { command: Vec<String>, timeout: Duration },
    /// A POST per message.
    Http(HttpHandler),
    /// A function in the transaction of the evidence: exactly once.
    Sql { function: String, timeout: Duration },
}

#[derive(Clone, Debug)]
pub struct HttpHandler {
    /// `http` or `https`.
    pub url: String,
    pub timeout: Duration,
    pub headers: BTreeMap<String, String>,
    /// Holds a token for `Authorization: Bearer`; read again for each message.
    pub bearer_file: Option<PathBuf>,
    /// Trusted instead of the system's authorities.
    pub ca_file: Option<PathBuf>,
    pub client_cert: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
}

/// `[groups.NAME.retry]`: how often a message is tried, how long to wait between tries, and what becomes of it.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// All tries, the first one too.
    pub max_attempts: usize,
    /// The first delay; it doubles, with full jitter.
    pub backoff: Duration,
    pub max_backoff: Duration,
    /// How long a target may take to start, from the publication of the dispatch.
    pub deadline: Duration,
    pub on_dead: OnDead,
    /// A copy of each dead letter goes to `<topic>-dlt`.
    pub dead_letter_topic: bool,
}

/// What becomes of a key that waits behind a dead letter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDead {
    #[default]
    Release,
    /// It waits until an operator replays or discards it.
    Hold,
}

const STARTS: &[(&str, Start)] = &[("earliest", Start::Earliest), ("latest", Start::Latest)];
const ON_DEAD: &[(&str, OnDead)] = &[("release", OnDead::Release), ("hold", OnDead::Hold)];
const DEDUPS: &[(&str, Dedup)] = &[("outboxd", Dedup::Outboxd), ("id", Dedup::Id)];

impl Group {
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, ConfigError> {
        let topics = section.list("topics", check_topic)?;
        if let Some(twice) = topics.iter().enumerate().find(|(index, topic)| topics[..*index].contains(topic))
        {
            return Err(section.wrong("topics", &format!("names `{}` twice", twice.1)));
        }
        Ok(Self {
            topics,
            batch: section.or("batch", BATCH, within(1..=10_000))?,
            start: section.or("start", Start::default(), any)?,
            kafka_group: section.optional("kafka_group", |name: &String| check_kafka_group(name))?,
            dedup: section.or("dedup", Dedup::default(), any)?,
            handler: section.table("handler", handler::read)?,
            retry: section.table("retry", Retry::read)?,
        })
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            max_attempts: MAX_ATTEMPTS,
            backoff: BACKOFF,
            max_backoff: MAX_BACKOFF,
            deadline: DEADLINE,
            on_dead: OnDead::default(),
            dead_letter_topic: false,
        }
    }
}

impl Retry {
    /// The delay after so many failures; what the handler asked for is obeyed, within reason: a server may say a year.
    /// `draw` is evenly distributed over 0.0..1.0.
    pub fn delay(&self, failures: u32, asked: Option<Duration>, draw: f64) -> Duration {
        let backoff = Backoff { first: self.backoff, max: self.max_backoff };
        backoff.delay(failures, draw).max(asked.unwrap_or_default().min(self.max_backoff))
    }

    /// No try is left after so many.
    pub fn is_over(&self, attempts: u32) -> bool {
        usize::try_from(attempts).unwrap_or(usize::MAX) >= self.max_attempts
    }

    fn read(section: &mut Section<'_>) -> Result<Self, ConfigError> {
        let retry = Self {
            max_attempts: section.or("max_attempts", MAX_ATTEMPTS, within(1..=1_000_000))?,
            backoff: section.or("backoff", BACKOFF, lasting(MILLISECOND..=DAY))?,
            max_backoff: section.or("max_backoff", MAX_BACKOFF, lasting(MILLISECOND..=DAY))?,
            deadline: section.or("deadline", DEADLINE, lasting(SECOND..=DAY))?,
            on_dead: section.or("on_dead", OnDead::default(), any)?,
            dead_letter_topic: section.or("dead_letter_topic", false, any)?,
        };
        if retry.max_backoff < retry.backoff {
            let [backoff, max] = [retry.backoff, retry.max_backoff].map(humantime::format_duration);
            return Err(if section.has("max_backoff") {
                section
                    .wrong("max_backoff", &format!("({max}) must not be shorter than `backoff` ({backoff})"))
            } else {
                section
                    .wrong("backoff", &format!("({backoff}) must not be longer than `max_backoff` ({max})"))
            });
        }
        Ok(retry)
    }
}

/// Which group has which of Kafka's names: two with the same would take each other's partitions.
#[derive(Default)]
pub(super) struct KafkaGroups(BTreeMap<String, String>);

impl KafkaGroups {
    pub(super) fn enter(&mut self, section: &Section<'_>, group: &Group) -> Result<(), ConfigError> {
        let kafka_group = group.kafka_group.as_deref().unwrap_or(section.name());
        match self.0.insert(kafka_group.to_owned(), section.name().to_owned()) {
            None => Ok(()),
            Some(other) => {
                let problem =
                    format!("`{kafka_group}` is that of group `{other}` already: each needs its own");
                Err(section.wrong("kafka_group", &problem))
            }
        }
    }
}

pub(super) fn check_name(name: &str) -> Result<(), Problem> {
    // Its retries have a topic that is named after it.
    if is_plain_name(name) && is_topic_name(&dispatch::topic(name)) {
        return Ok(());
    }
    Err(format!("`{name}` is not a name for a group: 1 to 235 letters, digits, dots, dashes and underscores"))
}

fn check_topic(name: &str) -> Result<(), Problem> {
    if is_topic_name(name) {
        return Ok(());
    }
    Err(format!(
        "holds `{name}`, which Kafka forbids as a topic: 1 to 249 letters, digits, dots, dashes and underscores, not `.` or `..`"
    ))
}

fn check_kafka_group(name: &str) -> Result<(), Problem> {
    if is_plain_name(name) {
        return Ok(());
    }
    Err("must be 1 to 249 letters, digits, dots, dashes and underscores".into())
}

fn is_plain_name(name: &str) -> bool {
    (1..=249).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

impl Setting for Start {
    fn read(written: Written<'_>) -> Result<Self, Problem> {
        written.choice(STARTS)
    }

    fn show(&self) -> Value {
        chosen(STARTS, self)
    }
}

impl Setting for Dedup {
    fn read(written: Written<'_>) -> Result<Self, Problem> {
        written.choice(DEDUPS)
    }

    fn show(&self) -> Value {
        chosen(DEDUPS, self)
    }
}

impl Setting for OnDead {
    fn read(written: Written<'_>) -> Result<Self, Problem> {
        written.choice(ON_DEAD)
    }

    fn show(&self) -> Value {
        chosen(ON_DEAD, self)
    }
}
