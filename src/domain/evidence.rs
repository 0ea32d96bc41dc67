//! How the partitions of the evidence (leaves) are laid out over time.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

const HOUR: i64 = 3_600;

/// Every plan that cannot be pruned locks all leaves: what retention keeps is about this many.
const LEAVES_KEPT: i64 = 12;

/// Leaves are there for so long ahead. A message's time is a moment ago, or up to an hour ahead of a clock that is behind.
const AHEAD: TimeDelta = TimeDelta::hours(4);

/// Evidence of messages from `from` to before `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EvidenceLeaf {
    pub from: DateTime<Utc>,
    pub to: DateTime<Utc>,
}

/// How long a leaf is, in whole hours.
fn width(kept: Duration) -> i64 {
    let hours = i64::try_from(kept.as_secs()).unwrap_or(i64::MAX) / HOUR;
    (hours / LEAVES_KEPT).max(1) * HOUR
}

/// The leaves to make now, in order: from the last one on, or from the present.
pub fn missing(existing: &[EvidenceLeaf], now: DateTime<Utc>, kept: Duration) -> Vec<EvidenceLeaf> {
    let width = width(kept);
    let multiple = |number: i64| DateTime::from_timestamp(number.saturating_mul(width), 0);
    let place = |at: DateTime<Utc>| at.timestamp().div_euclid(width);
    let end = existing.iter().map(|leaf| leaf.to).max();
    let mut made = Vec::new();
    let mut next = end.max(multiple(place(now)));
    while let Some(from) = next.filter(|from| *from < now + AHEAD) {
        // Leaves of another width may lie before: the next ends where this width has a limit.
        let Some(to) = multiple(place(from) + 1) else { break };
        made.push(EvidenceLeaf { from, to });
        next = Some(to);
    }
    made
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn leaves_follow_each_other_and_reach_ahead_whatever_retention_was_before(
            start in 1_700_000_000..1_900_000_000_i64,
            steps in prop::collection::vec((0..200_000_i64, 0..4_000_000_u64), 1..30),
        ) {
            let mut now = DateTime::from_timestamp(start, 0).unwrap();
            let mut leaves: Vec<EvidenceLeaf> = Vec::new();
            for (pause, kept) in steps {
                now += TimeDelta::seconds(pause);
                leaves.extend(missing(&leaves, now, Duration::from_secs(kept)));
                prop_assert!(leaves.iter().all(|leaf| leaf.from < leaf.to));
                prop_assert!(leaves.windows(2).all(|pair| pair[0].to <= pair[1].from));
                prop_assert!(leaves.iter().any(|leaf| leaf.from <= now && now < leaf.to));
                prop_assert!(leaves.last().unwrap().to >= now + AHEAD);
                prop_assert!(missing(&leaves, now, Duration::from_secs(kept)).is_empty());
            }
        }
    }

    #[test]
    fn what_is_kept_is_about_a_dozen_leaves() {
        let now = DateTime::from_timestamp(1_790_000_000, 0).unwrap();
        for (kept, hours) in [(0, 1), (86_400, 2), (30 * 86_400, 60)] {
            let leaf = missing(&[], now, Duration::from_secs(kept))[0];
            assert_eq!((leaf.to - leaf.from).num_hours(), hours);
        }
    }
}
