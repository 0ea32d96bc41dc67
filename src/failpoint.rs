//! Places where a test may kill the process; nothing without the feature `failpoints`.

/// Names one, and at which hit of it: `OUTBOXD_FAILPOINT=name[:count]`.
#[cfg(feature = "failpoints")]
const VARIABLE: &str = "OUTBOXD_FAILPOINT";

/// Ends the process as a crash would, if this place and this hit of it are named.
#[cfg(feature = "failpoints")]
pub fn hit(name: &str) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static NAMED: LazyLock<Option<(String, u64)>> = LazyLock::new(|| {
        let named = std::env::var(VARIABLE).ok()?;
        let (name, count) = named.split_once(':').unwrap_or((&named, "1"));
        Some((name.to_owned(), count.parse().unwrap_or(1)))
    });
    static HITS: AtomicU64 = AtomicU64::new(0);

    let Some((named, count)) = &*NAMED else { return };
    if named == name && HITS.fetch_add(1, Ordering::SeqCst) + 1 == *count {
        std::process::abort();
    }
}

#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn hit(_: &str) {}
