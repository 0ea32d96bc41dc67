//! `[retention]`: how long what is done is kept.

use std::time::Duration;

use serde_json::Value;

use super::error::ConfigError;
use super::section::Section;
use super::setting::{DAY, HOUR, Problem, Setting, Written, any, lasting};

pub const PUBLISHED: Duration = DAY;
pub const HANDLED: Duration = DAY;
pub const IDEMPOTENCY: Duration = Duration::from_secs(7 * 86_400);
pub const AUDIT: Duration = Duration::from_secs(30 * 86_400);
pub const DISCARDED: Duration = Duration::from_secs(30 * 86_400);

pub const RUNS: Duration = Duration::from_secs(7 * 86_400);

const LONGEST: Duration = Duration::from_secs(3_650 * 86_400);

#[derive(Clone, Debug)]
pub struct Retention {
    /// Of published messages, after every group of this database that subscribes is past them.
    pub published: Duration,
    /// Of published messages, whatever the groups do.
    pub max: Ceiling,
    /// Of what groups have given up on. It is never deleted unless this says so.
    pub dead_letters: Ceiling,
    /// Of evidence: within it a message that comes again is not handled again.
    pub handled: Duration,
    /// Of operations that are done: own ids and idempotency keys.
    pub idempotency: Duration,
    /// Of messages that an operator discarded, and of the traces of those sent again as new ones.
    pub discarded: Duration,
    /// Of what became of each run of a job.
    pub runs: Duration,
    /// Of what was published when, and of what operators did.
    pub audit: Duration,
}

/// `"never"`, or a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ceiling {
    Never,
    After(Duration),
}

impl Retention {
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, ConfigError> {
        let retention = Self {
            published: section.or("published", PUBLISHED, lasting(Duration::ZERO..=LONGEST))?,
            max: section.or("max", Ceiling::Never, any)?,
            dead_letters: section.or("dead_letters", Ceiling::Never, any)?,
            handled: section.or("handled", HANDLED, lasting(Duration::ZERO..=LONGEST))?,
            idempotency: section.or("idempotency", IDEMPOTENCY, lasting(Duration::ZERO..=LONGEST))?,
            // A lane may be about to read its window again, and must find them then.
            discarded: section.or("discarded", DISCARDED, lasting(HOUR..=LONGEST))?,
            runs: section.or("runs", RUNS, lasting(Duration::ZERO..=LONGEST))?,
            audit: section.or("audit", AUDIT, lasting(Duration::ZERO..=LONGEST))?,
        };
        if matches!(retention.max, Ceiling::After(max) if max < retention.published) {
            return Err(section.wrong("max", "must not be shorter than `published`"));
        }
        Ok(retention)
    }
}

impl Setting for Ceiling {
    fn what() -> String {
        "\"never\" or a duration such as \"7days\"".into()
    }

    fn read(written: Written<'_>) -> Result<Self, Problem> {
        let text = written.text(&Self::what())?;
        if text == "never" {
            return Ok(Self::Never);
        }
        humantime::parse_duration(&text)
            .map(Self::After)
            .map_err(|error| format!("must be {}: {error}", Self::what()))
    }

    fn show(&self) -> Value {
        match self {
            Self::Never => "never".into(),
            Self::After(duration) => duration.show(),
        }
    }
}
