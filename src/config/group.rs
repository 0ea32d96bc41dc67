//! `[groups.NAME]`: what a consumer reads, and what it does with a message.

mod handler;

pub(super) use handler::{command, request};

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::error::ConfigError;
use super::section::Section;
use super::setting::{Choice, DAY, MILLISECOND, Problem, SECOND, Setting, Written, any, lasting, within};
use crate::domain::backoff::Backoff;
use crate::domain::dispatch;
use crate::domain::message::is_topic_name;

pub const BATCH: usize = 500;
pub const CONCURRENCY: usize = 16;
pub const TIMEOUT: Duration = Duration::from_secs(10);
pub const INLINE_ATTEMPTS: u32 = 1;
pub const MAX_ATTEMPTS: u32 = 20;
pub const MAX_STARTS: u32 = 5;
pub const BREAKER_FAILURES: u32 = 20;
pub const BREAKER_PAUSE: Duration = Duration::from_secs(30);
pub const BACKOFF: Duration = Duration::from_secs(1);
pub const MAX_BACKOFF: Duration = Duration::from_secs(3600);
pub const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub struct Group {
    pub topics: Vec<String>,
    /// Messages looked up and completed at once.
    pub batch: usize,
    /// Handlers at a time, per agent.
    pub concurrency: usize,
    pub ordering: Ordering,
    pub start: Start,
    /// Kafka's name of the group; the group's own by default.
    pub kafka_group: Option<String>,
    /// Kafka knows its members by the agents' names.
    pub static_membership: bool,
    pub dedup: Dedup,
    pub handler: Handler,
    pub retry: Retry,
    pub breaker: Breaker,
    /// Messages a second, of all its agents together.
    pub rate: Option<Rate>,
}

/// Where a group that is new begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    #[default]
    Earliest,
    Latest,
}

/// Which messages wait for each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ordering {
    /// Those of one key; those without one are free.
    #[default]
    Key,
    Partition,
    None,
}

/// What later messages of a key do when one of it has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// They wait until it is handled or given up.
    HoldKey,
    /// They overtake it.
    Continue,
}

/// What they do when it is given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDead {
    #[default]
    Release,
    /// They wait for an operator.
    Hold,
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
    /// A program.
    Exec { command: Vec<String>, mode: ExecMode, timeout: Duration },
    /// A Rust type of the program that embeds outboxd.
    Embedded { timeout: Duration },
    /// A POST per message.
    Http(HttpHandler),
    /// A function in the transaction of the evidence: exactly once.
    Sql { function: String, mode: SqlMode, timeout: Duration },
}

/// How long a program lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExecMode {
    /// A process per message.
    #[default]
    Each,
    /// Processes that take message after message, one JSON object a line each way.
    Worker,
}

/// What a function of the database is called with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SqlMode {
    /// One message.
    #[default]
    Each,
    /// An array of messages.
    Batch,
}

#[derive(Clone, Debug)]
pub struct HttpHandler {
    /// `http` or `https`.
    pub url: String,
    pub timeout: Duration,
    pub headers: BTreeMap<String, String>,
    /// What no further try can change; by default every 4xx but 408, 425 and 429.
    pub permanent_statuses: Option<BTreeSet<u16>>,
    /// Holds a token for `Authorization: Bearer`; read again for each message.
    pub bearer_file: Option<PathBuf>,
    /// Trusted instead of the system's authorities.
    pub ca_file: Option<PathBuf>,
    pub client_cert: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
}

/// `[groups.NAME.retry]`: what becomes of a message that fails.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// Tries in place, before the message leaves the line.
    pub inline_attempts: u32,
    /// All tries, those in place too.
    pub max_attempts: u32,
    /// Of a message that kills the process.
    pub max_starts: u32,
    pub on_failure: OnFailure,
    pub on_dead: OnDead,
    /// The first delay; it doubles, with full jitter.
    pub backoff: Duration,
    pub max_backoff: Duration,
    /// How long a target may take to start, from the publication of the dispatch.
    pub deadline: Duration,
    /// A copy of each dead letter goes to `<topic>-dlt`.
    pub dead_letter_topic: bool,
}

impl Choice for Start {
    const WORDS: &'static [(&'static str, Self)] = &[("earliest", Self::Earliest), ("latest", Self::Latest)];
}

impl Choice for Ordering {
    const WORDS: &'static [(&'static str, Self)] =
        &[("key", Self::Key), ("partition", Self::Partition), ("none", Self::None)];
}

impl Choice for OnFailure {
    const WORDS: &'static [(&'static str, Self)] =
        &[("hold-key", Self::HoldKey), ("continue", Self::Continue)];
}

impl Choice for OnDead {
    const WORDS: &'static [(&'static str, Self)] = &[("release", Self::Release), ("hold", Self::Hold)];
}

impl Choice for Dedup {
    const WORDS: &'static [(&'static str, Self)] = &[("outboxd", Self::Outboxd), ("id", Self::Id)];
}

