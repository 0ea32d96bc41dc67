//! Looking at the outbox: one statement for all lanes, often while there is something to do, seldom while there is not.
//!
//! What a look sees changes by a commit, and no commit leaves the snapshot as it was; or by the clock, and when is told by
//! the look before. So an idle relay asks for the snapshot alone, and looks when that has changed or the time has come.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use uuid::Uuid;

use super::{RelayStatus, SessionError, in_time};
use crate::domain::snapshot::Snapshot;
use crate::pg::lanes::{LaneStore, Poll};

/// Between two looks: while messages come, and after a while without.
const BUSY: Duration = Duration::from_millis(1);
const IDLE: Duration = Duration::from_millis(20);

/// How long after the last message the pace is kept up.
const LULL: Duration = Duration::from_millis(100);

/// However still it is: what goes by a clock of ours is done behind a look.
const LOOK_EVERY: Duration = Duration::from_secs(1);

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

    /// Asks for a look that begins after this call, and sees the rows of this owner's lane.
    pub(super) fn ask(&self, owner: Uuid, at_once: bool) -> Asking<'_> {
        self.asking().insert(owner);
        let begun = self.begun.load(Ordering::SeqCst);
        if at_once {
            self.at_once.notify_one();
        }
        Asking { outlook: self, owner, begun }
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
    pub(super) async fn keep(&self, store: &LaneStore, status: &RelayStatus) -> SessionError {
        let mut seen_at = Instant::now();
        let mut still: Option<Still> = None;
        loop {
            let is_idle = seen_at.elapsed() >= LULL;
            let is_wanted = tokio::select! {
                () = self.at_once.notified() => true,
                () = tokio::time::sleep(if is_idle { IDLE } else { BUSY }) => false,
            };
            if let Some(known) = still.take_if(|known| !is_wanted && is_idle && known.answers(&self.asking()))
            {
                match in_time(PATIENCE, store.snapshot()).await {
                    Ok(now) if now == known.snapshot => {
                        still = Some(known);
                        continue;
                    }
                    Ok(_) => {}
                    Err(error) => return error,
                }
            }
            let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
            let owners = self.asking().clone();
            let asked_at = Instant::now();
            let poll = match look(store, &owners).await {
                Ok(poll) => Arc::new(poll),
                Err(error) => return error,
            };
            status.looked(asked_at.elapsed());
            if poll.has_work() {
                seen_at = Instant::now();
            }
            let former = self.latest.send_replace((number, Some(Arc::clone(&poll)))).1;
            // Where others commit all the time, asking first would only be one more question.
            still = former
                .filter(|former| former.snapshot == poll.snapshot && !poll.has_work())
                .map(|_| Still::since(&poll, owners));
        }
    }
}

/// What the last look saw, for as long as nothing changes it.
struct Still {
    snapshot: Snapshot,
    asked_for: HashSet<Uuid>,
    until: Instant,
}

impl Still {
    fn since(poll: &Poll, asked_for: HashSet<Uuid>) -> Self {
        let lasts = poll.lanes.values().filter_map(|lane| lane.lasts).min().unwrap_or(LOOK_EVERY);
        Self { snapshot: poll.snapshot.clone(), asked_for, until: Instant::now() + lasts.min(LOOK_EVERY) }
    }

    /// It is not too old, and it told of everything that these ask for.
    fn answers(&self, asking: &HashSet<Uuid>) -> bool {
        Instant::now() < self.until && asking.is_subset(&self.asked_for)
    }
}

async fn look(store: &LaneStore, owners: &HashSet<Uuid>) -> Result<Poll, SessionError> {
    let owners: Vec<Uuid> = owners.iter().copied().collect();
    let patience = if owners.is_empty() { PATIENCE } else { LONG_PATIENCE };
    in_time(patience, store.poll(&owners)).await
}

/// Somebody waits for a look, until it is dropped.
pub(super) struct Asking<'a> {
    outlook: &'a Outlook,
    owner: Uuid,
    begun: u64,
}

impl Asking<'_> {
    /// The newest look that answers, as soon as there is one.
    pub(super) async fn answer(&self) -> Arc<Poll> {
        self.outlook.after(self.begun).await
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.outlook.asking().remove(&self.owner);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::domain::cursor::FloorCandidate;
    use crate::domain::priority::Priority;
    use crate::pg::lanes::Seen;

    fn still(lasts: Option<Duration>, asked_for: &[Uuid]) -> Still {
        let lane = Seen {
            owner: None,
            agent: None,
            is_free: false,
            wanted_by: None,
            has_rows: false,
            has_due: false,
            lasts,
        };
        let poll = Poll {
            snapshot: Snapshot::nothing(),
            candidate: FloorCandidate { last_seq: 0, next_xid: 3 },
            lanes: HashMap::from([(Priority::Normal, lane)]),
        };
        Still::since(&poll, asked_for.iter().copied().collect())
    }

    #[test]
    fn a_look_answers_only_those_it_looked_for_and_only_until_the_clock_changes_something() {
        let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
        let answers = |still: &Still, asking: &[Uuid]| still.answers(&asking.iter().copied().collect());
        let known = still(None, &[one]);
        assert!(answers(&known, &[one]) && answers(&known, &[]));
        assert!(!answers(&known, &[one, other]));
        assert!(known.until <= Instant::now() + LOOK_EVERY);
        let due_soon = still(Some(Duration::from_millis(300)), &[one]);
        assert!(due_soon.until <= Instant::now() + Duration::from_millis(300));
        assert!(!answers(&still(Some(Duration::ZERO), &[one]), &[one]));
    }
}
