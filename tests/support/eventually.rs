//! Waiting on a condition: the one place where a test sleeps.

use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(20);

/// Waits until the condition holds; panics after `timeout`, naming `what` was waited for.
pub async fn eventually(what: &str, timeout: Duration, mut condition: impl AsyncFnMut() -> bool) {
    eventually_some(what, timeout, async || condition().await.then_some(())).await;
}

/// Waits until there is a value; panics after `timeout`, naming `what` was waited for.
pub async fn eventually_some<T>(
    what: &str,
    timeout: Duration,
    mut attempt: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(value) = attempt().await {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {timeout:?}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits until nothing is left, for as long as it goes on: panics once `left` has stood still for `patience`, with what
/// `why` tells. A look that fails is none.
pub async fn until_none_is_left(
    what: &str,
    patience: Duration,
    mut left: impl AsyncFnMut() -> Option<i64>,
    why: impl AsyncFnOnce() -> String,
) {
    let (mut before, mut moved_at) = (None, Instant::now());
    loop {
        let now = left().await;
        if now == Some(0) {
            return;
        }
        if now.is_some() && now != before {
            (before, moved_at) = (now, Instant::now());
        }
        let is_over = moved_at.elapsed() > patience;
        assert!(!is_over, "{what}: {before:?} are left, and none was done for {patience:?}\n{}", why().await);
        tokio::time::sleep(PAUSE).await;
    }
}
