//! What narrows the messages down.

use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::Args;
use clap::builder::PossibleValuesParser;
use uuid::Uuid;

use crate::pg::retry::{Filter, STATES, WAITING};

/// A message must fit all that are given.
#[derive(Args, Debug)]
pub struct Filters {
    /// Whose handling failed
    #[arg(long)]
    group: Option<String>,
    #[arg(long)]
    topic: Option<String>,
    #[arg(long)]
    key: Option<String>,
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// A part of the error, in upper or lower case
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
    /// Given up since then: 2026-12-24T18:00:00Z, or so long ago, like 2h
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<DateTime<Utc>>,
    /// Given up before then
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<DateTime<Utc>>,
    /// Those that wait for a decision if it is not given
    #[arg(long, value_parser = PossibleValuesParser::new(STATES))]
    state: Option<String>,
}

/// A part of those that fit.
#[derive(Args, Debug)]
pub struct Page {
    /// At most so many
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Only those behind this one
    #[arg(long, value_name = "ID")]
    after: Option<Uuid>,
}

impl Filters {
    pub fn filter(&self) -> Filter {
        let states = match &self.state {
            Some(state) => vec![state.clone()],
            None => WAITING.map(str::to_owned).to_vec(),
        };
        Filter {
            states,
            group: self.group.clone(),
            topic: self.topic.clone(),
            key: self.key.clone(),
            event_type: self.event_type.clone(),
            error: self.error.clone(),
            since: self.since,
            until: self.until,
            after: None,
            limit: None,
        }
    }
}

impl Page {
    pub fn of(&self, filter: Filter, limit: Option<u32>) -> Filter {
        Filter { after: self.after, limit: self.limit.or(limit).map(i64::from), ..filter }
    }
}

fn time(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return chrono::TimeDelta::from_std(ago)
            .ok()
            .and_then(|ago| Utc::now().checked_sub_signed(ago))
            .ok_or_else(|| "is too long ago".to_owned());
    }
    DateTime::parse_from_rfc3339(text)
        .map(|time| time.to_utc())
        .map_err(|_| "is neither a time like 2026-12-24T18:00:00Z nor a duration like 2h".to_owned())
}

/// Messages in a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    per_second: f64,
}

impl Rate {
    /// How long so many take.
    pub fn time_for(self, messages: usize) -> Duration {
        #[allow(clippy::cast_precision_loss, reason = "a number of messages of one batch")]
        Duration::from_secs_f64(messages as f64 / self.per_second)
    }
}

/// `100/s`, `30/m`, `500/h`.
pub fn rate(text: &str) -> Result<Rate, String> {
    let wrong = || "is not a rate like 100/s, 30/m or 500/h".to_owned();
    let (count, unit) = text.split_once('/').ok_or_else(wrong)?;
    let seconds = match unit {
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let count: u32 = count.trim().parse().map_err(|_| wrong())?;
    if count == 0 {
        return Err(wrong());
    }
    Ok(Rate { per_second: f64::from(count) / seconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_moment_or_so_long_ago() {
        assert_eq!(time("2026-12-24T18:00:00Z").unwrap().timestamp(), 1_798_135_200);
        let ago = Utc::now() - time("2h").unwrap();
        assert!((7_199..7_205).contains(&ago.num_seconds()), "{ago}");
        assert!(time("yesterday").is_err() && time("900000years").is_err());
    }

    #[test]
    fn a_rate_is_so_many_in_a_time() {
        assert_eq!(rate("100/s").unwrap().time_for(50), Duration::from_millis(500));
        assert_eq!(rate("30/m").unwrap().time_for(1), Duration::from_secs(2));
        for wrong in ["", "100", "0/s", "-1/s", "x/s", "10/d"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }
}
