//! Waiting for what comes back by itself, and saying so once in a while.

use std::time::{Duration, Instant};

use super::status::GroupStatus;
use crate::domain::backoff::Backoff;

/// Between two tries; someone who watches should not wait long for what has come back.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(100), max: Duration::from_secs(2) };

/// How often a wait that goes on is told.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// One wait, over all its tries.
pub(super) struct Wait<'a> {
    group: &'a str,
    status: &'a GroupStatus,
    /// Who waits: the reasons of several stand side by side.
    who: &'static str,
    failures: u32,
    told: Option<(Instant, String)>,
}

impl<'a> Wait<'a> {
    pub(super) fn new(group: &'a str, status: &'a GroupStatus, who: &'static str) -> Self {
        Self { group, status, who, failures: 0, told: None }
    }

    /// Lets some time pass before the next try.
    pub(super) async fn pause(&mut self, reason: &str) {
        self.failures += 1;
        self.status.wait_for(self.who, reason);
        if self.told.as_ref().is_none_or(|(at, what)| what != reason || at.elapsed() >= TELL_EVERY) {
            tracing::warn!(group = self.group, "waiting: {reason}");
            self.told = Some((Instant::now(), reason.to_owned()));
        }
        // Half of it for certain: a try is a load on what is just coming back.
        let draw = 0.5 + fastrand::f64() / 2.0;
        tokio::time::sleep(BACKOFF.delay(self.failures, draw)).await;
    }

    /// It is over.
    pub(super) fn end(self) {
        if self.failures > 0 {
            self.status.go_on(self.who);
        }
        if self.told.is_some() {
            tracing::info!(group = self.group, "the wait is over");
        }
    }
}
