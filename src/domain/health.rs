//! What a running agent says of itself, and what of that makes it alive and ready.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::Value;

/// A loop that has not turned for this long is stuck. Waiting for the database or for Kafka is turning.
pub const STUCK_AFTER: Duration = Duration::from_secs(60);

/// What an agent waits for, in its health document.
pub const WAITING_FOR: &str = "waiting_for";

/// What every role tells: a relay, and each group of a consumer.
pub trait Vitals: Send + Sync {
    /// The role's part of the health document.
    fn health(&self) -> Value;
    /// How long ago its loop last turned.
    fn since_turn(&self) -> Duration;
    /// Why Kafka does not answer, if it does not.
    fn kafka_away(&self) -> Option<String>;
    /// What else keeps it from working, if anything does.
    fn waiting_for(&self) -> Option<String>;
    /// Work under way that an abort would leave to another, if there is any.
    fn unfinished(&self) -> Option<String>;
}

/// One line of `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub name: &'static str,
    /// `None`: passed.
    pub problem: Option<String>,
}

/// The answers of `/healthz` and `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub checks: Vec<Check>,
    pub alive: bool,
}

impl Report {
    pub fn is_ready(&self) -> bool {
        self.alive && self.checks.iter().all(|check| check.problem.is_none())
    }

    /// The first thing that is not right, for a status line.
    pub fn problem(&self) -> Option<&str> {
        self.checks.iter().find_map(|check| check.problem.as_deref())
    }
}

/// Over how many beats an error rate is recent: five minutes by default.
const RECENT_BEATS: usize = 10;

/// The share of tries that failed lately, from counts that only rise.
#[derive(Clone, Debug)]
pub struct ErrorRate {
    beats: usize,
    counts: VecDeque<(u64, u64)>,
}

impl Default for ErrorRate {
    fn default() -> Self {
        Self::over(RECENT_BEATS)
    }
}

impl ErrorRate {
    /// What is longer ago than so many beats does not count.
    pub fn over(beats: usize) -> Self {
        Self { beats, counts: VecDeque::new() }
    }

    /// Takes the counts of another beat; 0 to 1, and 0 as well if nothing was tried.
    pub fn after(&mut self, processed: u64, failed: u64) -> f64 {
        let (processed_before, failed_before) = self.counts.front().copied().unwrap_or_default();
        self.counts.push_back((processed, failed));
        if self.counts.len() > self.beats {
            self.counts.pop_front();
        }
        let share = |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        let (processed, failed) = (share(processed - processed_before), share(failed - failed_before));
        if failed > 0.0 { failed / (processed + failed) } else { 0.0 }
    }
}

/// How many a second there were lately, from a count that only rises.
#[derive(Clone, Debug)]
pub struct Throughput {
    beats: usize,
    counts: VecDeque<(Instant, u64)>,
}

impl Throughput {
    /// What is longer ago than so many beats does not count.
    pub fn over(beats: usize) -> Self {
        Self { beats, counts: VecDeque::new() }
    }

    /// Takes the count of another beat.
    pub fn after(&mut self, count: u64, now: Instant) -> f64 {
        let (began, before) = self.counts.front().copied().unwrap_or((now, count));
        self.counts.push_back((now, count));
        if self.counts.len() > self.beats {
            self.counts.pop_front();
        }
        let passed = now.saturating_duration_since(began).as_secs_f64();
        let since = f64::from(u32::try_from(count - before).unwrap_or(u32::MAX));
        if passed > 0.0 { since / passed } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_throughput_is_that_of_the_last_beats() {
        let (begun, mut throughput) = (Instant::now(), Throughput::over(3));
        let mut after = |seconds, count| throughput.after(count, begun + Duration::from_secs(seconds));
        assert_eq!(after(0, 100).to_bits(), 0.0_f64.to_bits(), "what was before is of no time");
        assert!((after(1, 150) - 50.0).abs() < 1e-9);
        assert!((after(2, 160) - 30.0).abs() < 1e-9);
        assert!((after(3, 160) - 20.0).abs() < 1e-9);
        assert!((after(4, 160) - 10.0 / 3.0).abs() < 1e-9);
        assert!(after(5, 160).abs() < 1e-9);
    }

    #[test]
    fn failures_of_long_ago_do_not_count() {
        let mut rate = ErrorRate::default();
        assert_eq!(rate.after(0, 0).to_bits(), 0.0_f64.to_bits(), "nothing was tried");
        assert!((rate.after(30, 10) - 0.25).abs() < 1e-9);
        assert!((rate.after(60, 20) - 0.25).abs() < 1e-9);
        let later: Vec<f64> = (0..RECENT_BEATS).map(|_| rate.after(60, 20)).collect();
        assert!(later[0] > 0.2 && later[RECENT_BEATS - 1] < 1e-9, "{later:?}");
        assert!((rate.after(60, 21) - 1.0).abs() < 1e-9);
    }
}
