//! How far a group is in a partition: the longest prefix, in order of delivery, of finished messages.

use std::collections::VecDeque;

use chrono::{DateTime, Utc};

/// Offsets come in order of delivery and have gaps (transaction markers, compaction): the neighbour of an offset is
/// the one that was delivered next, not the next number. So what was delivered is known by its ticket.
#[derive(Debug)]
pub struct Watermark {
    next: i64,
    /// Of the first one behind the prefix.
    first: u64,
    /// What was delivered behind the prefix.
    delivered: VecDeque<Delivered>,
}

#[derive(Debug)]
struct Delivered {
    offset: i64,
    timestamp: Option<DateTime<Utc>>,
    finished: bool,
}

/// Names a delivery within its partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

impl Watermark {
    /// Nothing is delivered yet; the first offset may be `start`.
    pub fn new(start: i64) -> Self {
        Self { next: start, first: 0, delivered: VecDeque::new() }
    }

    /// Where to go on after a restart: everything delivered below it is finished.
    pub fn next(&self) -> i64 {
        self.next
    }

    /// How many were delivered behind the prefix, finished or not.
    pub fn span(&self) -> usize {
        self.delivered.len()
    }

    /// The time of the record that the prefix waits for.
    pub fn waits_for(&self) -> Option<DateTime<Utc>> {
        self.delivered.front()?.timestamp
    }

    pub fn deliver(&mut self, offset: i64, timestamp: Option<DateTime<Utc>>) -> Ticket {
        self.delivered.push_back(Delivered { offset, timestamp, finished: false });
        Ticket(self.first + self.delivered.len() as u64 - 1)
    }

    pub fn finish(&mut self, Ticket(number): Ticket) {
        let place = number.checked_sub(self.first).and_then(|place| usize::try_from(place).ok());
        if let Some(delivered) = place.and_then(|place| self.delivered.get_mut(place)) {
            delivered.finished = true;
        }
        while let Some(Delivered { offset, finished: true, .. }) = self.delivered.front() {
            self.next = offset + 1;
            self.first += 1;
            self.delivered.pop_front();
        }
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
            let mut tickets = Vec::new();
            let mut finished = vec![false; offsets.len()];
            for place in order {
                // Delivered only as far as needed: taking and finishing interleave.
                while tickets.len() <= place {
                    tickets.push(watermark.deliver(offsets[tickets.len()], None));
                }
                watermark.finish(tickets[place]);
                finished[place] = true;
                let prefix = finished.iter().take_while(|finished| **finished).count();
                let expected = prefix.checked_sub(1).map_or(start, |last| offsets[last] + 1);
                prop_assert_eq!(watermark.next(), expected);
                prop_assert_eq!(watermark.span(), tickets.len() - prefix);
            }
        }
    }

    #[test]
    fn a_log_that_begins_anew_is_followed_back() {
        let mut watermark = Watermark::new(500);
        let [old, first, _] = [500, 0, 1].map(|offset| watermark.deliver(offset, None));
        watermark.finish(first);
        assert_eq!(watermark.next(), 500);
        watermark.finish(old);
        assert_eq!(watermark.next(), 1);
    }
}
