//! How much flows a second, kept in memory for the last hour.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::Site;
use crate::pg::census::{self, Counted};

const EVERY: Duration = Duration::from_secs(10);
const KEPT: usize = 360;

/// Rates are of about this long: agents tell their counts once a heartbeat.
const OVER: usize = 6;

/// What has flowed since the first look.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    inserted: u64,
    published: u64,
    handled: u64,
}

/// Rates, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Rates {
    pub(super) inserted: Vec<f64>,
    pub(super) published: Vec<f64>,
    pub(super) handled: Vec<f64>,
}

#[derive(Default)]
pub(super) struct Flow(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    samples: VecDeque<Sample>,
    sequence: Option<i64>,
    processed: HashMap<Uuid, u64>,
}

impl Inner {
    fn take(&mut self, counted: Counted, at: Instant) {
        let is_first = self.samples.is_empty();
        let last = self.samples.back().copied();
        let mut next = last.unwrap_or(Sample { at, inserted: 0, published: 0, handled: 0 });
        next.at = at;
        if let Some(before) = self.sequence.replace(counted.sequence) {
            next.inserted += u64::try_from(counted.sequence - before).unwrap_or(0);
        }
        let mut known = HashMap::new();
        for (agent, is_producer, processed) in counted.processed {
            let processed = u64::try_from(processed).unwrap_or(0);
            // One that has come since has done all that it counts since.
            let before = self.processed.get(&agent).copied().unwrap_or(if is_first { processed } else { 0 });
            let more = processed.saturating_sub(before);
            if is_producer {
                next.published += more;
            } else {
                next.handled += more;
            }
            known.insert(agent, processed);
        }
        self.processed = known;
        self.samples.push_back(next);
        if self.samples.len() > KEPT + OVER {
            self.samples.pop_front();
        }
    }

    fn rates(&self) -> Rates {
        let mut rates = Rates::default();
        for (place, sample) in self.samples.iter().enumerate().skip(1) {
            let before = self.samples[place.saturating_sub(OVER)];
            let seconds = (sample.at - before.at).as_secs_f64();
            #[allow(clippy::cast_precision_loss, reason = "a picture")]
            let rate = |now: u64, then: u64| if seconds > 0.0 { (now - then) as f64 / seconds } else { 0.0 };
            rates.inserted.push(rate(sample.inserted, before.inserted));
            rates.published.push(rate(sample.published, before.published));
            rates.handled.push(rate(sample.handled, before.handled));
        }
        rates
    }
}

impl Flow {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn rates(&self) -> Rates {
        self.inner().rates()
    }
}

/// Looks until it is dropped. A look that fails leaves a gap.
pub(super) async fn keep(site: Arc<Site>) {
    loop {
        if let Ok(client) = site.database.lend().await
            && let Ok(counted) = census::counted(&client).await
        {
            drop(client);
            site.flow.inner().take(counted, Instant::now());
        }
        tokio::time::sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_before_the_first_look_does_not_flow_and_a_new_agent_counts_from_nothing() {
        let (mut inner, start) = (Inner::default(), Instant::now());
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let counted =
            |sequence, processed: &[(Uuid, bool, i64)]| Counted { sequence, processed: processed.to_vec() };
        inner.take(counted(1_000, &[(one, true, 500)]), start);
        inner.take(counted(1_020, &[(one, true, 510), (two, false, 30)]), start + Duration::from_secs(10));
        // The sequence was set back, an agent is another process.
        inner.take(counted(5, &[(one, true, 0), (two, false, 30)]), start + Duration::from_secs(20));
        let rates = inner.rates();
        let is = |rates: &[f64], expected: &[f64]| {
            rates.len() == expected.len() && rates.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9)
        };
        assert!(is(&rates.inserted, &[2.0, 1.0]), "{rates:?}");
        assert!(is(&rates.published, &[1.0, 0.5]) && is(&rates.handled, &[3.0, 1.5]), "{rates:?}");
    }
}
