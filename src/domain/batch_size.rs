//! How many messages a call of a function takes: as many as are wanted, unless that many have shown to take too long.

use std::time::Duration;

/// What of its limit a call may take before the next ones are smaller,
const LONG: u32 = 2;

/// and what it must stay under before they are larger: twice as much still fits then.
const SHORT: u32 = 4;

/// Remembered from call to call.
#[derive(Debug)]
pub struct BatchSize {
    most: usize,
}

impl Default for BatchSize {
    fn default() -> Self {
        Self { most: usize::MAX }
    }
}

impl BatchSize {
    /// How many of those that are wanted; never none.
    pub fn of(&self, wanted: usize) -> usize {
        wanted.min(self.most).max(1)
    }

    /// A call of so many took that long, of what it might.
    pub fn took(&mut self, size: usize, time: Duration, limit: Duration) {
        if size > 1 && time > limit / LONG {
            self.too_long(size);
        } else if time <= limit / SHORT && size >= self.most {
            self.most = self.most.saturating_mul(2);
        }
    }

    /// A call of so many was ended by its limit.
    pub fn too_long(&mut self, size: usize) {
        self.most = self.most.min(size / 2).max(1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    /// Calls a function that takes so long a message, and says how many calls came to nothing.
    fn call(size: &mut BatchSize, wanted: usize, each: Duration, calls: u32) -> u32 {
        let mut in_vain = 0;
        for _ in 0..calls {
            let count = size.of(wanted);
            let time = each * u32::try_from(count).unwrap();
            if time > LIMIT {
                size.too_long(count);
                in_vain += 1;
            } else {
                size.took(count, time, LIMIT);
            }
        }
        in_vain
    }

    proptest! {
        #[test]
        fn what_fitted_is_remembered_and_large_batches_come_back(
            wanted in 1..10_000_usize, each in 1..4_000_u64, later in 1..4_000_u64
        ) {
            let mut size = BatchSize::default();
            let (each, later) = (Duration::from_millis(each), Duration::from_millis(later));
            let halvings = wanted.ilog2() + 1;
            prop_assert!(call(&mut size, wanted, each, 100) <= halvings);
            prop_assert_eq!(call(&mut size, wanted, each, 1_000), 0, "for ever");
            let of_limit = each * u32::try_from(size.of(wanted)).unwrap();
            prop_assert!(size.of(wanted) == wanted || of_limit * 8 > LIMIT, "no smaller than it must be");
            // The function is another now.
            prop_assert!(call(&mut size, wanted, later, 100) <= halvings);
            let of_limit = later * u32::try_from(size.of(wanted)).unwrap();
            prop_assert!(size.of(wanted) == wanted || of_limit * 8 > LIMIT);
            prop_assert_eq!(call(&mut size, wanted, later, 1_000), 0);
        }
    }

    #[test]
    fn one_slow_call_is_forgotten_after_a_few_fast_ones() {
        let mut size = BatchSize::default();
        size.too_long(500);
        assert_eq!(size.of(500), 250);
        size.took(10, Duration::from_secs(1), LIMIT);
        assert_eq!(size.of(500), 250, "ten say nothing of more");
        size.took(250, Duration::from_secs(1), LIMIT);
        assert_eq!(size.of(500), 500);
    }
}
