//! `[log]`: how much daemons log.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;
use tracing_subscriber::EnvFilter;

use super::error::ConfigError;
use super::section::Section;
use super::setting::{Problem, Setting, Written, any};

#[derive(Clone, Debug)]
pub struct Log {
    /// Where neither the command line nor `RUST_LOG` says otherwise.
    pub level: Option<LogLevel>,
}

impl Log {
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, ConfigError> {
        Ok(Self { level: section.optional("level", any)? })
    }
}

const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// A level, or filters as in `RUST_LOG`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLevel(String);

impl LogLevel {
    /// A new one at each call: a filter has a state.
    pub fn filter(&self) -> EnvFilter {
        EnvFilter::new(&self.0)
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The text is neither a level nor filters.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{text}` is neither a level (error, warn, info, debug, trace, off) nor filters as in RUST_LOG (info,outboxd::producer=debug)"
)]
pub struct NotALevel {
    text: String,
}

impl FromStr for LogLevel {
    type Err = NotALevel;

    fn from_str(text: &str) -> Result<Self, NotALevel> {
        // EnvFilter reads a word that is no level as the name of a module, and so a typing error as silence.
        let is_word = text.chars().all(char::is_alphanumeric);
        let is_level = EnvFilter::try_new(text).is_ok()
            && (!is_word || LEVELS.iter().any(|level| text.eq_ignore_ascii_case(level)));
        if is_level { Ok(Self(text.to_owned())) } else { Err(NotALevel { text: text.to_owned() }) }
    }
}

impl Setting for LogLevel {
    fn what() -> String {
        "a level such as \"info\", or filters as in RUST_LOG".into()
    }

    fn read(written: Written<'_>) -> Result<Self, Problem> {
        let what = Self::what();
        let text = written.text(&what)?;
        text.parse().map_err(|_| format!("must be {what}: {}", LEVELS.join(", ")))
    }

    fn show(&self) -> Value {
        self.0.as_str().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_level_is_no_silence() {
        for wrong in ["debgu", "outboxd=loud", ""] {
            assert!(wrong.parse::<LogLevel>().is_err(), "{wrong}");
        }
        for right in ["debug", "INFO", "off", "info,outboxd::producer=trace", "outboxd::producer"] {
            assert!(right.parse::<LogLevel>().is_ok(), "{right}");
        }
    }
}
