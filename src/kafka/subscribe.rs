//! A member of a consumer group. The rebalance callback never waits: it hands on what is to be done, and the one who
//! polls does it, while polling goes on.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use chrono::DateTime;
use futures_util::FutureExt;
use rdkafka::bindings::rd_kafka_resp_err_t as ResponseCode;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{ClientContext, Offset, Statistics, TopicPartitionList};
use tokio::sync::{mpsc, oneshot};

use super::client;
use super::error::KafkaFailure;
use super::legible::illegible;
use crate::config::Kafka;
use crate::domain::delivery::{Record, TopicPartition};

/// What the group's coordinator decided.
#[derive(Debug)]
pub enum Rebalance {
    /// To be read from now on, once it is known where they begin.
    Assigned(Vec<TopicPartition>),
    /// To be finished, and then given back.
    Revoked(Vec<TopicPartition>),
    /// Another member may have them already.
    Lost(Vec<TopicPartition>),
}

/// What polling brings.
#[derive(Debug)]
pub enum Polled {
    Record(Record),
    Rebalance(Rebalance),
    /// Some partition is read at an offset that its log does not have; which, is not told.
    OutOfRange,
    /// A batch of some partition cannot be decoded; of which, is not told. What follows it may come next.
    Illegible,
    /// Said by the client now and then.
    Standing {
        connected: bool,
        ends: HashMap<TopicPartition, i64>,
    },
    /// A topic that was subscribed to is not there.
    TopicMissing,
    /// Passes by itself.
    Trouble(String),
    /// The client is of no more use.
    Fatal(String),
    /// Another has joined under this member's name.
    Fenced,
}

struct Context {
    events: mpsc::UnboundedSender<Polled>,
    /// Nobody polls for the loop any more: what is asked for is granted at once.
    closing: AtomicBool,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!("librdkafka: {error}: {reason}");
    }

    fn stats(&self, statistics: Statistics) {
        let connected = statistics.brokers.values().any(|broker| broker.state == "UP");
        let mut ends = HashMap::new();
        for (name, topic) in statistics.topics {
            for (partition, state) in topic.partitions {
                if partition >= 0 && state.ls_offset >= 0 {
                    ends.insert((name.as_str().into(), partition), state.ls_offset);
                }
            }
        }
        let _ = self.events.send(Polled::Standing { connected, ends });
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: ResponseCode, list: &mut TopicPartitionList) {
        if self.closing.load(Ordering::SeqCst) {
            let none = TopicPartitionList::new();
            // One answer and no more: a static member has left with it, and the client may never reply to what it is
            // asked next.
            told(match code {
                ResponseCode::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => consumer.incremental_assign(&none),
                _ => consumer.incremental_unassign(&none),
            });
            return;
        }
        let partitions = partitions(list);
        let rebalance = match code {
            ResponseCode::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Rebalance::Assigned(partitions),
            _ if consumer.assignment_lost() => Rebalance::Lost(partitions),
            _ => Rebalance::Revoked(partitions),
        };
        let _ = self.events.send(Polled::Rebalance(rebalance));
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        // Nothing depends on it: a partition starts at the lower of Kafka's position and the database's.
        if let Err(error) = result
            && error.rdkafka_error_code() != Some(RDKafkaErrorCode::NoOffset)
        {
            tracing::info!("Kafka did not take an offset, which the database has: {error}");
        }
    }
}

fn partitions(list: &TopicPartitionList) -> Vec<TopicPartition> {
    list.elements().iter().map(|element| (element.topic().into(), element.partition())).collect()
}

/// Answers whatever librdkafka waits for, and gives everything back: it would not close before.
fn settle(consumer: &impl Consumer<Context>) {
    let none = TopicPartitionList::new();
    let given_back = consumer
        .incremental_assign(&none)
        .and_then(|()| consumer.assignment())
        .and_then(|assigned| consumer.incremental_unassign(&assigned));
    told(given_back);
}

/// What goes wrong while a member leaves changes nothing any more.
fn told(result: KafkaResult<()>) {
    if let Err(error) = result {
        tracing::debug!("while leaving the group: {error}");
    }
}

