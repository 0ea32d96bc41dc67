//! Logs: on standard error, as text for people or one JSON object a line. And metrics.

pub mod metrics;

use std::io;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::util::SubscriberInitExt;

/// How to log.
#[derive(Clone, Copy, Debug)]
pub struct Logging<'a> {
    /// A level, or filters as in `RUST_LOG`; that variable is asked if it is `None`.
    pub filter: Option<&'a str>,
    /// If neither says anything.
    pub default_level: &'static str,
    pub json: bool,
    /// Only of text.
    pub color: bool,
}

/// Why there are no logs.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    #[error("`{filter}` is no log filter: {source}. Examples: debug, info,outboxd::relay=trace")]
    Filter { filter: String, source: ParseError },
    #[error("logging was set up twice")]
    Twice,
}

/// Once per process.
pub fn init(logging: Logging) -> Result<(), LoggingError> {
    let filter = filter(logging, std::env::var(EnvFilter::DEFAULT_ENV).ok())?;
    // A reader of the log that goes away must not take a daemon with it: telling of it on standard error would panic.
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).log_internal_errors(false);
    let set_up = if logging.json {
        subscriber.json().flatten_event(true).with_current_span(false).finish().try_init()
    } else {
        subscriber.with_ansi(logging.color).finish().try_init()
    };
    set_up.map_err(|_| LoggingError::Twice)
}

fn filter(logging: Logging, environment: Option<String>) -> Result<EnvFilter, LoggingError> {
    let text = logging.filter.map(str::to_owned).or(environment.filter(|text| !text.trim().is_empty()));
    let text = text.unwrap_or_else(|| logging.default_level.to_owned());
    // EnvFilter reads a word that is no level as the name of a module, and so a typing error as silence.
    let is_word = text.chars().all(char::is_alphabetic);
    if is_word && text.parse::<tracing_subscriber::filter::LevelFilter>().is_err() {
        return EnvFilter::try_new(format!("outboxd={text}"))
            .map_err(|source| LoggingError::Filter { filter: text, source });
    }
    EnvFilter::try_new(&text).map_err(|source| LoggingError::Filter { filter: text, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(flag: Option<&str>, environment: Option<&str>) -> Result<String, String> {
        let logging = Logging { filter: flag, default_level: "info", json: false, color: false };
        filter(logging, environment.map(str::to_owned))
            .map(|filter| filter.to_string())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_flag_wins_over_the_environment_and_that_over_the_default() {
        assert_eq!(filtered(Some("debug"), Some("trace")).unwrap(), "debug");
        assert_eq!(filtered(None, Some("outboxd=trace")).unwrap(), "outboxd=trace");
        assert_eq!(filtered(None, Some(" ")).unwrap(), "info");
        assert_eq!(filtered(None, None).unwrap(), "info");
    }

    #[test]
    fn a_misspelt_level_is_no_silence() {
        assert!(filtered(Some("debgu"), None).unwrap_err().contains("`debgu`"));
        assert!(filtered(Some("outboxd=loud"), None).is_err());
    }
}
