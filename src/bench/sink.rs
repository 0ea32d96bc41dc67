//! The sink: what a topic holds, read back record by record and held against what was written.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rdkafka::config::{ClientConfig, FromClientConfigAndContext};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};
use tokio::task::JoinHandle;

use super::payload;
use crate::config;
use crate::kafka::client::{self, Logged};
use crate::kafka::topics::Topics;

/// A broker that brings no record for so long brings none any more.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often the ends of a topic are looked at while it fills.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Where the partitions of a topic end, by number.
pub type Ends = Vec<i64>;

/// A record as it came to a consumer that waited for it.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub at: Instant,
    /// When the broker took it, by its own clock.
    pub append_millis: i64,
}

pub struct Sink {
    topic: String,
    partitions: i32,
    topics: Topics,
    config: ClientConfig,
}

/// What a stretch of the topic holds.
#[derive(Debug, Default)]
pub struct Found {
    pub records: u64,
    pub bytes: u64,
    pub lost: u64,
    /// Records beyond the first of a message.
    pub repeats: u64,
    /// Messages that first appear behind a later one of their key.
    pub out_of_order: u64,
    /// First records by the millisecond at which the broker took them.
    taken: BTreeMap<i64, u64>,
}

impl Found {
    /// Messages a second between the first and the last tenth, by the broker's clock; nothing if it all came at once.
    pub fn rate(&self) -> Option<f64> {
        let total: u64 = self.taken.values().sum();
        let mut count = 0;
        let mut begin = None;
        for (millis, taken) in &self.taken {
            count += taken;
            match begin {
                None if count * 10 >= total => begin = Some((*millis, count)),
                Some((from, before)) if count * 10 >= total * 9 => {
                    #[allow(clippy::cast_precision_loss, reason = "counts and times of a benchmark")]
                    return Some((count - before) as f64 * 1000.0 / (millis - from) as f64);
                }
                _ => {}
            }
        }
        None
    }
}

/// What is held against the records of one reading.
struct Checker {
    found: Found,
    seen: Vec<bool>,
    /// Per key the highest number so far, and its partition.
    keys: HashMap<Vec<u8>, (u64, i32)>,
}

impl Checker {
    fn new(count: u64) -> Self {
        let seen = vec![false; usize::try_from(count).unwrap_or(0)];
        Self { found: Found::default(), seen, keys: HashMap::new() }
    }

