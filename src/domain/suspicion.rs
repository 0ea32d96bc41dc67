//! Messages that may have killed the process which had them, and how the one that did is found: they start in groups that
//! grow smaller with every death, each start counted before it. In its last start before one is given up no other message
//! runs in the process, of whatever group, so that nobody is blamed for another.

/// How many start together that have been under way so often when their process died.
const SIZES: &[usize] = &[500, 32, 4];

/// The same by how many starts are left, from the last one on.
const LAST_SIZES: &[usize] = &[1, 4, 32];

/// What a message is suspected on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Suspicion {
    /// That were counted.
    pub starts: u32,
    /// In the last of them.
    pub was_alone: bool,
}

impl Suspicion {
    /// It has had its starts, the last of them alone. So many may be fewer than they once were.
    pub fn is_proven(self, max_starts: u32) -> bool {
        self.was_alone && self.starts >= max_starts
    }

    /// Its next start proves it, or clears it: it has to be alone.
    pub fn is_last(self, max_starts: u32) -> bool {
        self.starts + 1 >= max_starts
    }
}

/// Suspects that start together.
#[derive(Debug)]
pub struct Lineup {
    max_starts: u32,
    size: usize,
    limit: usize,
}

impl Lineup {
    pub fn new(max_starts: u32) -> Self {
        Self { max_starts, size: 0, limit: usize::MAX }
    }

    /// Says whether one that is suspected on that has a place in it, and gives it that.
    pub fn admit(&mut self, suspicion: Suspicion) -> bool {
        let limit = self.limit.min(largest(suspicion, self.max_starts));
        let has_place = self.size < limit;
        if has_place {
            self.limit = limit;
            self.size += 1;
        }
        has_place
    }
}

fn largest(suspicion: Suspicion, max_starts: u32) -> usize {
    if suspicion.is_last(max_starts) {
        return 1;
    }
    let size = |sizes: &[usize], place: u32| sizes.get(usize::try_from(place).unwrap_or(usize::MAX)).copied();
    let last = max_starts - suspicion.starts - 1;
    size(SIZES, suspicion.starts).unwrap_or(1).min(size(LAST_SIZES, last).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    /// Starts all of these until each is done or given up; the process dies when a deadly one starts, and when another
    /// group kills it: each time that it may start one, as long as `others` says so. After the fifth life so many starts are
    /// the most from then on. Returns those given up, and the deaths.
    fn find(
        count: u32,
        deadly: &BTreeSet<u32>,
        (mut max_starts, later): (u32, u32),
        mut others: impl Iterator<Item = bool>,
    ) -> (BTreeSet<u32>, u32) {
        let mut suspects: BTreeMap<u32, Suspicion> =
            (0..count).map(|id| (id, Suspicion::default())).collect();
        let (mut given_up, mut deaths) = (BTreeSet::new(), 0);
        while !suspects.is_empty() {
            let proven = suspects.iter().filter(|(_, suspicion)| suspicion.is_proven(max_starts));
            given_up.extend(proven.map(|(id, _)| *id));
            suspects.retain(|id, _| !given_up.contains(id));
            let mut lineup = Lineup::new(max_starts);
            let together: Vec<u32> = suspects
                .iter()
                .take_while(|(_, suspicion)| lineup.admit(**suspicion))
                .map(|(id, _)| *id)
                .collect();
            let is_alone = together.iter().any(|id| suspects[id].is_last(max_starts));
            assert!(!is_alone || together.len() == 1);
            for id in &together {
                let suspicion = suspects.get_mut(id).unwrap();
                *suspicion = Suspicion { starts: suspicion.starts + 1, was_alone: is_alone };
            }
            let is_killed = !is_alone && others.next().unwrap_or(false);
            if is_killed || together.iter().any(|id| deadly.contains(id)) {
                deaths += 1;
                if deaths == 5 {
                    max_starts = later;
                }
            } else {
                suspects.retain(|id, _| !together.contains(id));
            }
        }
        (given_up, deaths)
    }

    proptest! {
        #[test]
        fn those_that_kill_are_given_up_and_no_others(
            count in 1..1_200u32, deadly in prop::collection::btree_set(0..1_200u32, 0..4), max_starts in 1..9u32
        ) {
            let deadly: BTreeSet<u32> = deadly.into_iter().filter(|id| *id < count).collect();
            let (given_up, deaths) = find(count, &deadly, (max_starts, max_starts), std::iter::empty());
            prop_assert_eq!(&given_up, &deadly);
            prop_assert!(deaths <= max_starts * u32::try_from(deadly.len()).unwrap());
        }

        #[test]
        fn nobody_is_blamed_for_another_group_nor_because_fewer_starts_are_given(
            count in 1..600u32, deadly in prop::collection::btree_set(0..600u32, 0..3),
            max_starts in (1..9u32, 1..9u32), others in prop::collection::vec(any::<bool>(), 0..40)
        ) {
            let deadly: BTreeSet<u32> = deadly.into_iter().filter(|id| *id < count).collect();
            prop_assert_eq!(find(count, &deadly, max_starts, others.into_iter()).0, deadly);
        }
    }

    fn after(starts: u32) -> Suspicion {
        Suspicion { starts, was_alone: false }
    }

    #[test]
    fn the_groups_grow_smaller_and_the_last_starts_are_alone() {
        let sizes =
            |max_starts| (0..max_starts).map(|starts| largest(after(starts), max_starts)).collect::<Vec<_>>();
        assert_eq!(sizes(5), [500, 32, 4, 1, 1]);
        assert_eq!(sizes(4), [500, 32, 4, 1]);
        assert_eq!(sizes(2), [4, 1]);
        assert_eq!(sizes(1), [1]);
    }

    #[test]
    fn one_that_is_under_suspicion_for_long_has_few_beside_it() {
        let mut lineup = Lineup::new(5);
        assert!([0, 0, 2].into_iter().all(|starts| lineup.admit(after(starts))));
        assert!(!lineup.admit(after(3)), "alone");
        assert!(lineup.admit(after(0)));
        assert!(!lineup.admit(after(0)), "four are enough for the third of them");
    }
}
