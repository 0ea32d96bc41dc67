//! How far a group is in a partition: the longest prefix, in order of delivery, of finished messages.

use std::collections::VecDeque;

/// Offsets come in order of delivery and have gaps (transaction markers, compaction): the neighbour of an offset is
/// the one that was delivered next, not the next number.
#[derive(Debug)]
pub struct Watermark {
    next: i64,
    /// What was delivered behind the prefix, and whether it is finished.
    delivered: VecDeque<(i64, bool)>,
}

impl Watermark {
    /// Nothing is delivered yet; the first offset may be `start`.
    pub fn new(start: i64) -> Self {
        Self { next: start, delivered: VecDeque::new() }
    }

    /// Where to go on after a restart: everything delivered below it is finished.
    pub fn next(&self) -> i64 {
        self.next
    }

    pub fn deliver(&mut self, offset: i64) {
        self.delivered.push_back((offset, false));
    }

    pub fn finish(&mut self, offset: i64) {
        if let Some(entry) = self.delivered.iter_mut().find(|entry| **entry == (offset, false)) {
            entry.1 = true;
        }
        while let Some((offset, true)) = self.delivered.front() {
            self.next = offset + 1;
            self.delivered.pop_front();
        }
    }

    /// What `next` would be if this one were finished too.
    pub fn next_with(&self, offset: i64) -> i64 {
        let finished = self.delivered.iter().take_while(|(other, finished)| *finished || *other == offset);
        finished.last().map_or(self.next, |(last, _)| last + 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_position_covers_finished_messages_only_and_all_of_their_prefix(
            gaps in prop::collection::vec(1..5i64, 1..40), start in 0..1000i64, seed in any::<u64>()
        ) {
            let offsets: Vec<i64> =
                gaps.iter().scan(start - 1, |at, gap| { *at += gap; Some(*at) }).collect();
            let mut order: Vec<usize> = (0..offsets.len()).collect();
            fastrand::Rng::with_seed(seed).shuffle(&mut order);
            let mut watermark = Watermark::new(start);
            let mut delivered = 0;
            let mut finished = vec![false; offsets.len()];
            for place in order {
                // Delivered only as far as needed: taking and finishing interleave.
                while delivered <= place {
                    watermark.deliver(offsets[delivered]);
                    delivered += 1;
                }
                let foreseen = watermark.next_with(offsets[place]);
                watermark.finish(offsets[place]);
                finished[place] = true;
                let prefix = finished.iter().take_while(|finished| **finished).count();
                let expected = prefix.checked_sub(1).map_or(start, |last| offsets[last] + 1);
                prop_assert_eq!(watermark.next(), expected);
                prop_assert_eq!(foreseen, expected);
            }
        }
    }

    #[test]
    fn a_log_that_begins_anew_is_followed_back() {
        let mut watermark = Watermark::new(500);
        for offset in [500, 0, 1] {
            watermark.deliver(offset);
        }
        watermark.finish(0);
        assert_eq!(watermark.next(), 500);
        watermark.finish(500);
        assert_eq!(watermark.next(), 1);
    }
}
