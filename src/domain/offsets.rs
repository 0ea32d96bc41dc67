//! The highest offsets of what was published, and how many records that was, by topic and partition.

use super::by_partition::ByPartition;

/// Written once per acknowledged record.
#[derive(Debug, Default)]
pub struct Offsets(ByPartition<Published>);

#[derive(Debug, Default)]
struct Published {
    highest: i64,
    records: u64,
}

impl Offsets {
    /// Notes one. Of a partition the latest counts: in one made anew it may be lower.
    pub fn note(&mut self, topic: &str, partition: i32, offset: i64) {
        let published = self.0.at(topic, partition);
        published.highest = offset;
        published.records += 1;
    }

    /// How many records were noted, by topic.
    pub fn records(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.by_topic().map(|(topic, partitions)| (topic, partitions.map(|(_, value)| value.records).sum()))
    }

    /// Takes over what was published after all that is noted here.
    pub fn extend(&mut self, later: &Self) {
        for (topic, partition, Published { highest, records }) in later.0.all() {
            let published = self.0.at(topic, partition);
            published.highest = *highest;
            published.records += records;
        }
    }

    /// As stored: `topic/partition` and the offset. No topic's name has a slash.
    pub fn to_json(&self) -> serde_json::Value {
        let named = self.0.all().map(|(topic, partition, value)| {
            (format!("{topic}/{partition}"), serde_json::Value::from(value.highest))
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
        assert_eq!(offsets.records().collect::<Vec<_>>(), [("a", 4), ("b", 2)]);
        let mut later = Offsets::default();
        later.note("b", 0, 3);
        later.note("c", 0, 0);
        offsets.extend(&later);
        assert_eq!(offsets.to_json(), serde_json::json!({ "a/0": 7, "b/0": 3, "a/1": 9, "c/0": 0 }));
        assert_eq!(offsets.records().collect::<Vec<_>>(), [("a", 4), ("b", 3), ("c", 1)]);
    }
}
