//! Exponential backoff with full jitter.

use std::time::Duration;

/// Doubling delays up to a ceiling, each drawn evenly from zero to its bound, so that many who failed at one moment
/// do not return at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub first: Duration,
    pub max: Duration,
}

impl Backoff {
    /// The upper bound of the delay after `failures` failures in a row (from 1).
    pub fn bound(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.first.saturating_mul(1 << doublings).min(self.max)
    }

    /// The delay itself; `draw` is evenly distributed over 0.0..1.0.
    pub fn delay(&self, failures: u32, draw: f64) -> Duration {
        self.bound(failures).mul_f64(draw.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_the_ceiling_and_stays_there() {
        let backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(3600) };
        let bounds: Vec<u64> = [0, 1, 2, 3, 12, 13, u32::MAX].map(|n| backoff.bound(n).as_secs()).to_vec();
        assert_eq!(bounds, [1, 1, 2, 4, 2048, 3600, 3600]);
        assert_eq!(backoff.delay(3, 0.5), Duration::from_secs(2));
    }
}
