//! What this relay has seen confirmed of each lane, for as long as it runs: a database that went back shows by it.

use std::sync::atomic::{AtomicI64, Ordering};

use crate::domain::priority::Priority;
use crate::pg::lanes::OwnedLane;

/// The number of the last window of each lane whose write was acknowledged. Every owner only raises it.
#[derive(Debug, Default)]
pub(super) struct Confirmed([AtomicI64; Priority::ALL.len()]);

impl Confirmed {
    fn of(&self, priority: Priority) -> &AtomicI64 {
        &self.0[priority.place()]
    }

    pub(super) fn note(&self, lane: &OwnedLane) {
        self.of(lane.priority).store(lane.window, Ordering::Relaxed);
    }

    /// The lane has just been acquired. Says so if it stands before what we know of.
    pub(super) fn hold_against(&self, lane: &OwnedLane) {
        let known = self.of(lane.priority).load(Ordering::Relaxed);
        if lane.window <= known {
            tracing::warn!(
                lane = lane.priority.name(),
                window = lane.window,
                confirmed = known,
                "the cursor is behind what was confirmed: the database went back, by a fail-over to a standby that lagged \
                 or a volume that was restored. What it does not know to be published is published again; what was \
                 committed since and is gone from it may be in Kafka all the same"
            );
        }
        self.note(lane);
    }
}