/// Membership in a group; dropped, it leaves without waiting.
pub struct Subscription {
    consumer: Option<Arc<StreamConsumer<Context>>>,
    events: mpsc::UnboundedReceiver<Polled>,
    copier: Copier,
    /// What came in between records, and is to be told next.
    troubles: VecDeque<Polled>,
}

impl Subscription {
    /// Joins when polled. It needs no broker yet.
    pub fn new(
        kafka: &Kafka,
        client_id: &str,
        kafka_group: &str,
        instance: Option<&str>,
        topics: &[String],
    ) -> Result<Self, KafkaFailure> {
        let config = client::member_config(kafka, client_id, kafka_group, instance)?;
        let (events, received) = mpsc::unbounded_channel();
        let context = Context { events, closing: AtomicBool::new(false) };
        let consumer: StreamConsumer<Context> = StreamConsumer::from_config_and_context(&config, context)
            .map_err(|error| KafkaFailure::client("the consumer", &error))?;
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics)?;
        let copier = Copier::new(&topics);
        Ok(Self { consumer: Some(Arc::new(consumer)), events: received, copier, troubles: VecDeque::new() })
    }

    /// The next thing that happens. Must be called again and again for the member to stay in its group; nothing is
    /// lost if the call is dropped.
    pub async fn next(&mut self) -> Polled {
        if let Some(trouble) = self.troubles.pop_front() {
            return trouble;
        }
        let Some(consumer) = &self.consumer else { return std::future::pending().await };
        tokio::select! {
            biased;
            Some(event) = self.events.recv() => event,
            received = consumer.recv() => match received {
                Ok(message) => Polled::Record(self.copier.record(&message)),
                Err(error) => trouble(&error),
            },
        }
    }

    /// A record that is here already, if nothing else has happened.
    pub fn next_record(&mut self) -> Option<Record> {
        if !self.events.is_empty() {
            return None;
        }
        match self.consumer.as_ref()?.recv().now_or_never()? {
            Ok(message) => Some(self.copier.record(&message)),
            Err(error) => {
                self.troubles.push_back(trouble(&error));
                None
            }
        }
    }

    /// Answers an assignment. Empty, it only lets the group go on; partitions may be added later.
    pub fn assign(&self, starts: &[(TopicPartition, i64)]) -> Result<(), KafkaFailure> {
        let Some(consumer) = &self.consumer else { return Ok(()) };
        let list = offsets(starts)?;
        consumer.incremental_assign(&list)?;
        // A pause outlives an assignment.
        if !starts.is_empty() {
            consumer.resume(&list)?;
        }
        Ok(())
    }

    /// Answers a revocation: gives back those that were assigned, after the offsets that were committed before.
    pub fn unassign(&self, revoked: &[TopicPartition]) -> Result<(), KafkaFailure> {
        let Some(consumer) = &self.consumer else { return Ok(()) };
        let assigned: HashSet<TopicPartition> = partitions(&consumer.assignment()?).into_iter().collect();
        let mut list = TopicPartitionList::new();
        for (topic, partition) in revoked.iter().filter(|partition| assigned.contains(partition)) {
            list.add_partition(topic, *partition);
        }
        Ok(consumer.incremental_unassign(&list)?)
    }

    pub fn pause(&self, (topic, partition): &TopicPartition) -> Result<(), KafkaFailure> {
        let Some(consumer) = &self.consumer else { return Ok(()) };
        let mut list = TopicPartitionList::new();
        list.add_partition(topic, *partition);
        Ok(consumer.pause(&list)?)
    }

    pub fn resume(&self, (topic, partition): &TopicPartition) -> Result<(), KafkaFailure> {
        let Some(consumer) = &self.consumer else { return Ok(()) };
        let mut list = TopicPartitionList::new();
        list.add_partition(topic, *partition);
        Ok(consumer.resume(&list)?)
    }

    /// Reads an assigned partition on from there. A seek would not do: librdkafka takes none while a partition stands
    /// still after an offset out of range, and does not say so.
    pub fn read_on(&self, at: &TopicPartition, offset: i64) -> Result<(), KafkaFailure> {
        self.unassign(std::slice::from_ref(at))?;
        self.assign(&[(at.clone(), offset)])
    }

    /// Tells Kafka how far the group is; that it did not arrive is only logged.
    pub fn commit(&self, positions: &[(TopicPartition, i64)]) -> Result<(), KafkaFailure> {
        let Some(consumer) = &self.consumer else { return Ok(()) };
        Ok(consumer.commit(&offsets(positions)?, CommitMode::Async)?)
    }

    /// Gives everything back and leaves, once Kafka has answered the commits before.
    pub async fn leave(mut self) {
        if let Some(closed) = self.close() {
            let _ = closed.await;
        }
    }

    /// On a thread of its own, which nothing joins: closing blocks, for as long as the broker is away.
    fn close(&mut self) -> Option<oneshot::Receiver<()>> {
        let consumer = self.consumer.take()?;
        let (done, closed) = oneshot::channel();
        consumer.context().closing.store(true, Ordering::SeqCst);
        std::thread::spawn(move || {
            settle(&*consumer);
            drop(consumer);
            let _ = done.send(());
        });
        Some(closed)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.close();
    }
}

