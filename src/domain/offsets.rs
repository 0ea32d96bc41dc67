//! The highest offsets of what was published, by topic and partition.

use std::collections::HashMap;

/// Written once per acknowledged record: the partition of the record before is looked at first.
#[derive(Debug, Default)]
pub struct Offsets {
    highest: Vec<(String, i32, i64)>,
    places: HashMap<(String, i32), usize>,
    latest: usize,
}

impl Offsets {
    /// Notes one. Of a partition the latest counts: in one made anew it may be lower.
    pub fn note(&mut self, topic: &str, partition: i32, offset: i64) {
        let is_there = |(of, number, _): &(String, i32, i64)| *number == partition && of == topic;
        if !self.highest.get(self.latest).is_some_and(is_there) {
            self.latest = *self.places.entry((topic.to_owned(), partition)).or_insert_with(|| {
                self.highest.push((topic.to_owned(), partition, offset));
                self.highest.len() - 1
            });
        }
        self.highest[self.latest].2 = offset;
    }

    /// Takes over what was published after all that is noted here.
    pub fn extend(&mut self, later: &Self) {
        for (topic, partition, offset) in &later.highest {
            self.note(topic, *partition, *offset);
        }
    }

    /// As stored: `topic/partition` and the offset. No topic's name has a slash.
    pub fn to_json(&self) -> serde_json::Value {
        let named = self.highest.iter().map(|(topic, partition, offset)| {
            (format!("{topic}/{partition}"), serde_json::Value::from(*offset))
        });
        serde_json::Value::Object(named.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_partition_keeps_its_latest() {
        let mut offsets = Offsets::default();
        for (topic, partition, offset) in
            [("a", 0, 5), ("a", 0, 6), ("b", 0, 1), ("a", 1, 9), ("a", 0, 7), ("b", 0, 2)]
        {
            offsets.note(topic, partition, offset);
        }
        assert_eq!(offsets.to_json(), serde_json::json!({ "a/0": 7, "b/0": 2, "a/1": 9 }));
        let mut later = Offsets::default();
        later.note("b", 0, 3);
        later.note("c", 0, 0);
        offsets.extend(&later);
        assert_eq!(offsets.to_json(), serde_json::json!({ "a/0": 7, "b/0": 3, "a/1": 9, "c/0": 0 }));
    }
}
