//! Reading all of a topic, by assignment: nobody else gets a part of it, and nothing is committed.

use std::collections::BTreeMap;
use std::sync::Arc;

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use super::client::{self, Logged};
use super::error::KafkaFailure;
use super::legible::illegible;
use super::subscribe::Copier;
use crate::config::Kafka;
use crate::domain::delivery::Record;

/// What reading brings.
#[derive(Debug)]
pub enum Read {
    Record(Record),
    /// A batch of some partition cannot be decoded, for that reason: it may stand there, or read on behind it.
    Illegible(String),
    /// Passes by itself.
    Trouble(String),
    /// The client is of no more use.
    Fatal(String),
}

/// Reads every partition that it was given; dropped, it ends without waiting.
pub struct WholeTopic {
    consumer: Option<Arc<StreamConsumer<Logged>>>,
    topic: String,
    copier: Copier,
    /// By partition: the offset after the last record that was read, or the first to come.
    next: BTreeMap<i32, i64>,
}

impl WholeTopic {
    /// Needs no broker yet. The Kafka group is only named: whoever may be a member of it may read like this.
    pub fn new(kafka: &Kafka, client_id: &str, kafka_group: &str, topic: &str) -> Result<Self, KafkaFailure> {
        let config = client::group_config(kafka, client_id, kafka_group)?;
        let consumer = StreamConsumer::from_config_and_context(&config, Logged)
            .map_err(|error| KafkaFailure::client("the consumer", &error))?;
        Ok(Self {
            consumer: Some(Arc::new(consumer)),
            topic: topic.to_owned(),
            copier: Copier::new(&[topic]),
            next: BTreeMap::new(),
        })
    }

    /// Where it stands.
    pub fn position(&self) -> &BTreeMap<i32, i64> {
        &self.next
    }

    /// Reads these partitions on from there, and those that it has from where it stands.
    pub fn read_on(&mut self, from: &BTreeMap<i32, i64>) -> Result<(), KafkaFailure> {
        let Some(consumer) = &self.consumer else { return Ok(()) };
        self.next.extend(from);
        let mut list = TopicPartitionList::with_capacity(self.next.len());
        for (partition, offset) in &self.next {
            list.add_partition_offset(&self.topic, *partition, Offset::Offset(*offset))?;
        }
        Ok(consumer.assign(&list)?)
    }

    /// Nothing is lost if the call is dropped.
    pub async fn next(&mut self) -> Read {
        let Some(consumer) = &self.consumer else { return std::future::pending().await };
        match consumer.recv().await {
            Ok(message) => {
                self.next.insert(message.partition(), message.offset() + 1);
                Read::Record(self.copier.record(&message))
            }
            Err(KafkaError::MessageConsumptionFatal(code)) => Read::Fatal(code.to_string()),
            Err(error) => {
                if let Some(reason) = illegible(&error) {
                    return Read::Illegible(reason);
                }
                let code = error.rdkafka_error_code();
                Read::Trouble(
                    code.map_or_else(|| error.to_string(), |code: RDKafkaErrorCode| code.to_string()),
                )
            }
        }
    }
}

impl Drop for WholeTopic {
    fn drop(&mut self) {
        if let Some(consumer) = self.consumer.take() {
            client::close(consumer);
        }
    }
}
