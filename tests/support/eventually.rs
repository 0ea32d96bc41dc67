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
