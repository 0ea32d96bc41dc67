//! Which messages wait for which: those of one chain go one after the other, in the order in which they came.

use std::collections::{HashMap, VecDeque};

/// A chain is named by a hash. Two that share one wait for each other without need, and that is all.
pub type Chain = u64;

/// What waits, by chain. A chain that is known here has a member under way.
#[derive(Debug)]
pub struct Chains<T>(HashMap<Chain, Members<T>>);

#[derive(Debug)]
struct Members<T> {
    /// Under way, besides the first.
    others: usize,
    waiting: VecDeque<T>,
}

impl<T> Default for Chains<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> Chains<T> {
    /// Gives it back if nothing is before it: it is under way until its chain is left.
    pub fn enter(&mut self, chain: Chain, member: T) -> Option<T> {
        if let Some(members) = self.0.get_mut(&chain) {
            members.waiting.push_back(member);
            return None;
        }
        self.0.insert(chain, Members { others: 0, waiting: VecDeque::new() });
        Some(member)
    }

    /// Those that wait in it, the next one first.
    pub fn waiting(&mut self, chain: Chain) -> impl Iterator<Item = &mut T> {
        self.0.get_mut(&chain).into_iter().flat_map(|members| &mut members.waiting)
    }

    /// Takes the next one along, if it may go together with those that are under way.
    pub fn take_along(&mut self, chain: Chain, may_go: impl FnOnce(&mut T) -> bool) -> Option<T> {
        let members = self.0.get_mut(&chain)?;
        may_go(members.waiting.front_mut()?).then_some(())?;
        let next = members.waiting.pop_front()?;
        members.others += 1;
        Some(next)
    }

    /// One that was taken along waits for its turn again. The last one is put back first.
    pub fn put_back(&mut self, chain: Chain, member: T) {
        if let Some(members) = self.0.get_mut(&chain) {
            members.others = members.others.saturating_sub(1);
            members.waiting.push_front(member);
        }
    }

    /// One that was under way is not any more; after the last of them the next one is.
    pub fn leave(&mut self, chain: Chain) -> Option<T> {
        let members = self.0.get_mut(&chain)?;
        if members.others > 0 {
            members.others -= 1;
            return None;
        }
        let next = members.waiting.pop_front();
        if next.is_none() {
            self.0.remove(&chain);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_goes_one_by_one_in_order_and_no_other_waits_for_it() {
        let mut chains = Chains::default();
        assert_eq!(chains.enter(1, "a"), Some("a"));
        assert_eq!(chains.enter(1, "b"), None);
        assert_eq!(chains.enter(1, "c"), None);
        assert_eq!(chains.enter(2, "x"), Some("x"));
        assert_eq!(chains.waiting(1).collect::<Vec<_>>(), [&"b", &"c"]);
        assert_eq!(chains.leave(1), Some("b"));
        assert_eq!(chains.enter(1, "d"), None);
        assert_eq!((chains.leave(1), chains.leave(1), chains.leave(1)), (Some("c"), Some("d"), None));
        assert_eq!(chains.enter(1, "e"), Some("e"));
    }

    #[test]
    fn those_that_are_taken_along_leave_before_the_next_one_starts() {
        let mut chains = Chains::default();
        assert_eq!(chains.enter(1, "a"), Some("a"));
        for member in ["b", "c", "d", "e"] {
            assert_eq!(chains.enter(1, member), None);
        }
        assert_eq!(chains.take_along(1, |next| *next == "c"), None, "in order");
        assert_eq!(chains.take_along(1, |next| *next == "b"), Some("b"));
        assert_eq!(chains.take_along(1, |_| true), Some("c"));
        assert_eq!(chains.take_along(1, |_| true), Some("d"));
        chains.put_back(1, "d");
        chains.put_back(1, "c");
        assert_eq!(chains.leave(1), None, "`b` is still under way");
        assert_eq!(chains.leave(1), Some("c"));
        assert_eq!((chains.leave(1), chains.leave(1), chains.leave(1)), (Some("d"), Some("e"), None));
        assert_eq!(chains.enter(1, "f"), Some("f"));
    }
}
