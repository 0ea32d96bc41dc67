//! Which partitions the broker is known to keep our producer's sequence of.
//!
//! A broker refuses what comes behind a gap in a producer's sequence; but of a producer that it does not know in a
//! partition, it takes any number as the first. If it refused the first request there, it would take the next one that
//! was under way with it, and a later message would stand before an earlier one. So the first record goes alone.

use std::time::{Duration, Instant};

use super::by_partition::ByPartition;

/// A broker forgets a producer that has been silent for `producer.id.expiration.ms`: a day, unless somebody lowered it.
const PROOF_AGE: Duration = Duration::from_secs(300);

/// What one lane knows of one incarnation of the producer.
#[derive(Debug, Default)]
pub struct Proven(ByPartition<Proof>);

#[derive(Debug, Default)]
struct Proof {
    /// A record that was sent then has been acknowledged.
    at: Option<Instant>,
    /// The next proof, once that ticket is acknowledged: it was sent then.
    coming: Option<(u64, Instant)>,
}

impl Proof {
    fn is_younger(&self, age: Duration, now: Instant) -> bool {
        self.at.is_some_and(|at| now.saturating_duration_since(at) < age)
    }
}

impl Proven {
    /// May a record be sent there? If not yet: not before every ticket below the one told is acknowledged.
    pub fn may_send(
        &mut self,
        topic: &str,
        partition: i32,
        now: Instant,
        acknowledged: impl FnOnce() -> u64,
    ) -> Result<(), u64> {
        let proof = self.0.at(topic, partition);
        let Some((ticket, sent_at)) = proof.coming else { return Ok(()) };
        if acknowledged() > ticket {
            (proof.at, proof.coming) = (Some(sent_at), None);
            return Ok(());
        }
        if proof.is_younger(PROOF_AGE, now) { Ok(()) } else { Err(ticket + 1) }
    }

    /// That ticket is a record that was sent there.
    pub fn sent(&mut self, topic: &str, partition: i32, ticket: u64, now: Instant) {
        let proof = self.0.at(topic, partition);
        // Renewed in time, what is busy never waits for it.
        if proof.coming.is_none() && !proof.is_younger(PROOF_AGE / 2, now) {
            proof.coming = Some((ticket, now));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_partition_that_is_busy_waits_once_and_one_that_was_silent_waits_again() {
        let start = Instant::now();
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        let mut proven = Proven::default();
        assert_eq!(proven.may_send("a", 0, start, || 0), Ok(()), "the first");
        proven.sent("a", 0, 7, start);
        assert_eq!(proven.may_send("a", 0, start, || 7), Err(8));
        assert_eq!(proven.may_send("a", 1, start, || 7), Ok(()), "another partition");
        assert_eq!(proven.may_send("b", 0, start, || 7), Ok(()), "another topic");
        assert_eq!(proven.may_send("a", 0, start, || 8), Ok(()));
        proven.sent("a", 0, 9, after(10));
        assert_eq!(proven.may_send("a", 0, after(10), || unreachable!("it is known")), Ok(()));
        // Renewed while it is young, and waited for if the answer does not come.
        proven.sent("a", 0, 10, after(200));
        assert_eq!(proven.may_send("a", 0, after(299), || 10), Ok(()));
        assert_eq!(proven.may_send("a", 0, after(300), || 10), Err(11));
        assert_eq!(proven.may_send("a", 0, after(300), || 11), Ok(()));
        // What is old is proven anew.
        proven.sent("a", 0, 12, after(900));
        assert_eq!(proven.may_send("a", 0, after(900), || 12), Err(13));
    }

    proptest! {
        #[test]
        fn of_a_broker_that_knows_nothing_no_two_records_of_a_partition_are_under_way(
            steps in prop::collection::vec((0..3i32, prop::bool::ANY), 1..200)
        ) {
            let now = Instant::now();
            let (mut proven, mut next, mut acknowledged) = (Proven::default(), 0, 0);
            // Partition and ticket of what is sent.
            let mut sent: Vec<(i32, u64)> = Vec::new();
            for (partition, answers) in steps {
                if answers && acknowledged < next {
                    acknowledged += 1;
                }
                let is_known = sent.iter().any(|(at, ticket)| *at == partition && *ticket < acknowledged);
                let is_under_way = sent.iter().any(|(at, ticket)| *at == partition && *ticket >= acknowledged);
                match proven.may_send("topic", partition, now, || acknowledged) {
                    Ok(()) => {
                        prop_assert!(is_known || !is_under_way);
                        proven.sent("topic", partition, next, now);
                        sent.push((partition, next));
                        next += 1;
                    }
                    Err(below) => {
                        prop_assert!(!is_known && is_under_way && acknowledged < below && below <= next);
                    }
                }
            }
        }
    }
}
