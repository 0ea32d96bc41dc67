//! What a file that is read again says otherwise.

use super::is_live;
use super::job::BUILT_IN;
use super::load::Loaded;
use super::section::Entry;
use super::sources::Source;

/// The names of a table and of a key in it.
type Path = [String];

impl Loaded {
    /// The values of `new` that are live, of this one elsewhere: what is in force. For comparing only.
    #[must_use]
    pub fn keeping(&self, new: Self) -> Self {
        let waits = |entry: &&Entry| !is_live(&entry.path);
        // Of a table that waits as a whole nothing is in force.
        let in_force = |entry: &&Entry| {
            is_live(&entry.path)
                && chosen_table(&entry.path).is_none_or(|table| is_live(table) || self.has_any_in(table))
        };
        let entries = self.entries.iter().filter(waits).chain(new.entries.iter().filter(in_force));
        Self { entries: entries.cloned().collect(), ..new }
    }

    /// The keys whose values are others in `new`; secrets are not compared. A table of the operator's that only one of them
    /// has is named as a whole.
    pub fn differences(&self, new: &Self) -> Vec<Vec<String>> {
        let mut paths: Vec<&Path> = Vec::new();
        for (these, those) in [(self, new), (new, self)] {
            for entry in &these.entries {
                let path = match chosen_table(&entry.path) {
                    Some(table) if !those.has_any_in(table) => table,
                    _ if those.says_as(entry) => continue,
                    _ => &entry.path,
                };
                paths.push(path);
            }
        }
        paths.sort_unstable();
        paths.dedup();
        paths.into_iter().map(<[String]>::to_vec).collect()
    }

    fn has_any_in(&self, table: &Path) -> bool {
        self.entries.iter().any(|entry| entry.path.starts_with(table))
    }

    /// What is not there means its default.
    fn says_as(&self, other: &Entry) -> bool {
        match self.entries.iter().find(|entry| entry.path == other.path) {
            Some(entry) => entry.value == other.value,
            None => other.source == Source::Default,
        }
    }
}

/// The table that a key is in, if the operator chose its name.
fn chosen_table(path: &Path) -> Option<&Path> {
    let [table, name, _, ..] = path else { return None };
    let is_chosen = match table.as_str() {
        "groups" | "topics" => true,
        "jobs" => !BUILT_IN.contains(&name.as_str()),
        _ => false,
    };
    is_chosen.then(|| &path[..2])
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::config::load::Loaded;

    fn load(text: &str) -> Loaded {
        let text = format!("postgres.url = \"postgres://u@h/db\"\nkafka.brokers = \"b:1\"\n{text}");
        Config::parse(&text, None, []).unwrap_or_else(|error| panic!("{error}"))
    }

    fn differences(old: &Loaded, new: &Loaded) -> Vec<String> {
        old.differences(new).iter().map(|path| path.join(".")).collect()
    }

    const GROUP: &str = "[groups.g]\ntopics = [\"t\"]\nhandler.kind = \"log\"\n";
    const JOB: &str =
        "[jobs.mine]\nschedule = \"@daily\"\naction = { kind = \"sql\", statement = \"select 1\" }\n";

    #[test]
    fn only_what_is_said_otherwise_is_named_and_a_new_table_as_a_whole() {
        let old = load("");
        for (text, expected) in [
            ("", &[][..]),
            ("producer.lease = \"10s\"", &[]),
            ("producer.lease = \"20s\"\nlog.level = \"debug\"", &["log.level", "producer.lease"]),
            (GROUP, &["groups.g"]),
            (JOB, &["jobs.mine"]),
            ("[jobs.process-pending]\nschedule = \"every 5s\"", &["jobs.process-pending.schedule"]),
            ("[jobs.process-pending]\nenabled = false", &["jobs.process-pending.enabled"]),
        ] {
            let new = load(text);
            assert_eq!(differences(&old, &new), expected, "{text}");
            assert_eq!(differences(&new, &old), expected, "and back: {text}");
            assert!(differences(&new, &new).is_empty());
        }
        let more = load(&GROUP.replace("log", "exec\"\nhandler.command = [\"true\"]\nbatch = 7 #\""));
        let changed = ["groups.g.batch", "groups.g.handler.command", "groups.g.handler.kind"];
        assert!(changed.iter().all(|key| differences(&load(GROUP), &more).contains(&(*key).to_owned())));
    }

    #[test]
    fn what_waits_for_a_restart_is_named_again_at_the_next_reload_as_the_first_time() {
        let old = load("");
        let new = load(&format!("{GROUP}batch = 7\n{JOB}[agent]\nname = \"a\""));
        assert_eq!(differences(&old, &new), ["agent.name", "groups.g", "jobs.mine"]);
        assert_eq!(
            differences(&old.keeping(load(&format!("{GROUP}{JOB}"))), &new),
            ["agent.name", "groups.g"]
        );
        assert_eq!(differences(&old.keeping(new.clone()), &new), ["agent.name", "groups.g"]);
        assert_eq!(differences(&old.keeping(new), &old), ["jobs.mine"]);
    }
}
