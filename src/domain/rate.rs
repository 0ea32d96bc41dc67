//! So many a second, and no more than a second's worth at once. The first one need not wait.

use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct Pace {
    per_second: f64,
    /// What may start now; less than one is waited for.
    ready: f64,
    at: Instant,
}

impl Pace {
    pub fn new(per_second: f64, now: Instant) -> Self {
        Self { per_second, ready: 1.0, at: now }
    }

    pub fn set(&mut self, per_second: f64, now: Instant) {
        self.refill(now);
        self.per_second = per_second;
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.ready = (self.ready + passed * self.per_second).min(self.per_second.max(1.0));
        self.at = now;
    }

    /// Takes one, or says how long to wait for it.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        self.refill(now);
        if self.ready >= 1.0 {
            self.ready -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64(((1.0 - self.ready) / self.per_second).min(60.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_any_time_there_are_as_many_as_asked_for() {
        let start = Instant::now();
        let mut pace = Pace::new(50.0, start);
        let mut now = start;
        let mut taken = 0;
        while now < start + Duration::from_secs(10) {
            match pace.take(now) {
                Ok(()) => taken += 1,
                Err(wait) => now += wait.max(Duration::from_micros(1)),
            }
        }
        assert!((490..=510).contains(&taken), "{taken}");
        let later = now + Duration::from_secs(3600);
        let burst = (0..1_000).filter(|_| pace.take(later).is_ok()).count();
        assert_eq!(burst, 50, "an hour of silence is not made up for");
    }

    #[test]
    fn less_than_one_a_second_is_possible() {
        let start = Instant::now();
        let mut pace = Pace::new(1.0 / 3600.0, start);
        assert!(pace.take(start).is_ok(), "the first one does not wait for an hour");
        assert!(pace.take(start).is_err());
        let hour = Duration::from_secs(3600);
        assert!(pace.take(start + Duration::from_secs(3599)).is_err());
        assert!(pace.take(start + hour + Duration::from_millis(1)).is_ok());
        assert!(pace.take(start + hour + Duration::from_millis(2)).is_err());
    }
}
