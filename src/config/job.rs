//! `[jobs.NAME]`: when something recurring runs, and what it does if it is the user's own.

mod condition;
mod own;

use std::time::Duration;

use chrono_tz::{TZ_VARIANTS, Tz};
use serde_json::Value;

use super::error::ConfigError;
use super::nearest::did_you_mean;
use super::section::Section;
use super::setting::{DAY, Problem, SECOND, Setting, Written, any, lasting};
use crate::domain::schedule::Schedule;

/// The relay.
pub const PROCESS_PENDING: &str = "process-pending";

pub use own::{ASK_EVERY, Action, Message, Own, Role, TIMEOUT};

/// The jobs that are there without being configured.
pub const BUILT_IN: &[&str] =
    &["process-pending", "reap-agents", "partitions", "cleanup", "process-retry", "dead-letters"];

#[derive(Clone, Debug)]
pub struct Job {
    /// `None`: the job's own default.
    pub schedule: Option<Schedule>,
    pub enabled: bool,
    /// A start is put off by up to this.
    pub jitter: Duration,
    /// A run that takes longer is cut. `None`: the job's own default.
    pub timeout: Option<Duration>,
    /// `None`: it is built in.
    pub own: Option<Own>,
}

impl Job {
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, ConfigError> {
        let timezone = section.or("timezone", Tz::UTC, any)?;
        let parse = |text: &String| Schedule::parse(text, timezone).map_err(|error| error.to_string());
        let schedule: Option<String> = section.optional("schedule", |text| parse(text).map(drop))?;
        let schedule = schedule.map(|text| parse(&text)).transpose();
        let schedule = schedule.map_err(|problem| section.wrong("schedule", &problem))?;
        if timezone != Tz::UTC && !matches!(schedule, Some(Schedule::Cron(_))) {
            return Err(section.wrong("timezone", "needs a cron expression in `schedule`"));
        }
        let is_own = !BUILT_IN.contains(&section.name());
        if is_own && !section.has("action") {
            let suggestion = did_you_mean(section.name(), BUILT_IN.iter().copied());
            let name = section.name().to_owned();
            return Err(section.wrong(
                "action",
                &format!(
                    "is missing: there is no built-in job `{name}`, and one of your own needs it{suggestion}"
                ),
            ));
        }
        if section.name() == PROCESS_PENDING {
            // It has no runs that could be put off or cut.
            let enabled = section.or("enabled", true, any)?;
            return Ok(Self { schedule, enabled, jitter: Duration::ZERO, timeout: None, own: None });
        }
        let timeout = section.optional("timeout", lasting(SECOND..=DAY))?;
        Ok(Self {
            enabled: section.or("enabled", true, any)?,
            jitter: section.or("jitter", Duration::ZERO, lasting(Duration::ZERO..=DAY))?,
            own: if is_own {
                Some(Own::read(section, schedule.as_ref(), timeout.unwrap_or(TIMEOUT))?)
            } else {
                None
            },
            schedule,
            timeout,
        })
    }
}

/// It goes into messages, headers and variables.
pub(super) fn check_name(name: &str) -> Result<(), Problem> {
    if name.starts_with("consume-") || name == "heartbeat" {
        return Err(format!(
            "`{name}` is configured elsewhere: a group in [groups.NAME], the heartbeat in [agent]"
        ));
    }
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if (1..=63).contains(&name.len()) && name.bytes().all(is_plain) {
        return Ok(());
    }
    Err(format!("`{name}` is not a name for a job: 1 to 63 letters, digits, dots, dashes and underscores"))
}

impl Setting for Tz {
    fn what() -> String {
        "a timezone such as \"Europe/Paris\"".into()
    }

    fn read(written: Written<'_>) -> Result<Self, Problem> {
        let text = written.text(&Self::what())?;
        text.parse().map_err(|_| {
            format!(
                "must be {}{}",
                Self::what(),
                did_you_mean(&text, TZ_VARIANTS.iter().map(|timezone| timezone.name()))
            )
        })
    }

    fn show(&self) -> Value {
        self.name().into()
    }
}

#[cfg(test)]
mod tests;
