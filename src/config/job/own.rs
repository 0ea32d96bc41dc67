//! `[jobs.NAME]` of the user's own: what it does, when, and where.

use std::collections::BTreeMap;
use std::time::Duration;

use super::condition::check_condition;
use crate::config::error::ConfigError;
use crate::config::group::{HttpHandler, command, request};
use crate::config::section::Section;
use crate::config::setting::{Choice, DAY, MILLISECOND, Problem, any, lasting, within};
use crate::domain::firings::{Misfire, Overlap, Scope};
use crate::domain::message::is_topic_name;
use crate::domain::schedule::Schedule;

pub const TIMEOUT: Duration = Duration::from_secs(60);
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);
const MISFIRE_CAP: u32 = 100;

/// How often a condition is asked that has no schedule of its own.
pub const ASK_EVERY: Duration = Duration::from_secs(5);

/// What a job of the user's has besides its schedule.
#[derive(Clone, Debug)]
pub struct Own {
    pub role: Role,
    pub scope: Scope,
    pub overlap: Overlap,
    pub misfire: Misfire,
    pub misfire_cap: u32,
    /// A query: it runs only if this gives true.
    pub when: Option<String>,
    /// A query that the schedule asks: it runs when this has become true.
    pub on: Option<String>,
    /// Between two runs by `on`.
    pub cooldown: Duration,
    /// Of its statements.
    pub run_as: Option<String>,
    pub statement_timeout: Duration,
    pub action: Action,
}

#[derive(Clone, Debug)]
pub enum Action {
    Enqueue(Message),
    Sql { statement: String },
    Http { request: HttpHandler, body: Option<String> },
    Exec { command: Vec<String>, input: Option<String> },
}

/// A message for the outbox; its texts may name `{job}` and `{firing}`.
#[derive(Clone, Debug)]
pub struct Message {
    pub topic: String,
    pub key: Option<String>,
    pub payload: String,
    pub event_type: Option<String>,
    pub headers: BTreeMap<String, String>,
    pub idempotency_key: Option<String>,
}

/// Whose job it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Producer,
    Consumer,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Self::Producer => "producer",
            Self::Consumer => "consumer",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Enqueue,
    Sql,
    Http,
    Exec,
}

impl Choice for Kind {
    const WORDS: &'static [(&'static str, Self)] =
        &[("enqueue", Self::Enqueue), ("sql", Self::Sql), ("http", Self::Http), ("exec", Self::Exec)];
}

impl Choice for Role {
    const WORDS: &'static [(&'static str, Self)] =
        &[("producer", Self::Producer), ("consumer", Self::Consumer)];
}

impl Choice for Scope {
    const WORDS: &'static [(&'static str, Self)] = &[("agent", Self::Agent), ("cluster", Self::Cluster)];
}

impl Choice for Overlap {
    const WORDS: &'static [(&'static str, Self)] = &[("skip", Self::Skip), ("queue", Self::Queue)];
}

impl Choice for Misfire {
    const WORDS: &'static [(&'static str, Self)] =
        &[("skip", Self::Skip), ("once", Self::Once), ("all", Self::All)];
}