impl Group {
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, ConfigError> {
        let topics = section.list("topics", check_topic)?;
        if let Some(twice) = topics.iter().enumerate().find(|(index, topic)| topics[..*index].contains(topic))
        {
            return Err(section.wrong("topics", &format!("names `{}` twice", twice.1)));
        }
        let ordering = section.or("ordering", Ordering::default(), any)?;
        Ok(Self {
            topics,
            batch: section.or("batch", BATCH, within(1..=10_000))?,
            concurrency: section.or("concurrency", CONCURRENCY, within(1..=10_000))?,
            ordering,
            start: section.or("start", Start::default(), any)?,
            kafka_group: section.optional("kafka_group", |name: &String| check_kafka_group(name))?,
            static_membership: section.or("static_membership", false, any)?,
            dedup: section.or("dedup", Dedup::default(), any)?,
            handler: section.table("handler", handler::read)?,
            retry: section.table("retry", |section| Retry::read(section, ordering))?,
            breaker: section.table("breaker", Breaker::read)?,
            rate: section.optional("rate", any)?,
        })
    }

    /// Kafka knows a static member by its agent's name, which must be the same after a restart, and is passed on as it is.
    pub(super) fn check_membership(
        &self,
        section: &Section<'_>,
        agent_name: Option<&str>,
    ) -> Result<(), ConfigError> {
        let problem = match agent_name {
            _ if !self.static_membership => return Ok(()),
            Some(name) if is_plain_name(name) => return Ok(()),
            Some(name) => format!(
                "makes `[agent] name` a name in Kafka, and `{name}` is none: letters, digits, dots, dashes and underscores"
            ),
            None => "needs a name that is the same after a restart: set `[agent] name`".to_owned(),
        };
        Err(section.wrong("static_membership", &problem))
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            inline_attempts: INLINE_ATTEMPTS,
            max_attempts: MAX_ATTEMPTS,
            max_starts: MAX_STARTS,
            on_failure: OnFailure::HoldKey,
            on_dead: OnDead::default(),
            backoff: BACKOFF,
            max_backoff: MAX_BACKOFF,
            deadline: DEADLINE,
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
        attempts >= self.max_attempts
    }

    fn read(section: &mut Section<'_>, ordering: Ordering) -> Result<Self, ConfigError> {
        // Without an order there is none to keep.
        let on_failure = match ordering {
            Ordering::None => OnFailure::Continue,
            Ordering::Key | Ordering::Partition => OnFailure::HoldKey,
        };
        let retry = Self {
            inline_attempts: section.or("inline_attempts", INLINE_ATTEMPTS, within(1..=1_000))?,
            max_attempts: section.or("max_attempts", MAX_ATTEMPTS, within(1..=1_000_000))?,
            max_starts: section.or("max_starts", MAX_STARTS, within(1..=1_000))?,
            on_failure: section.or("on_failure", on_failure, any)?,
            on_dead: section.or("on_dead", OnDead::default(), any)?,
            backoff: section.or("backoff", BACKOFF, lasting(MILLISECOND..=DAY))?,
            max_backoff: section.or("max_backoff", MAX_BACKOFF, lasting(MILLISECOND..=DAY))?,
            deadline: section.or("deadline", DEADLINE, lasting(SECOND..=DAY))?,
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

/// `[groups.NAME.breaker]`: when to wait for the other side of the handler.
#[derive(Clone, Copy, Debug)]
pub struct Breaker {
    /// In a row.
    pub failures: u32,
    pub pause: Duration,
}

impl Breaker {
    fn read(section: &mut Section<'_>) -> Result<Self, ConfigError> {
        Ok(Self {
            failures: section.or("failures", BREAKER_FAILURES, within(1..=1_000_000))?,
            pause: section.or("pause", BREAKER_PAUSE, lasting(MILLISECOND..=DAY))?,
        })
    }
}

/// So many a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate(pub f64);

impl Setting for Rate {
    fn what() -> String {
        "a rate such as \"500/s\" or \"30/m\"".into()
    }

    fn read(written: Written<'_>) -> Result<Self, Problem> {
        let wrong = || format!("must be {}", Self::what());
        let text = written.text(&Self::what())?;
        let (number, unit) = text.split_once('/').ok_or_else(wrong)?;
        let seconds = match unit.trim() {
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        match number.trim().parse::<u32>() {
            Ok(number) if number > 0 => Ok(Self(f64::from(number) / seconds)),
            _ => Err(wrong()),
        }
    }

    fn show(&self) -> Value {
        let Self(per_second) = self;
        let shown = [(1.0, "s"), (60.0, "m"), (3600.0, "h")].into_iter().find_map(|(seconds, unit)| {
            let number = per_second * seconds;
            ((number - number.round()).abs() < 1e-9).then(|| format!("{}/{unit}", number.round()))
        });
        shown.unwrap_or_else(|| format!("{per_second}/s")).into()
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
