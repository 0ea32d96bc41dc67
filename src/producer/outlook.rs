//! Looking at the outbox: one statement for all lanes, often while there is something to do, seldom while there is not.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use uuid::Uuid;

use super::{SessionError, in_time};
use crate::pg::lanes::{LaneStore, Poll};

/// Between two looks: while messages come, and after a while without.
const BUSY: Duration = Duration::from_millis(1);
const IDLE: Duration = Duration::from_millis(20);

/// How long after the last message the pace is kept up.
const LULL: Duration = Duration::from_millis(100);

/// A database that takes longer to answer is taken for gone: without a lane, and with one, whose rows may be many.
const PATIENCE: Duration = Duration::from_secs(10);
const LONG_PATIENCE: Duration = Duration::from_secs(60);

/// The newest look, and who waits for the next.
#[derive(Default)]
pub(super) struct Outlook {
    begun: AtomicU64,
    latest: watch::Sender<(u64, Option<Arc<Poll>>)>,
    asking: Mutex<HashSet<Uuid>>,
    at_once: Notify,
}

impl Outlook {
    fn asking(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A look that begins after this call, and sees the rows of this owner's lane.
    pub(super) async fn next(&self, owner: Uuid, at_once: bool) -> Arc<Poll> {
        self.asking().insert(owner);
        let _asking = Asking(self, owner);
        let begun = self.begun.load(Ordering::SeqCst);
        if at_once {
            self.at_once.notify_one();
        }
        self.after(begun).await
    }

    /// The first look that begins after the one of that number.
    async fn after(&self, begun: u64) -> Arc<Poll> {
        let mut latest = self.latest.subscribe();
        loop {
            if let (number, Some(poll)) = &*latest.borrow_and_update()
                && *number > begun
            {
                return Arc::clone(poll);
            }
            // The sender is ours: it is there as long as we are.
            let _ = latest.changed().await;
        }
    }

    /// Every look, for those who care for owners and not for rows.
    pub(super) fn subscribe(&self) -> watch::Receiver<(u64, Option<Arc<Poll>>)> {
        self.latest.subscribe()
    }

    /// Looks until the database fails.
    pub(super) async fn keep(&self, store: &LaneStore) -> SessionError {
        let mut seen_at = Instant::now();
        loop {
            let rest = if seen_at.elapsed() < LULL { BUSY } else { IDLE };
            tokio::select! {
                () = self.at_once.notified() => {}
                () = tokio::time::sleep(rest) => {}
            }
            let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
            let owners: Vec<Uuid> = self.asking().iter().copied().collect();
            let poll = match look(store, &owners).await {
                Ok(poll) => poll,
                Err(error) => return error,
            };
            if poll.lanes.values().any(|lane| lane.has_rows || lane.has_due) {
                seen_at = Instant::now();
            }
            self.latest.send_replace((number, Some(Arc::new(poll))));
        }
    }
}

async fn look(store: &LaneStore, owners: &[Uuid]) -> Result<Poll, SessionError> {
    let patience = if owners.is_empty() { PATIENCE } else { LONG_PATIENCE };
    in_time(patience, store.poll(owners)).await
}

/// Somebody waits, until it is dropped.
struct Asking<'a>(&'a Outlook, Uuid);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.asking().remove(&self.1);
    }
}