    fn take(&mut self, partition: i32, key: &[u8], payload: &[u8], millis: i64) -> anyhow::Result<()> {
        let number = payload::read(payload).context("a record that nobody wrote is in the topic")?;
        let place = usize::try_from(number).ok();
        let seen = place.and_then(|place| self.seen.get_mut(place));
        let seen = seen.with_context(|| format!("message {number} was never written"))?;
        self.found.records += 1;
        self.found.bytes += payload.len() as u64;
        if std::mem::replace(seen, true) {
            self.found.repeats += 1;
            return Ok(());
        }
        *self.found.taken.entry(millis).or_default() += 1;
        match self.keys.get_mut(key) {
            Some((last, of)) => {
                if number < *last || partition != *of {
                    self.found.out_of_order += 1;
                }
                *last = number.max(*last);
            }
            None => {
                self.keys.insert(key.to_owned(), (number, partition));
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Found {
        self.found.lost = self.seen.iter().filter(|seen| !**seen).count() as u64;
        self.found
    }
}

impl Sink {
    pub fn new(kafka: &config::Kafka, topic: &str, partitions: i32) -> anyhow::Result<Self> {
        let mut config = client::consumer_config(kafka, "outboxd-bench")?;
        // Partitions are assigned by hand; librdkafka wants a name all the same.
        config.set("group.id", "outboxd-bench");
        config.set("queued.max.messages.kbytes", "65536");
        Ok(Self { topic: topic.to_owned(), partitions, topics: Topics::new(kafka, "outboxd-bench")?, config })
    }

    pub async fn ends(&self) -> anyhow::Result<Ends> {
        let mut ends = Vec::new();
        for partition in 0..self.partitions {
            ends.push(self.topics.extent(&(self.topic.as_str().into(), partition)).await?.high);
        }
        Ok(ends)
    }

    /// Waits until the topic has grown by so many records; `check` is asked whether that may still happen.
    pub async fn grown(
        &self,
        since: &Ends,
        count: u64,
        mut check: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let (mut last, mut moved_at) = (0, Instant::now());
        loop {
            check()?;
            let grown = self.ends().await?.iter().zip(since).map(|(end, since)| end - since).sum::<i64>();
            if u64::try_from(grown).is_ok_and(|grown| grown >= count) {
                return Ok(());
            }
            if grown > last {
                (last, moved_at) = (grown, Instant::now());
            } else if moved_at.elapsed() > PATIENCE {
                bail!("after {last} of {count} messages nothing came any more");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Reads everything between the two, which must be the messages of the first `count` numbers.
    pub async fn read(&self, from: &Ends, to: &Ends, count: u64) -> anyhow::Result<Found> {
        let (config, topic, from, to) = (self.config.clone(), self.topic.clone(), from.clone(), to.clone());
        let read = tokio::task::spawn_blocking(move || {
            let mut checker = Checker::new(count);
            each(&config, &topic, &from, &to, |record| {
                let (key, payload) = (record.key().unwrap_or_default(), record.payload().unwrap_or_default());
                checker.take(
                    record.partition(),
                    key,
                    payload,
                    record.timestamp().to_millis().unwrap_or_default(),
                )
            })?;
            Ok(checker.finish())
        });
        read.await?
    }

    /// Notes what arrives from there on, as it arrives, until it is told to stop.
    pub fn watch(
        &self,
        from: Ends,
        stop: Arc<AtomicBool>,
    ) -> JoinHandle<anyhow::Result<HashMap<u64, Arrival>>> {
        let mut config = self.config.clone();
        // What bounds a wait at a partition that has nothing; a record ends it at once.
        config.set("fetch.wait.max.ms", "50").set("fetch.queue.backoff.ms", "0");
        let topic = self.topic.clone();
        tokio::task::spawn_blocking(move || arrivals(&config, &topic, &from, &stop))
    }
}

/// Every record between the two, partition by partition in order.
fn each(
    config: &ClientConfig,
    topic: &str,
    from: &Ends,
    to: &Ends,
    mut take: impl FnMut(&BorrowedMessage<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let consumer = BaseConsumer::from_config_and_context(config, Logged)?;
    let mut open = 0;
    let mut starts = TopicPartitionList::new();
    for (partition, (from, _)) in (0..).zip(from.iter().zip(to)).filter(|(_, (from, to))| from < to) {
        starts.add_partition_offset(topic, partition, Offset::Offset(*from))?;
        open += 1;
    }
    consumer.assign(&starts)?;
    let mut ended = vec![false; to.len()];
    while open > 0 {
        let Some(polled) = consumer.poll(PATIENCE) else {
            bail!("the broker does not give back what it took: no record of {topic} came any more")
        };
        let record = polled?;
        let place = usize::try_from(record.partition())?;
        if record.offset() < to[place] {
            take(&record)?;
        }
        if record.offset() + 1 >= to[place] && !std::mem::replace(&mut ended[place], true) {
            open -= 1;
        }
    }
    Ok(())
}

/// Every record from there on, until `stop`.
fn arrivals(
    config: &ClientConfig,
    topic: &str,
    from: &Ends,
    stop: &AtomicBool,
) -> anyhow::Result<HashMap<u64, Arrival>> {
    let consumer = BaseConsumer::from_config_and_context(config, Logged)?;
    let mut starts = TopicPartitionList::new();
    for (partition, from) in (0..).zip(from) {
        starts.add_partition_offset(topic, partition, Offset::Offset(*from))?;
    }
    consumer.assign(&starts)?;
    let mut arrivals = HashMap::new();
    loop {
        match consumer.poll(LOOK_EVERY) {
            Some(record) => {
                let (record, at) = (record?, Instant::now());
                let append_millis = record.timestamp().to_millis().unwrap_or_default();
                if let Some(number) = record.payload().and_then(payload::read) {
                    arrivals.entry(number).or_insert(Arrival { at, append_millis });
                }
            }
            None if stop.load(Ordering::Relaxed) => return Ok(arrivals),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(records: &[(i32, &str, u64, i64)], count: u64) -> Found {
        let mut checker = Checker::new(count);
        for (partition, key, number, millis) in records {
            let payload = payload::write(*number, payload::SMALLEST, &mut fastrand::Rng::with_seed(0));
            checker.take(*partition, key.as_bytes(), &payload, *millis).unwrap();
        }
        checker.finish()
    }

    #[test]
    fn what_is_wrong_is_found() {
        let right = found(&[(0, "a", 0, 1), (1, "b", 1, 1), (0, "a", 2, 2)], 3);
        assert_eq!((right.lost, right.out_of_order, right.repeats), (0, 0, 0));
        let repeated = found(&[(0, "a", 0, 1), (0, "a", 2, 1), (0, "a", 0, 2), (1, "b", 1, 2)], 3);
        assert_eq!((repeated.lost, repeated.out_of_order, repeated.repeats), (0, 0, 1));
        assert_eq!(found(&[(0, "a", 2, 1), (0, "a", 0, 1), (1, "b", 1, 1)], 3).out_of_order, 1);
        assert_eq!(found(&[(0, "a", 0, 1), (1, "a", 2, 1), (1, "b", 1, 1)], 3).out_of_order, 1);
        assert_eq!(found(&[(0, "a", 0, 1)], 3).lost, 2);
    }

    #[test]
    fn the_rate_is_that_of_the_middle() {
        let records: Vec<(i32, &str, u64, i64)> = (0..100_u64)
            .map(|number| (0, "a", number, if number < 10 { 0 } else { number.cast_signed() }))
            .collect();
        assert_eq!(found(&records, 100).rate().map(f64::round), Some(899.0));
        assert_eq!(found(&[(0, "a", 0, 5), (0, "a", 1, 5)], 2).rate(), None);
    }
}
