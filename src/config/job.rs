//! `[jobs.NAME]`: when something recurring runs.

use std::time::Duration;

use chrono_tz::{TZ_VARIANTS, Tz};
use serde_json::Value;

use super::error::ConfigError;
use super::nearest::did_you_mean;
use super::section::Section;
use super::setting::{DAY, Problem, SECOND, Setting, Written, any, lasting};
use crate::domain::schedule::Schedule;

/// The jobs that there are.
pub const BUILT_IN: &[&str] = &["reap-agents", "partitions", "cleanup", "process-retry", "dead-letters"];

#[derive(Clone, Debug)]
pub struct Job {
    /// `None`: the job's own default.
    pub schedule: Option<Schedule>,
    pub enabled: bool,
    /// A start is put off by up to this.
    pub jitter: Duration,
    /// A run that takes longer is cut. `None`: the job's own default.
    pub timeout: Option<Duration>,
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
        Ok(Self {
            schedule,
            enabled: section.or("enabled", true, any)?,
            jitter: section.or("jitter", Duration::ZERO, lasting(Duration::ZERO..=DAY))?,
            timeout: section.optional("timeout", lasting(SECOND..=DAY))?,
        })
    }
}

pub(super) fn check_name(name: &str) -> Result<(), Problem> {
    if BUILT_IN.contains(&name) {
        return Ok(());
    }
    let suggestion = did_you_mean(name, BUILT_IN.iter().copied());
    Err(format!("there is no job `{name}`, only {}{suggestion}", BUILT_IN.join(", ")))
}

impl Setting for Tz {
    fn read(written: Written<'_>) -> Result<Self, Problem> {
        const WHAT: &str = "a timezone such as \"Europe/Paris\"";
        let text = written.text(WHAT)?;
        text.parse().map_err(|_| {
            format!(
                "must be {WHAT}{}",
                did_you_mean(&text, TZ_VARIANTS.iter().map(|timezone| timezone.name()))
            )
        })
    }

    fn show(&self) -> Value {
        self.name().into()
    }
}
