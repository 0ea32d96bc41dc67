//! The places of a group's handlers at this agent. Fresh messages and retries stand in one line for them, each side with
//! one of its own at a time: where both are waited for they take turns, so that neither starves the other. Who has a place
//! is in the company of all others in the process, and has none while somebody must be alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, OwnedSemaphorePermit, RwLock, Semaphore};

/// Of a process, for all of its groups: whether handlers run side by side, or one of them alone.
#[derive(Clone, Debug, Default)]
pub struct Solitude(Arc<RwLock<()>>);

/// No other handler of the process runs, until this is dropped.
#[derive(Debug)]
pub(super) struct Alone {
    _all: OwnedRwLockWriteGuard<()>,
}

/// Free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    _company: Option<OwnedRwLockReadGuard<()>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Place {
    /// For who is alone.
    pub(super) fn of(_: &Alone) -> Self {
        Self { _company: None, _permit: None }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Places {
    count: Arc<AtomicUsize>,
    free: Arc<Semaphore>,
    solitude: Solitude,
}

impl Places {
    pub(super) fn new(count: usize, solitude: Solitude) -> Self {
        Self { count: Arc::new(AtomicUsize::new(count)), free: Arc::new(Semaphore::new(count)), solitude }
    }

    /// When what runs in the process has come to its end; nothing else starts meanwhile.
    pub(super) async fn alone(&self) -> Alone {
        Alone { _all: Arc::clone(&self.solitude.0).write_owned().await }
    }

    /// All of them.
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// So many from now on; those that are too many go as they become free.
    pub(super) fn resize(&self, count: usize) {
        let former = self.count.swap(count, Ordering::SeqCst);
        self.free.add_permits(count.saturating_sub(former));
        let too_many = u32::try_from(former.saturating_sub(count)).unwrap_or(u32::MAX);
        if too_many > 0 {
            let free = Arc::clone(&self.free);
            tokio::spawn(async move {
                // It is never closed.
                if let Ok(permits) = free.acquire_many_owned(too_many).await {
                    permits.forget();
                }
            });
        }
    }

    pub(super) fn taken(&self) -> usize {
        self.count().saturating_sub(self.free.available_permits())
    }

    /// One that is free, if nobody stands in line.
    pub(super) fn try_take(&self) -> Option<Place> {
        let company = Arc::clone(&self.solitude.0).try_read_owned().ok()?;
        let permit = Arc::clone(&self.free).try_acquire_owned().ok()?;
        Some(Place { _company: Some(company), _permit: Some(permit) })
    }

    /// The next one; dropped, it leaves the line.
    pub(super) fn take(&self) -> impl Future<Output = Place> + Send + 'static {
        let (free, solitude) = (Arc::clone(&self.free), self.solitude.clone());
        async move {
            // In this order: whoever waits to be alone then waits for nobody who waits for a place.
            let company = solitude.0.read_owned().await;
            // It is never closed.
            Place { _company: Some(company), _permit: free.acquire_owned().await.ok() }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn there_are_more_at_once_and_fewer_as_they_become_free() {
        let places = Places::new(1, Solitude::default());
        let first = places.try_take();
        places.resize(3);
        let (second, third) = (places.try_take(), places.try_take());
        assert!(first.is_some() && second.is_some() && third.is_some() && places.try_take().is_none());
        places.resize(1);
        drop((first, second));
        tokio::task::yield_now().await;
        assert!(places.try_take().is_none() && places.taken() >= 1);
        drop(third);
        tokio::task::yield_now().await;
        let last = places.try_take();
        assert!(last.is_some() && places.try_take().is_none());
    }

    #[tokio::test]
    async fn both_sides_take_turns() {
        let places = Places::new(1, Solitude::default());
        let first = places.try_take();
        let mut other_side = Box::pin(places.take());
        assert!((&mut other_side).now_or_never().is_none());
        drop(first);
        assert!(places.try_take().is_none(), "it goes to who stands in line");
        let second = (&mut other_side).now_or_never();
        assert_eq!(places.taken(), 1);
        drop(second);
        assert!(places.try_take().is_some());
    }

    #[tokio::test]
    async fn who_is_alone_waits_for_all_groups_of_the_process_and_all_others_wait_for_it() {
        let solitude = Solitude::default();
        let (one, other) = (Places::new(4, solitude.clone()), Places::new(4, solitude));
        let running = other.try_take();
        let mut waits = Box::pin(one.alone());
        assert!((&mut waits).now_or_never().is_none());
        assert!(other.try_take().is_none() && one.try_take().is_none(), "nothing more starts");
        let mut in_line = Box::pin(other.take());
        assert!((&mut in_line).now_or_never().is_none());
        drop(running);
        let alone = waits.now_or_never();
        assert!(alone.is_some() && other.try_take().is_none() && (&mut in_line).now_or_never().is_none());
        drop(alone);
        assert!((&mut in_line).now_or_never().is_some());
    }
}
