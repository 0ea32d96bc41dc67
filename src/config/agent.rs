//! `[agent]`: what is the same for every role.

use std::time::Duration;

use super::error::ConfigError;
use super::section::Section;
use super::setting::{DAY, HOUR, Problem, SECOND, lasting};

pub const HEARTBEAT: Duration = Duration::from_secs(30);
pub const INACTIVE_AFTER: Duration = Duration::from_secs(300);
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(25);

#[derive(Clone, Debug)]
pub struct Agent {
    /// Chosen by the operator; else made of host, role and groups.
    pub name: Option<String>,
    pub heartbeat: Duration,
    pub inactive_after: Duration,
    pub drain_timeout: Duration,
}

impl Agent {
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, ConfigError> {
        let agent = Self {
            name: section.optional("name", |name: &String| check_name(name))?,
            heartbeat: section.or("heartbeat", HEARTBEAT, lasting(SECOND..=HOUR))?,
            inactive_after: section.or("inactive_after", INACTIVE_AFTER, lasting(SECOND..=7 * DAY))?,
            drain_timeout: section.or("drain_timeout", DRAIN_TIMEOUT, lasting(Duration::ZERO..=DAY))?,
        };
        if agent.inactive_after <= agent.heartbeat {
            let [heartbeat, inactive_after] =
                [agent.heartbeat, agent.inactive_after].map(humantime::format_duration);
            let problem = format!("({inactive_after}) must be longer than `heartbeat` ({heartbeat})");
            return Err(if section.has("inactive_after") {
                section.wrong("inactive_after", &problem)
            } else {
                section.wrong(
                    "heartbeat",
                    &format!("({heartbeat}) must be shorter than `inactive_after` ({inactive_after})"),
                )
            });
        }
        Ok(agent)
    }
}

fn check_name(name: &str) -> Result<(), Problem> {
    if (1..=128).contains(&name.len()) && !name.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Ok(());
    }
    Err("must be 1 to 128 characters without spaces".into())
}
