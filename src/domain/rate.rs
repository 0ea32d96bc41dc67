//! So many a second, and no more than a second's worth at once. The first one need not wait.

use std::time::{Duration, Instant};

/// Who shares it takes turns: one that has asked has its moment, whatever others ask for meanwhile.
#[derive(Debug)]
pub struct Pace {
    per_second: f64,
    /// What may start now; below nothing, so many have their moments to come.
    ready: f64,
    at: Instant,
    /// Counts changes of the rate.
    version: u64,
}

/// The moment of one that is to start.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    at: Instant,
    version: u64,
}

impl Pace {
    pub fn new(per_second: f64, now: Instant) -> Self {
        Self { per_second, ready: 1.0, at: now, version: 0 }
    }

    /// From now on. Moments that were given at another rate do not count any more.
    pub fn set(&mut self, per_second: f64, now: Instant) {
        if (per_second - self.per_second).abs() < f64::EPSILON {
            return;
        }
        self.refill(now);
        (self.per_second, self.ready) = (per_second, self.ready.max(0.0).min(per_second.max(1.0)));
        self.version += 1;
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.ready = (self.ready + passed * self.per_second).min(self.per_second.max(1.0));
        self.at = now;
    }

    /// Lets one start, or says how long it waits: `turn` keeps its moment until it has started.
    pub fn take(&mut self, turn: &mut Option<Turn>, now: Instant) -> Result<(), Duration> {
        let version = self.version;
        let Turn { at, .. } = *match turn {
            Some(given) if given.version == version => given,
            _ => turn.insert(Turn { at: self.next(now), version }),
        };
        if at > now {
            return Err(at - now);
        }
        *turn = None;
        Ok(())
    }

    fn next(&mut self, now: Instant) -> Instant {
        self.refill(now);
        self.ready -= 1.0;
        let wait = (-self.ready).max(0.0) / self.per_second;
        now + Duration::try_from_secs_f64(wait).unwrap_or(Duration::MAX).min(Duration::from_secs(86_400))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_any_time_there_are_as_many_as_asked_for() {
        let start = Instant::now();
        let mut pace = Pace::new(50.0, start);
        let (mut now, mut turn) = (start, None);
        let mut taken = 0;
        while now < start + Duration::from_secs(10) {
            match pace.take(&mut turn, now) {
                Ok(()) => taken += 1,
                Err(wait) => now += wait.max(Duration::from_micros(1)),
            }
        }
        assert!((490..=510).contains(&taken), "{taken}");
        let later = now + Duration::from_secs(3600);
        let burst = (0..1_000).filter(|_| pace.take(&mut turn, later).is_ok()).count();
        assert!((50..=51).contains(&burst), "an hour of silence is not made up for: {burst}");
    }

    #[test]
    fn less_than_one_a_second_is_possible() {
        let start = Instant::now();
        let (mut pace, mut turn) = (Pace::new(1.0 / 3600.0, start), None);
        assert!(pace.take(&mut turn, start).is_ok(), "the first one does not wait for an hour");
        assert!(pace.take(&mut turn, start).is_err());
        let hour = Duration::from_secs(3600);
        assert!(pace.take(&mut turn, start + Duration::from_secs(3599)).is_err());
        assert!(pace.take(&mut turn, start + hour + Duration::from_millis(1)).is_ok());
        assert!(pace.take(&mut turn, start + hour + Duration::from_millis(2)).is_err());
    }

    #[test]
    fn two_that_share_it_take_turns_however_seldom_one_looks() {
        let start = Instant::now();
        let mut pace = Pace::new(10.0, start);
        let (mut eager, mut lazy) = (None, None);
        let (mut of_eager, mut of_lazy) = (0, 0);
        for milliseconds in 0..10_000 {
            let now = start + Duration::from_millis(milliseconds);
            of_eager += u32::from(pace.take(&mut eager, now).is_ok());
            if milliseconds % 150 == 0 {
                of_lazy += u32::from(pace.take(&mut lazy, now).is_ok());
            }
        }
        assert!((95..=105).contains(&(of_eager + of_lazy)), "{of_eager} and {of_lazy}");
        assert!(of_lazy >= 30, "{of_lazy}");
    }

    #[test]
    fn a_moment_far_away_is_given_up_when_the_rate_rises() {
        let start = Instant::now();
        let (mut pace, mut turn) = (Pace::new(1.0 / 3600.0, start), None);
        assert!(pace.take(&mut turn, start).is_ok() && pace.take(&mut turn, start).is_err());
        pace.set(10.0, start);
        let wait = pace.take(&mut turn, start).unwrap_err();
        assert!(wait <= Duration::from_millis(100), "{wait:?}");
    }
}
