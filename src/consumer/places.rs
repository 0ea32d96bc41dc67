//! The places of a group's handlers at this agent. Fresh messages and retries stand in one line for them, each side with
//! one of its own at a time: where both are waited for they take turns, so that neither starves the other.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    _permit: Option<OwnedSemaphorePermit>,
}

#[derive(Clone, Debug)]
pub(super) struct Places {
    count: usize,
    free: Arc<Semaphore>,
}

impl Places {
    pub(super) fn new(count: usize) -> Self {
        Self { count, free: Arc::new(Semaphore::new(count)) }
    }

    /// All of them.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn taken(&self) -> usize {
        self.count.saturating_sub(self.free.available_permits())
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
