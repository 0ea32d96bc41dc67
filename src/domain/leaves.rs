//! How the partitions of the outbox (leaves) are laid out over the sequence: how large, how many, where.

use std::time::Duration;

/// The smallest leaf, in numbers of the sequence.
pub const SMALLEST: i64 = 1 << 20;

/// A range that is made while the default partition has rows begins so far beyond the sequence that no insert gets there
/// before it is attached.
pub const FAR: i64 = 1 << 40;

/// Every plan that cannot be pruned locks all leaves: of what is wanted ahead, a leaf is about this part.
const LEAVES_AHEAD: i64 = 8;

const DAY: Duration = Duration::from_secs(86_400);
const HOUR: f64 = 3_600.0;

/// A change faster than this was no inserts: the sequence was moved.
const FASTEST_PER_SECOND: f64 = 1e6;

/// The highest rate is halved in so many days, so that one bulk load does not size the leaves for ever.
const FADING_DAYS: f64 = 3.5;

/// Numbers of the sequence from `from` to before `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    pub from: i64,
    pub to: i64,
}

/// How fast the sequence rises, per day.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    /// Of about the last hour.
    pub per_day: f64,
    pub peak_per_day: f64,
}

impl Rate {
    /// The sequence rose by `rows` in `elapsed`.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a rate is an estimate")]
    pub fn observe(self, rows: i64, elapsed: Duration) -> Self {
        let seconds = elapsed.as_secs_f64();
        let rows = rows as f64;
        if seconds <= 0.0 || rows < 0.0 || rows > FASTEST_PER_SECOND * seconds {
            return self;
        }
        let kept = 0.5_f64.powf(seconds / HOUR);
        let per_day = self.per_day * kept + rows / seconds * DAY.as_secs_f64() * (1.0 - kept);
        let faded = self.peak_per_day * 0.5_f64.powf(seconds / DAY.as_secs_f64() / FADING_DAYS);
        Self { per_day, peak_per_day: faded.max(per_day) }
    }

    /// What leaves are to cover beyond the sequence at all times: a day at the highest rate, and an hour for the job.
    #[allow(clippy::cast_possible_truncation, reason = "a cast from a float saturates")]
    pub fn wanted_ahead(self) -> i64 {
        let wanted = self.peak_per_day * (1.0 + 1.0 / 24.0);
        (wanted as i64).clamp(SMALLEST * (LEAVES_AHEAD - 1), FAR / 2)
    }
}

/// What is next for the leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// They cover what is wanted.
    Enough,
    /// These follow those that there are.
    Extend(Vec<Leaf>),
    /// Rows in the default partition are in the way: these, far beyond the sequence, which then jumps there.
    Rescue(Vec<Leaf>),
    /// Leaves are ready beyond a gap: the sequence goes on at this number.
    Jump(i64),
}

/// `leaves` in order; `last_seq` is the sequence's last value. `default_is_small`: attaching a leaf may scan it.
pub fn next_step(leaves: &[Leaf], last_seq: i64, rate: Rate, default_is_small: bool) -> Step {
    let next = last_seq.saturating_add(1);
    let wanted = rate.wanted_ahead();
    let end = end_of_run(leaves, next);
    if end.is_some_and(|end| end - next >= wanted) {
        return Step::Enough;
    }
    let after = end.unwrap_or(next);
    if let Some(beyond) = leaves.iter().find(|leaf| leaf.from > after) {
        return Step::Jump(beyond.from);
    }
    match end {
        Some(end) if default_is_small => Step::Extend(row_of(end, wanted - (end - next), rate)),
        _ => Step::Rescue(row_of(align(after.saturating_add(FAR)), wanted, rate)),
    }
}

/// How many numbers beyond the sequence leaves cover without a gap.
pub fn covered_ahead(leaves: &[Leaf], last_seq: i64) -> i64 {
    let next = last_seq.saturating_add(1);
    end_of_run(leaves, next).map_or(0, |end| end - next)
}

/// Where the leaves end that cover `next` and what follows without a gap.
fn end_of_run(leaves: &[Leaf], next: i64) -> Option<i64> {
    leaves.iter().fold(None, |end, leaf| match end {
        None if leaf.from <= next && next < leaf.to => Some(leaf.to),
        Some(end) if leaf.from == end => Some(leaf.to),
        end => end,
    })
}

