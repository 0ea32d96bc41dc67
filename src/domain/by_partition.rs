//! What is kept for each partition of each topic.

use std::collections::HashMap;

/// Asked for each record: the partition of the record before is looked at first.
#[derive(Debug)]
pub struct ByPartition<T> {
    kept: Vec<Kept<T>>,
    places: HashMap<String, HashMap<i32, usize>>,
    latest: usize,
}

#[derive(Debug)]
pub struct Kept<T> {
    pub topic: String,
    pub partition: i32,
    pub value: T,
}

impl<T> Default for ByPartition<T> {
    fn default() -> Self {
        Self { kept: Vec::new(), places: HashMap::new(), latest: 0 }
    }
}

impl<T: Default> ByPartition<T> {
    /// That of this partition, at first by default.
    pub fn at(&mut self, topic: &str, partition: i32) -> &mut T {
        let is_there = |kept: &Kept<T>| kept.partition == partition && kept.topic == topic;
        if !self.kept.get(self.latest).is_some_and(is_there) {
            self.latest = self.place(topic, partition);
        }
        &mut self.kept[self.latest].value
    }

    fn place(&mut self, topic: &str, partition: i32) -> usize {
        if let Some(place) = self.places.get(topic).and_then(|partitions| partitions.get(&partition)) {
            return *place;
        }
        let place = self.kept.len();
        self.kept.push(Kept { topic: topic.to_owned(), partition, value: T::default() });
        self.places.entry(topic.to_owned()).or_default().insert(partition, place);
        place
    }
}

impl<T> ByPartition<T> {
    /// All of it, in the order in which it was first asked for.
    pub fn all(&self) -> &[Kept<T>] {
        &self.kept
    }
}
