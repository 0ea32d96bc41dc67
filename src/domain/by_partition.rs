//! What is kept for each partition of each topic.

use std::collections::HashMap;

/// Asked for each record: the topic of the record before is looked at first, and partitions are found by their number.
#[derive(Debug)]
pub struct ByPartition<T> {
    topics: Vec<Topic<T>>,
    places: HashMap<String, usize>,
    latest: usize,
}

#[derive(Debug)]
struct Topic<T> {
    name: String,
    partitions: Vec<Option<T>>,
}

impl<T> Topic<T> {
    fn all(&self) -> impl Iterator<Item = (i32, &T)> {
        (0..).zip(&self.partitions).filter_map(|(partition, value)| Some((partition, value.as_ref()?)))
    }
}

impl<T> Default for ByPartition<T> {
    fn default() -> Self {
        Self { topics: Vec::new(), places: HashMap::new(), latest: 0 }
    }
}

impl<T: Default> ByPartition<T> {
    /// That of this partition, at first by default. Partitions are numbered from 0.
    pub fn at(&mut self, topic: &str, partition: i32) -> &mut T {
        if self.topics.get(self.latest).is_none_or(|latest| latest.name != topic) {
            self.latest = self.place(topic);
        }
        let partitions = &mut self.topics[self.latest].partitions;
        let place = usize::try_from(partition).unwrap_or_default();
        if place >= partitions.len() {
            partitions.resize_with(place + 1, || None);
        }
        partitions[place].get_or_insert_default()
    }

    fn place(&mut self, topic: &str) -> usize {
        if let Some(place) = self.places.get(topic) {
            return *place;
        }
        let place = self.topics.len();
        self.topics.push(Topic { name: topic.to_owned(), partitions: Vec::new() });
        self.places.insert(topic.to_owned(), place);
        place
    }
}

impl<T> ByPartition<T> {
    /// All that was asked for: the topics in that order, each with its partitions by their number.
    pub fn by_topic(&self) -> impl Iterator<Item = (&str, impl Iterator<Item = (i32, &T)>)> {
        self.topics.iter().map(|topic| (topic.name.as_str(), topic.all()))
    }

    /// The same, one by one.
    pub fn all(&self) -> impl Iterator<Item = (&str, i32, &T)> {
        self.by_topic().flat_map(|(topic, partitions)| {
            partitions.map(move |(partition, value)| (topic, partition, value))
        })
    }
}
