//! Logs: on standard error, as text for people or one JSON object a line. And metrics.

pub mod metrics;

use std::io;
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::reload::Handle;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::log::{LogLevel, NotALevel};

/// How to log.
#[derive(Clone, Copy, Debug)]
pub struct Logging<'a> {
    /// `RUST_LOG` is asked if it is `None`.
    pub level: Option<&'a LogLevel>,
    /// If neither says anything.
    pub default_level: &'static str,
    pub json: bool,
    /// Only of text.
    pub color: bool,
}

/// Why there are no logs.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    #[error("RUST_LOG: {0}")]
    Level(#[from] NotALevel),
    #[error("logging was set up twice")]
    Twice,
}

/// Of this process, whose subscriber is as global as this.
static LEVEL: OnceLock<Level> = OnceLock::new();

/// What may be changed of it.
struct Level {
    /// The command line or the environment has said it.
    is_ordered: bool,
    default: &'static str,
    set: Box<dyn Fn(EnvFilter) -> bool + Send + Sync>,
}

/// Once per process.
pub fn init(logging: Logging) -> Result<(), LoggingError> {
    let ordered = ordered(logging.level, std::env::var(EnvFilter::DEFAULT_ENV).ok())?;
    let filter = ordered.as_ref().map_or_else(|| EnvFilter::new(logging.default_level), LogLevel::filter);
    // A reader of the log that goes away must not take a daemon with it: telling of it on standard error would panic.
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).log_internal_errors(false);
    let (set_up, set) = if logging.json {
        let subscriber =
            subscriber.json().flatten_event(true).with_current_span(false).with_filter_reloading();
        let set = setter(subscriber.reload_handle());
        (subscriber.finish().try_init(), set)
    } else {
        let subscriber = subscriber.with_ansi(logging.color).with_filter_reloading();
        let set = setter(subscriber.reload_handle());
        (subscriber.finish().try_init(), set)
    };
    set_up.map_err(|_| LoggingError::Twice)?;
    let level = Level { is_ordered: ordered.is_some(), default: logging.default_level, set };
    LEVEL.set(level).map_err(|_| LoggingError::Twice)
}

/// Logs as a file says from now on, or by default if it says nothing. False: the command line or the environment has said
/// otherwise, or the logs are another program's.
pub fn follow(file: Option<&LogLevel>) -> bool {
    let Some(level) = LEVEL.get().filter(|level| !level.is_ordered) else { return false };
    (level.set)(file.map_or_else(|| EnvFilter::new(level.default), LogLevel::filter))
}

fn setter<S: 'static>(handle: Handle<EnvFilter, S>) -> Box<dyn Fn(EnvFilter) -> bool + Send + Sync> {
    Box::new(move |filter| handle.reload(filter).is_ok())
}

fn ordered(flag: Option<&LogLevel>, environment: Option<String>) -> Result<Option<LogLevel>, NotALevel> {
    let environment = environment.filter(|text| !text.trim().is_empty());
    flag.cloned().map_or_else(|| environment.map(|text| text.parse()).transpose(), |level| Ok(Some(level)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_wins_over_the_environment_and_that_over_the_default() {
        let of = |flag: Option<&str>, environment: Option<&str>| {
            let flag: Option<LogLevel> = flag.map(|text| text.parse().unwrap());
            ordered(flag.as_ref(), environment.map(str::to_owned))
                .map(|level| level.map(|level| level.to_string()))
        };
        assert_eq!(of(Some("debug"), Some("trace")).unwrap().as_deref(), Some("debug"));
        assert_eq!(of(None, Some("outboxd=trace")).unwrap().as_deref(), Some("outboxd=trace"));
        assert_eq!(of(None, Some(" ")).unwrap(), None);
        assert_eq!(of(None, None).unwrap(), None);
        assert!(of(None, Some("debgu")).unwrap_err().to_string().contains("`debgu`"));
    }
}
