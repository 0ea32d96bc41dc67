//! Which messages wait for which: those of one chain go one after the other, in the order in which they came.

use std::collections::{HashMap, VecDeque};

/// A chain is named by a hash. Two that share one wait for each other without need, and that is all.
pub type Chain = u64;

/// What waits, by chain. A chain that is known here has a member under way.
#[derive(Debug)]
pub struct Chains<T>(HashMap<Chain, VecDeque<T>>);

impl<T> Default for Chains<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> Chains<T> {
    /// Gives it back if nothing is before it: it is under way until its chain is left.
    pub fn enter(&mut self, chain: Chain, member: T) -> Option<T> {
        if let Some(waiting) = self.0.get_mut(&chain) {
            waiting.push_back(member);
            return None;
        }
        self.0.insert(chain, VecDeque::new());
        Some(member)
    }

    /// Those that wait in it, the next one first.
    pub fn waiting(&mut self, chain: Chain) -> impl Iterator<Item = &mut T> {
        self.0.get_mut(&chain).into_iter().flatten()
    }

    /// The one that was under way is not any more; the next one is.
    pub fn leave(&mut self, chain: Chain) -> Option<T> {
        let next = self.0.get_mut(&chain)?.pop_front();
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
}