pub(super) fn offsets(positions: &[(TopicPartition, i64)]) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(positions.len());
    for ((topic, partition), offset) in positions {
        list.add_partition_offset(topic, *partition, Offset::Offset(*offset))?;
    }
    Ok(list)
}

/// Space for copies of small things is taken in pieces of this size.
const PIECE: usize = 64 << 10;

/// Copies records out of the client's memory, with few allocations: topics are known, bytes lie side by side.
pub struct Copier {
    topics: Vec<Arc<str>>,
    space: BytesMut,
}

impl Copier {
    /// For records of these topics.
    pub fn new(topics: &[&str]) -> Self {
        Self { topics: topics.iter().map(|topic| Arc::from(*topic)).collect(), space: BytesMut::new() }
    }

    pub fn record(&mut self, message: &BorrowedMessage<'_>) -> Record {
        let headers = message.headers().map_or_else(Vec::new, |headers| {
            headers
                .iter()
                .map(|header| (header.key.to_owned(), header.value.map(|value| self.bytes(value))))
                .collect()
        });
        Record {
            topic: self.topic(message.topic()),
            partition: message.partition(),
            offset: message.offset(),
            timestamp: message.timestamp().to_millis().and_then(DateTime::from_timestamp_millis),
            key: message.key().map(|key| self.bytes(key)),
            payload: message.payload().map(|payload| self.bytes(payload)),
            headers,
        }
    }

    fn topic(&self, name: &str) -> Arc<str> {
        let known = self.topics.iter().find(|topic| ***topic == *name);
        known.map_or_else(|| name.into(), Arc::clone)
    }

    /// What is large has memory of its own, which is not kept for the sake of a neighbour.
    fn bytes(&mut self, bytes: &[u8]) -> Bytes {
        if bytes.len() > PIECE / 8 {
            return Bytes::copy_from_slice(bytes);
        }
        if self.space.capacity() < bytes.len() {
            self.space = BytesMut::with_capacity(PIECE);
        }
        self.space.extend_from_slice(bytes);
        self.space.split().freeze()
    }
}

fn trouble(error: &KafkaError) -> Polled {
    match error {
        error if illegible(error).is_some() => Polled::Illegible,
        KafkaError::MessageConsumptionFatal(RDKafkaErrorCode::FencedInstanceId) => Polled::Fenced,
        KafkaError::MessageConsumptionFatal(code) => Polled::Fatal(code.to_string()),
        KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset) => Polled::OutOfRange,
        error => match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown) => {
                Polled::Standing { connected: false, ends: HashMap::new() }
            }
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                Polled::TopicMissing
            }
            Some(code) => Polled::Trouble(code.to_string()),
            None => Polled::Trouble(error.to_string()),
        },
    }
}
