//! The words in which a failed attempt is remembered: short, legible, storable.

use std::time::Duration;

use crate::domain::delivery::Outcome;

pub use crate::outside::words::{LIMIT, legible, with_words};

pub fn retry(reason: impl Into<String>) -> Outcome {
    Outcome::Retry { reason: reason.into(), after: None }
}

pub fn timed_out(timeout: Duration) -> Outcome {
    retry(format!("timed out after {}", humantime::format_duration(timeout)))
}
