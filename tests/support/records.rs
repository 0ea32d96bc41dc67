//! Records as they lie in a topic, and ones that outboxd did not write.

use std::collections::HashSet;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};

use super::Kafka;

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    /// In the order of the record.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// Milliseconds since 1970.
    pub timestamp: Option<i64>,
}

impl Record {
    /// The first header of that name, as text.
    pub fn header(&self, name: &str) -> Option<String> {
        let (_, value) = self.headers.iter().find(|(key, _)| key == name)?;
        value.as_deref().map(text)
    }

    pub fn key_text(&self) -> String {
        self.key.as_deref().map(text).unwrap_or_default()
    }

    pub fn payload_text(&self) -> String {
        self.payload.as_deref().map(text).unwrap_or_default()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Kafka {
    /// All that the topic holds, by partition and offset, up to where its ends are now.
    pub async fn read_all(&self, topic: &str) -> Vec<Record> {
        let mut config = self.client_config();
        config.set("group.id", "reads-without-a-group").set("enable.auto.commit", "false");
        config.set("auto.offset.reset", "error").set("enable.partition.eof", "true");
        let topic = topic.to_owned();
        tokio::task::spawn_blocking(move || read_to_the_end(&config.create().unwrap(), &topic)).await.unwrap()
    }

    /// Writes a record as another program would; returns where it lies.
    pub async fn produce(
        &self,
        topic: &str,
        key: Option<&str>,
        payload: Option<&[u8]>,
        headers: &[(&str, &str)],
    ) -> (i32, i64) {
        let mut record = FutureRecord::to(topic);
        record.key = key;
        record.payload = payload;
        self.write(record, headers).await
    }

    /// The same without a key, to that partition.
    pub async fn produce_to(&self, topic: &str, partition: i32, payload: &str, headers: &[(&str, &str)]) {
        let record = FutureRecord::to(topic).partition(partition).payload(payload.as_bytes());
        self.write(record, headers).await;
    }

    async fn write(&self, record: FutureRecord<'_, str, [u8]>, headers: &[(&str, &str)]) -> (i32, i64) {
        let producer: FutureProducer = self.client_config().set("linger.ms", "0").create().unwrap();
        let headers = headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(value.as_bytes()) })
        });
        let sent = producer.send(record.headers(headers), PATIENCE).await;
        let written = sent.map_err(|(error, _)| error).unwrap();
        (written.partition, written.offset)
    }

    /// Writes it so many times to that partition, as few batches as may be.
    pub async fn produce_many(&self, topic: &str, partition: i32, payload: &str, count: usize) {
        let producer: FutureProducer = self.client_config().create().unwrap();
        let record = || FutureRecord::<(), str>::to(topic).partition(partition).payload(payload);
        let written = (0..count).map(|_| producer.send(record(), PATIENCE));
        for written in futures_util::future::join_all(written).await {
            written.map_err(|(error, _)| error).unwrap();
        }
    }
}

fn read_to_the_end(consumer: &BaseConsumer, topic: &str) -> Vec<Record> {
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).unwrap();
    let found = metadata.topics().first().expect("the topic is known");
    let mut unread = TopicPartitionList::new();
    for partition in found.partitions() {
        unread.add_partition_offset(topic, partition.id(), Offset::Beginning).unwrap();
    }
    consumer.assign(&unread).unwrap();
    // Not how many: after a change of its leader a partition may end twice.
    let mut ends = HashSet::new();
    let mut records = Vec::new();
    while ends.len() < unread.count() {
        match consumer.poll(PATIENCE).expect("the broker answers") {
            Ok(message) => records.push(Record {
                partition: message.partition(),
                offset: message.offset(),
                key: message.key().map(<[u8]>::to_vec),
                payload: message.payload().map(<[u8]>::to_vec),
                headers: message
                    .headers()
                    .into_iter()
                    .flat_map(Headers::iter)
                    .map(|header| owned(&header))
                    .collect(),
                timestamp: message.timestamp().to_millis(),
            }),
            Err(KafkaError::PartitionEOF(partition)) => _ = ends.insert(partition),
            Err(error) => panic!("reading {topic}: {error}"),
        }
    }
    records.sort_by_key(|record| (record.partition, record.offset));
    records
}

fn owned(header: &Header<'_, &[u8]>) -> (String, Option<Vec<u8>>) {
    (header.key.to_owned(), header.value.map(<[u8]>::to_vec))
}
