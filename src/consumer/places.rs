//! The places of a group's handlers at this agent. Fresh messages and retries stand in one line for them, each side with
//! one of its own at a time: where both are waited for they take turns, so that neither starves the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    _permit: Option<OwnedSemaphorePermit>,
}

#[derive(Clone, Debug)]
pub(super) struct Places {
    count: Arc<AtomicUsize>,
    free: Arc<Semaphore>,
}

impl Places {
    pub(super) fn new(count: usize) -> Self {
        Self { count: Arc::new(AtomicUsize::new(count)), free: Arc::new(Semaphore::new(count)) }
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
        Arc::clone(&self.free).try_acquire_owned().ok().map(|permit| Place { _permit: Some(permit) })
    }

    /// The next one; dropped, it leaves the line.
    pub(super) fn take(&self) -> impl Future<Output = Place> + Send + 'static {
        let free = Arc::clone(&self.free);
        // It is never closed.
        async move { Place { _permit: free.acquire_owned().await.ok() } }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn there_are_more_at_once_and_fewer_as_they_become_free() {
        let places = Places::new(1);
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
        let places = Places::new(1);
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
}
