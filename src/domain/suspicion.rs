//! Messages that may have killed the process which had them, and how the one that did is found: they start in groups that
//! grow smaller with every death, each start counted before it. The last start before one is given up is its own alone, so
//! that no neighbour in its group is blamed.

/// How many start together that have been under way so often when their process died.
const SIZES: &[usize] = &[500, 32, 4];

/// The same by how many starts are left, from the last one on.
const LAST_SIZES: &[usize] = &[1, 4, 32];

/// It has had its starts, the last of them alone.
pub fn is_culprit(starts: u32, max_starts: u32) -> bool {
    starts >= max_starts
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

    /// Says whether one with so many starts has a place in it, and gives it that.
    pub fn admit(&mut self, starts: u32) -> bool {
        let limit = self.limit.min(largest(starts, self.max_starts));
        let has_place = self.size < limit;
        if has_place {
            self.limit = limit;
            self.size += 1;
        }
        has_place
    }
}

fn largest(starts: u32, max_starts: u32) -> usize {
    let size = |sizes: &[usize], place: u32| sizes.get(usize::try_from(place).unwrap_or(usize::MAX)).copied();
    let last = max_starts.saturating_sub(starts).saturating_sub(1);
    size(SIZES, starts).unwrap_or(1).min(size(LAST_SIZES, last).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    /// Starts all of these until each is done or given up; the process dies when a deadly one starts. Returns those given
    /// up, and the deaths.
    fn find(count: u32, deadly: &BTreeSet<u32>, max_starts: u32) -> (BTreeSet<u32>, u32) {
        let mut starts: BTreeMap<u32, u32> = (0..count).map(|id| (id, 0)).collect();
        let (mut given_up, mut deaths) = (BTreeSet::new(), 0);
        while !starts.is_empty() {
            let culprits = starts.iter().filter(|(_, starts)| is_culprit(**starts, max_starts));
            given_up.extend(culprits.map(|(id, _)| *id));
            starts.retain(|id, _| !given_up.contains(id));
            let mut lineup = Lineup::new(max_starts);
            let together: Vec<u32> =
                starts.iter().take_while(|(_, starts)| lineup.admit(**starts)).map(|(id, _)| *id).collect();
            for id in &together {
                *starts.get_mut(id).unwrap() += 1;
            }
            if together.iter().any(|id| deadly.contains(id)) {
                deaths += 1;
            } else {
                starts.retain(|id, _| !together.contains(id));
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
            let (given_up, deaths) = find(count, &deadly, max_starts);
            prop_assert_eq!(&given_up, &deadly);
            prop_assert!(deaths <= max_starts * u32::try_from(deadly.len()).unwrap());
        }
    }

    #[test]
    fn the_groups_grow_smaller_and_the_last_starts_are_alone() {
        let sizes =
            |max_starts| (0..max_starts).map(|starts| largest(starts, max_starts)).collect::<Vec<_>>();
        assert_eq!(sizes(5), [500, 32, 4, 1, 1]);
        assert_eq!(sizes(4), [500, 32, 4, 1]);
        assert_eq!(sizes(2), [4, 1]);
        assert_eq!(sizes(1), [1]);
    }

    #[test]
    fn one_that_is_under_suspicion_for_long_has_few_beside_it() {
        let mut lineup = Lineup::new(5);
        assert!([0, 0, 2].iter().all(|starts| lineup.admit(*starts)));
        assert!(!lineup.admit(3), "alone");
        assert!(lineup.admit(0));
        assert!(!lineup.admit(0), "four are enough for the third of them");
    }
}
