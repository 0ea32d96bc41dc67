//! What a failure means outside: one table from its kind to the exit code, with advice for the operator.

use std::error::Error;
use std::process::ExitCode;

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done; an empty listing too, and a clean drain.
    Done = 0,
    /// It failed while running, or a drain ended with work left.
    Failed = 1,
    /// Wrong usage, configuration or input.
    Usage = 2,
    /// Postgres or Kafka cannot be reached by a one-shot command.
    Unreachable = 3,
    /// Nothing by that name or id.
    NotFound = 4,
    /// Refused without `--yes` or `--all`.
    Refused = 5,
    /// A second SIGINT cut the drain short.
    Interrupted = 130,
    /// A second SIGTERM cut the drain short.
    Terminated = 143,
}

impl Exit {
    /// Of a daemon that a second signal stopped: 128 and the signal's number, as shells have it.
    pub fn of_signal(signal: i32) -> Self {
        if signal == 2 { Self::Interrupted } else { Self::Terminated }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The kinds of failure that differ in what an operator does about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Usage,
    /// The configuration says itself where it is wrong.
    Configuration,
    /// The database refused what it was given: a constraint, a value out of range.
    Input,
    PostgresUnreachable,
    KafkaUnreachable,
    SchemaMissing,
    Forbidden,
    TooSlow,
    NotFound,
    Refused,
    /// Its own words have to do.
    Other,
}

impl Kind {
    /// The table.
    fn policy(self) -> (Exit, Option<&'static str>) {
        match self {
            Self::Usage => (Exit::Usage, Some("`--help` shows the options, with an example.")),
            Self::Configuration | Self::Input => (Exit::Usage, None),
            Self::PostgresUnreachable => (
                Exit::Unreachable,
                Some(
                    "Is it running, and is `[postgres] url` right? `outboxd config dump` shows what is used.",
                ),
            ),
            Self::KafkaUnreachable => (
                Exit::Unreachable,
                Some(
                    "Is it running, and is `[kafka] brokers` right? `outboxd config dump` shows what is used.",
                ),
            ),
            Self::SchemaMissing => (
                Exit::Failed,
                Some(
                    "Run `outboxd migrate` on this database; `outboxd migrate status` shows where it stands.",
                ),
            ),
            Self::Forbidden => (
                Exit::Failed,
                Some(
                    "Grant the user one of the roles that `outboxd migrate` makes: outboxd_app to send, \
                      outboxd_reader to look, outboxd_operator to decide, outboxd_agent for the daemons. Migrate as the owner of the schema.",
                ),
            ),
            Self::TooSlow => (Exit::Failed, Some("Ask for less: a filter, a smaller --limit, or --before.")),
            Self::NotFound => (Exit::NotFound, None),
            Self::Refused => (Exit::Refused, None),
            Self::Other => (Exit::Failed, None),
        }
    }

    pub fn exit(self) -> Exit {
        self.policy().0
    }

    /// What to do about it, if that is not plain from the failure itself.
    pub fn advice(self) -> Option<&'static str> {
        self.policy().1
    }
}

/// A chain of causes, without those that their effect has told already.
pub fn words<'e>(chain: impl IntoIterator<Item = &'e (dyn Error + 'static)>) -> String {
    let mut words = String::new();
    for cause in chain.into_iter().map(ToString::to_string) {
        if words.is_empty() {
            words = cause;
        } else if !words.contains(&cause) {
            words.push_str(": ");
            words.push_str(&cause);
        }
    }
    words
}

/// An error and its causes.
pub fn chain<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&(dyn Error + 'static)| (*error).source())
}

/// A failure that carries its kind: what, why, and what to do where the table cannot know.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Failure {
    pub kind: Kind,
    what: String,
}

impl Failure {
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into() }
    }

    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(Kind::Usage, what)
    }

    pub fn not_found(what: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, what)
    }
}
