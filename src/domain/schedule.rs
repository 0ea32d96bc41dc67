//! When a job is due: `continuous`, `every 5s`, or cron.

mod cron;
mod weekday;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;

pub use self::cron::Cron;

/// A schedule as the configuration writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Back to back.
    Continuous,
    /// At the multiples of this since the epoch; whole seconds, at least one.
    Every(Duration),
    Cron(Cron),
}

/// Why a text is not a schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    #[error(
        "must be `continuous`, `every` and a duration such as `every 5s`, or a cron expression such as `0 3 * * *`"
    )]
    Unknown,
    #[error("`every` takes whole seconds, at least one, such as `every 5s` or `every 1m 30s`")]
    Interval,
    #[error(
        "a cron expression has 5 fields (minute, hour, day of month, month, day of week), 6 with seconds in front, 7 with the year behind; this has {0}"
    )]
    Fields(usize),
    #[error("`{text}` is not a valid {field} in a cron expression ({range})")]
    Field { field: &'static str, range: &'static str, text: String },
    #[error("no day fits this cron expression: it would never be due")]
    Impossible,
}

impl Schedule {
    /// `timezone` is whose clock a cron expression means; the other kinds do not ask it.
    pub fn parse(text: &str, timezone: Tz) -> Result<Self, ScheduleError> {
        let text = text.trim();
        if text.eq_ignore_ascii_case("continuous") {
            return Ok(Self::Continuous);
        }
        match text.split_once(char::is_whitespace) {
            Some((word, interval)) if word.eq_ignore_ascii_case("every") => every(interval),
            _ => Cron::parse(text, timezone).map(Self::Cron),
        }
    }

    /// The first firing after `after`. A continuous one is always due: `after` itself. `None`: never again.
    pub fn next_after(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match self {
            Self::Continuous => Some(after),
            Self::Every(interval) => {
                let interval = i64::try_from(interval.as_secs()).ok().filter(|seconds| *seconds > 0)?;
                let next = after.timestamp().div_euclid(interval).checked_add(1)?.checked_mul(interval)?;
                DateTime::from_timestamp(next, 0)
            }
            Self::Cron(cron) => cron.next_after(after),
        }
    }
}

impl Schedule {
    /// Whose clock it means.
    pub fn timezone(&self) -> &'static str {
        match self {
            Self::Continuous | Self::Every(_) => Tz::UTC.name(),
            Self::Cron(cron) => cron.timezone().name(),
        }
    }

    /// The firings after `after`, in order; none of a continuous one, which has no times of its own.
    pub fn after(&self, after: DateTime<Utc>) -> impl Iterator<Item = DateTime<Utc>> + '_ {
        let next = |at: &DateTime<Utc>| self.next_after(*at).filter(|next| next > at);
        std::iter::successors(next(&after), next)
    }
}

fn every(interval: &str) -> Result<Schedule, ScheduleError> {
    let interval = humantime::Duration::from_str(interval.trim()).map_err(|_| ScheduleError::Interval)?;
    if interval.as_secs() == 0 || interval.subsec_nanos() != 0 {
        return Err(ScheduleError::Interval);
    }
    Ok(Schedule::Every(*interval))
}

/// As the configuration writes it; the timezone is apart.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Continuous => f.write_str("continuous"),
            Self::Every(interval) => write!(f, "every {}", humantime::format_duration(*interval)),
            Self::Cron(cron) => cron.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests;
