//! What of a configuration changes in a daemon that runs; the rest waits for a restart.

use super::job::PROCESS_PENDING;
use super::{Config, Group};

/// Does this key take effect without a restart?
pub fn is_live(path: &[String]) -> bool {
    const OF_GROUPS: [&str; 4] = ["batch", "concurrency", "rate", "retry"];
    let parts: Vec<&str> = path.iter().map(String::as_str).collect();
    match parts[..] {
        // A relay that is switched off is not there.
        ["jobs", PROCESS_PENDING, "enabled"] => false,
        ["jobs" | "log" | "retention", ..] => true,
        ["groups", _, part, ..] => OF_GROUPS.contains(&part),
        _ => false,
    }
}

impl Config {
    /// This one, with what of `new` takes effect without a restart.
    #[must_use]
    pub fn with_live(&self, new: &Self) -> Self {
        let mut live = Self {
            log: new.log.clone(),
            retention: new.retention.clone(),
            jobs: new.jobs.clone(),
            ..self.clone()
        };
        match (self.jobs.get(PROCESS_PENDING), live.jobs.get_mut(PROCESS_PENDING)) {
            (old, Some(relay)) => relay.enabled = old.is_none_or(|old| old.enabled),
            (Some(old), None) if !old.enabled => drop(live.jobs.insert(PROCESS_PENDING.into(), old.clone())),
            (_, None) => {}
        }
        for (name, group) in &new.groups {
            // One that is new is not consumed here, but it has policies.
            let old = self.groups.get(name).unwrap_or(group);
            live.groups.insert(name.clone(), old.with_live(group));
        }
        live
    }
}

impl Group {
    /// What it stands on stays: only limits and policies are taken over.
    #[must_use]
    pub fn with_live(&self, new: &Self) -> Self {
        let Self { batch, concurrency, retry, rate, .. } = *new;
        Self { batch, concurrency, retry, rate, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        let text = format!("[postgres]\nurl = \"postgres://u@h/db\"\n{text}");
        Config::parse(&text, None, []).unwrap_or_else(|error| panic!("{error}")).config
    }

    #[test]
    fn what_a_process_stands_on_waits_for_a_restart() {
        let is_live = |key: &str| is_live(&key.split('.').map(str::to_owned).collect::<Vec<_>>());
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
            "jobs.process-pending.enabled",
        ] {
            assert!(!is_live(fixed), "{fixed}");
        }
    }

    #[test]
    fn limits_and_policies_are_taken_over_and_nothing_else_of_a_group() {
        let group = "[groups.\"a.b\"]\nhandler.kind = \"log\"\n";
        let old = config(&format!("{group}topics = [\"old\"]\n"));
        let new = format!(
            "{group}topics = [\"new\"]\nbatch = 7\nconcurrency = 3\nrate = \"5/s\"\nretry.max_attempts = 2"
        );
        let live = old.with_live(&config(&format!("{new}\n[log]\nlevel = \"debug\"\n[agent]\nname = \"x\"")));
        let group = &live.groups["a.b"];
        assert_eq!((group.batch, group.concurrency, group.retry.max_attempts), (7, 3, 2));
        assert!(group.rate.is_some() && group.topics == ["old"] && live.agent.name.is_none());
        assert_eq!(live.log.level.map(|level| level.to_string()).as_deref(), Some("debug"));
    }

    #[test]
    fn the_relay_is_switched_on_and_off_by_a_restart_only() {
        let off = config("[jobs.process-pending]\nenabled = false");
        let on = config("[jobs.process-pending]\nschedule = \"every 5s\"");
        let is_on = |config: &Config| config.jobs.get(PROCESS_PENDING).is_none_or(|job| job.enabled);
        assert!(!is_on(&off.with_live(&on)) && !is_on(&off.with_live(&config(""))));
        assert!(is_on(&on.with_live(&off)) && is_on(&config("").with_live(&off)));
    }
}
