//! The highest offsets of what was published, and how many records that was, by topic and partition.

use std::collections::HashMap;

/// Written once per acknowledged record: the partition of the record before is looked at first.
#[derive(Debug, Default)]
pub struct Offsets {
    published: Vec<Published>,
    places: HashMap<(String, i32), usize>,
    latest: usize,
}

#[derive(Debug)]
struct Published {
    topic: String,
    partition: i32,
    highest: i64,
    records: u64,
}

impl Offsets {
    /// Notes one. Of a partition the latest counts: in one made anew it may be lower.
    pub fn note(&mut self, topic: &str, partition: i32, offset: i64) {
        let is_there = |at: &Published| at.partition == partition && at.topic == topic;
        if !self.published.get(self.latest).is_some_and(is_there) {
            self.latest = *self.places.entry((topic.to_owned(), partition)).or_insert_with(|| {
                self.published.push(Published {
                    topic: topic.to_owned(),
                    partition,
                    highest: offset,
                    records: 0,
                });
                self.published.len() - 1
            });
        }
        let latest = &mut self.published[self.latest];
        latest.highest = offset;
        latest.records += 1;
    }

    /// How many records were noted, by topic; one that took turns with others comes several times.
    pub fn records(&self) -> impl Iterator<Item = (&str, u64)> {
        let of_one_topic = self.published.chunk_by(|one, next| one.topic == next.topic);
        of_one_topic.filter_map(|places| {
            let records = places.iter().map(|place| place.records).sum();
            places.first().map(|place| (place.topic.as_str(), records))
        })
    }

    /// Takes over what was published after all that is noted here.
    pub fn extend(&mut self, later: &Self) {
        for Published { topic, partition, highest, records } in &later.published {
            self.note(topic, *partition, *highest);
            self.published[self.latest].records += records - 1;
        }
    }

    /// As stored: `topic/partition` and the offset. No topic's name has a slash.
    pub fn to_json(&self) -> serde_json::Value {
        let named = self.published.iter().map(|Published { topic, partition, highest, .. }| {
            (format!("{topic}/{partition}"), serde_json::Value::from(*highest))
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
        assert_eq!(offsets.records().collect::<Vec<_>>(), [("a", 3), ("b", 2), ("a", 1)]);
        let mut later = Offsets::default();
        later.note("b", 0, 3);
        later.note("c", 0, 0);
        offsets.extend(&later);
        assert_eq!(offsets.to_json(), serde_json::json!({ "a/0": 7, "b/0": 3, "a/1": 9, "c/0": 0 }));
        assert_eq!(offsets.records().collect::<Vec<_>>(), [("a", 3), ("b", 3), ("a", 1), ("c", 1)]);
    }
}