/// One after the other from `from`, at least `room` in all. Fewer at the very end of the sequence.
fn row_of(from: i64, room: i64, rate: Rate) -> Vec<Leaf> {
    let size = size(rate);
    let mut row: Vec<Leaf> = Vec::new();
    let mut from = from;
    while row.last().is_none_or(|last| last.to - row[0].from < room) {
        let Some(to) = from.checked_add(size) else { break };
        row.push(Leaf { from, to });
        from = to;
    }
    row
}

fn size(rate: Rate) -> i64 {
    let part = (rate.wanted_ahead() / LEAVES_AHEAD).max(SMALLEST);
    u64::try_from(part).ok().and_then(|part| i64::try_from(part.next_power_of_two()).ok()).unwrap_or(part)
}

fn align(seq: i64) -> i64 {
    seq / SMALLEST * SMALLEST
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Does what the step says.
    fn take(leaves: &mut Vec<Leaf>, last_seq: &mut i64, step: &Step) {
        match step {
            Step::Enough => {}
            Step::Extend(more) | Step::Rescue(more) => leaves.extend(more),
            Step::Jump(to) => *last_seq = to - 1,
        }
    }

    proptest! {
        /// From any place, with any rate: leaves never overlap, the sequence never goes back, and after a few steps what
        /// is wanted is covered, by tens of leaves.
        #[test]
        fn steps_end_with_a_day_covered(
            mut last_seq in 0..(1_i64 << 55), rows in 0..(1_i64 << 45), small in any::<bool>(),
            count in 0_usize..12, at in 0_usize..14,
        ) {
            let rate = Rate::default().observe(rows, DAY);
            let first = align(last_seq);
            let mut leaves: Vec<Leaf> = (0..count)
                .map(|n| i64::try_from(n).unwrap() * SMALLEST + first)
                .map(|from| Leaf { from, to: from + SMALLEST })
                .collect();
            last_seq = first + i64::try_from(at).unwrap() * SMALLEST;
            let mut steps = 0;
            loop {
                let step = next_step(&leaves, last_seq, rate, small);
                if step == Step::Enough {
                    break;
                }
                if let Step::Rescue(row) = &step {
                    prop_assert!(row[0].from - last_seq > FAR / 2);
                }
                let before = last_seq;
                take(&mut leaves, &mut last_seq, &step);
                prop_assert!(last_seq >= before);
                steps += 1;
                prop_assert!(steps < 5, "{step:?}");
            }
            prop_assert!(leaves.windows(2).all(|pair| pair[0].to <= pair[1].from));
            let ahead = leaves.iter().filter(|leaf| leaf.to > last_seq);
            prop_assert!(ahead.clone().map(|leaf| leaf.to - leaf.from).sum::<i64>() >= rate.wanted_ahead());
            prop_assert!(ahead.count() <= 24);
        }

        /// What a day brings at a steady rate is covered, however it is looked at.
        #[test]
        fn a_steady_rate_is_known_after_some_hours(per_second in 0_i64..400_000, seconds in 30_u64..600) {
            let mut rate = Rate::default();
            let elapsed = Duration::from_secs(seconds);
            for _ in 0..(36_000 / seconds) {
                rate = rate.observe(per_second * i64::try_from(seconds).unwrap(), elapsed);
            }
            let day = per_second * 86_400;
            prop_assert!(rate.wanted_ahead() >= day, "{rate:?} {day}");
        }
    }

    #[test]
    fn a_jump_of_the_sequence_is_no_rate() {
        let rate = Rate::default().observe(1_000, Duration::from_secs(60));
        assert_eq!(rate.observe(FAR, Duration::from_secs(60)), rate);
        assert_eq!(rate.observe(-5, Duration::from_secs(60)), rate);
    }

    #[test]
    fn a_peak_fades() {
        let peak = Rate::default().observe(10_000_000_000, DAY);
        let later = (0..70).fold(peak, |rate, _| rate.observe(0, DAY));
        assert_eq!(later.wanted_ahead(), Rate::default().wanted_ahead());
    }
}
