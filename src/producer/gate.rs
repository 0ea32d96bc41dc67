//! When the relay may look for what is new: always, at the firings of its job, or, while that is paused, not at all. What it
//! has begun it finishes.

use tokio::sync::watch;

#[derive(Debug)]
pub struct Gate(watch::Sender<Opening>);

#[derive(Clone, Copy, Debug)]
struct Opening {
    is_open: bool,
    /// How many firings there were: each lets every lane through until it finds nothing.
    firings: u64,
}

impl Gate {
    pub fn new(is_open: bool) -> Self {
        Self(watch::Sender::new(Opening { is_open, firings: 0 }))
    }

    pub fn open(&self, is_open: bool) {
        self.0.send_if_modified(|opening| std::mem::replace(&mut opening.is_open, is_open) != is_open);
    }

    /// A firing.
    pub fn ring(&self) {
        self.0.send_modify(|opening| opening.firings += 1);
    }

    pub(super) fn firings(&self) -> u64 {
        self.0.borrow().firings
    }

    /// For one that has seen to so many firings.
    pub(super) fn is_open(&self, seen: u64) -> bool {
        let opening = *self.0.borrow();
        opening.is_open || opening.firings > seen
    }

    /// Waits until it is.
    pub(super) async fn opens(&self, seen: u64) {
        let mut openings = self.0.subscribe();
        // The sender is ours: it is there as long as we are.
        let _ = openings.wait_for(|opening| opening.is_open || opening.firings > seen).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_firing_lets_each_through_once_and_an_open_gate_always() {
        let gate = Gate::new(false);
        assert!(!gate.is_open(0));
        gate.ring();
        gate.opens(0).await;
        assert!(gate.is_open(0) && !gate.is_open(gate.firings()));
        gate.open(true);
        gate.opens(gate.firings()).await;
        gate.open(false);
        assert!(!gate.is_open(gate.firings()));
    }
}
