//! What a reload changes, and what waits for a restart.

/// Keys that take effect without a restart.
pub fn is_live(key: &str) -> bool {
    const LIVE: [&str; 4] = ["batch", "concurrency", "rate", "retry"];
    let mut parts = key.split('.');
    match (parts.next(), parts.nth(1)) {
        (Some("jobs" | "retention"), _) => true,
        (Some("groups"), Some(part)) => LIVE.contains(&part),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_stands_on_waits_for_a_restart() {
        for live in [
            "jobs.cleanup.schedule",
            "retention.published",
            "groups.orders.retry.max_attempts",
            "groups.a.rate",
        ] {
            assert!(is_live(live), "{live}");
        }
        for fixed in [
            "postgres.url",
            "groups.orders.topics",
            "groups.orders.handler.url",
            "agent.name",
            "topics.a.create",
        ] {
            assert!(!is_live(fixed), "{fixed}");
        }
    }
}