impl Own {
    pub(super) fn read(
        section: &mut Section<'_>,
        schedule: Option<&Schedule>,
        timeout: Duration,
    ) -> Result<Self, ConfigError> {
        let on = section.optional("on", |sql: &String| check_condition(sql))?;
        if on.is_none() && schedule.is_none() {
            return Err(section.wrong("schedule", "is missing: when is it to run? `on` can say that too"));
        }
        let by_schedule = on.is_none();
        let own = Self {
            role: section.or("role", Role::Producer, any)?,
            scope: section.or("scope", Scope::Cluster, any)?,
            overlap: if by_schedule { section.or("overlap", Overlap::Skip, any)? } else { Overlap::Skip },
            misfire: if by_schedule { section.or("misfire", Misfire::Once, any)? } else { Misfire::Once },
            misfire_cap: if by_schedule {
                section.or("misfire_cap", MISFIRE_CAP, within(1..=100_000))?
            } else {
                1
            },
            cooldown: if by_schedule {
                Duration::ZERO
            } else {
                section.or("cooldown", Duration::ZERO, lasting(Duration::ZERO..=DAY * 366))?
            },
            on,
            when: section.optional("when", |sql: &String| check_condition(sql))?,
            run_as: section.optional("run_as", |role: &String| check_role(role))?,
            statement_timeout: section.or(
                "statement_timeout",
                STATEMENT_TIMEOUT,
                lasting(MILLISECOND..=DAY),
            )?,
            action: section.table("action", |section| action(section, timeout))?,
        };
        if own.scope == Scope::Agent && own.on.is_some() {
            return Err(
                section.wrong("scope", "must be \"cluster\" with `on`: what was true before is shared")
            );
        }
        Ok(own)
    }
}

fn action(section: &mut Section<'_>, timeout: Duration) -> Result<Action, ConfigError> {
    Ok(match section.required("kind", any)? {
        Kind::Enqueue => Action::Enqueue(Message {
            topic: section.required("topic", |name: &String| check_topic(name))?,
            key: section.optional("key", |text: &String| check_text(text))?,
            payload: section.or("payload", DEFAULT_PAYLOAD.to_owned(), |text| check_text(text))?,
            event_type: section.optional("type", |text: &String| check_text(text))?,
            headers: section.strings("headers", check_header)?,
            idempotency_key: section.optional("idempotency_key", |text: &String| check_text(text))?,
        }),
        Kind::Sql => {
            Action::Sql { statement: section.required("statement", |sql: &String| check_statement(sql))? }
        }
        Kind::Http => {
            Action::Http { request: request(section, timeout, None)?, body: section.optional("body", any)? }
        }
        Kind::Exec => Action::Exec { command: command(section)?, input: section.optional("input", any)? },
    })
}

const DEFAULT_PAYLOAD: &str = r#"{"job":"{job}","firing":"{firing}"}"#;

fn check_topic(name: &str) -> Result<(), Problem> {
    if is_topic_name(name) {
        return Ok(());
    }
    Err(format!(
        "is `{name}`, which Kafka forbids as a topic: 1 to 249 letters, digits, dots, dashes and underscores, not `.` or `..`"
    ))
}

pub(super) fn check_text(text: &str) -> Result<(), Problem> {
    if text.contains('\0') { Err("must not hold a null character".into()) } else { Ok(()) }
}

fn check_header(name: &str, value: &str) -> Result<(), Problem> {
    if name == "id" || name.starts_with("outboxd-") {
        return Err(format!("`{name}` is set by outboxd for each message"));
    }
    check_text(name).and_then(|()| check_text(value))
}

fn check_role(name: &str) -> Result<(), Problem> {
    if (1..=63).contains(&name.len()) && !name.contains('\0') {
        return Ok(());
    }
    Err("must be the name of a role of the database".into())
}

/// The first word of a statement.
pub(super) fn first_word(sql: &str) -> String {
    let sql = sql.trim_start_matches(|c: char| c.is_whitespace() || c == '(');
    sql.chars().take_while(char::is_ascii_alphabetic).collect::<String>().to_ascii_lowercase()
}

/// What would end the transaction that also holds the record of the run.
const NOT_IN_A_TRANSACTION: [&str; 10] =
    ["abort", "begin", "commit", "discard", "end", "release", "rollback", "savepoint", "start", "vacuum"];

fn check_statement(sql: &str) -> Result<(), Problem> {
    check_text(sql)?;
    let word = first_word(sql);
    if word.is_empty() {
        return Err("must be a statement, such as \"select app.close_month()\"".into());
    }
    if NOT_IN_A_TRANSACTION.contains(&&*word) {
        return Err(format!(
            "must not begin with `{word}`: it runs in one transaction with the record of its run"
        ));
    }
    Ok(())
}
