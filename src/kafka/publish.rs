//! Publishing: one incarnation of an idempotent, gapless producer, and what the broker says of what it sent.
//!
//! Of what one incarnation sends to a partition, the broker has a prefix. After any error of delivery it sends nothing
//! more: it is purged, and another takes its place and begins again at what is known to be published.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::client::Client;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message as _, OwnedHeaders};
use rdkafka::producer::{
    BaseRecord, NoCustomPartitioner, Producer, ProducerContext, PurgeConfig, ThreadedProducer,
};
use tokio::sync::Notify;

use super::client;
use super::error::{KafkaFailure, Refusal, refusal};
use crate::config::Kafka;
use crate::domain::acks::AckPrefix;
use crate::domain::message::Message;

/// How long the answers to a purge may take; they are made locally.
const PURGE_PATIENCE: Duration = Duration::from_secs(5);

/// How long a metadata request may take.
const METADATA_PATIENCE: Duration = Duration::from_secs(5);

/// Why an incarnation came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryFailure {
    pub topic: String,
    pub refusal: Refusal,
    pub reason: String,
}

/// Why a record was not taken.
#[derive(Debug)]
pub enum SendError {
    /// This record can never be published as it is; nothing else was touched.
    Refused(String),
    /// The queue is full: nothing was touched, and there is room once an acknowledgement has come.
    Full,
    /// The incarnation has failed.
    Broken,
}

#[derive(Debug, Default)]
struct Answers {
    acks: AckPrefix,
    failure: Option<DeliveryFailure>,
}

/// Where librdkafka's thread leaves the broker's answers.
#[derive(Debug, Default)]
struct Deliveries {
    answers: Mutex<Answers>,
    changed: Notify,
}

impl Deliveries {
    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone)]
struct Context(Arc<Deliveries>);

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!("librdkafka: {error}: {reason}");
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: usize) {
        let mut answers = self.0.answers();
        let changed = match result {
            Ok(_) => answers.acks.ack(ticket as u64),
            Err((error, record)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
                let failure = DeliveryFailure {
                    topic: record.topic().to_owned(),
                    refusal: refusal(code),
                    reason: error.to_string(),
                };
                // The first error may be of an innocent in the same request, or of the client's own end: the one that
                // proves most is told.
                let worse = answers.failure.as_ref().is_none_or(|known| failure.refusal > known.refusal);
                if worse {
                    answers.failure = Some(failure);
                }
                worse
            }
        };
        drop(answers);
        if changed {
            self.0.changed.notify_one();
        }
    }
}

/// One life of the producer.
pub struct Incarnation {
    producer: Arc<ThreadedProducer<Context, NoCustomPartitioner>>,
    deliveries: Arc<Deliveries>,
    next_ticket: u64,
}

impl Incarnation {
    /// Starts a producer. It needs no broker yet.
    pub fn start(kafka: &Kafka, client_id: &str, buffer_bytes: u64) -> Result<Self, KafkaFailure> {
        let config = client::producer_config(kafka, client_id, buffer_bytes)?;
        let deliveries = Arc::new(Deliveries::default());
        let producer =
            ThreadedProducer::from_config_and_context(&config, Context(Arc::clone(&deliveries)))
                .map_err(|error| KafkaFailure::Setup(format!("the producer cannot be made: {error}")))?;
        Ok(Self { producer: Arc::new(producer), deliveries, next_ticket: 0 })
    }

    /// Lets this client learn of a topic before the first record of it, so that none waits for metadata.
    pub async fn learn(&self, topic: &str) -> Result<(), KafkaFailure> {
        let (producer, topic) = (Arc::clone(&self.producer), topic.to_owned());
        blocking(move || {
            let client: &Client<Context> = producer.client();
            client.fetch_metadata(Some(&topic), METADATA_PATIENCE).map(|_| ())
        })
        .await
        .map_err(KafkaFailure::Client)
    }

    /// Hands a message to librdkafka and returns its ticket. `partitions` is the topic's count, for a message without
    /// a key.
    pub fn send(&mut self, message: &Message, partitions: i32) -> Result<u64, SendError> {
        if self.failure().is_some() {
            return Err(SendError::Broken);
        }
        let ticket = self.next_ticket;
        let added = message.record_headers();
        let headers =
            added.iter().fold(OwnedHeaders::new_with_capacity(added.len()), |headers, (name, value)| {
                headers.insert(Header { key: name, value: Some(value) })
            });
        #[allow(
            clippy::cast_possible_truncation,
            reason = "usize has 64 bits wherever librdkafka's clients run"
        )]
        let opaque = ticket as usize;
        let mut record: BaseRecord<'_, str, [u8], usize> =
            BaseRecord::with_opaque_to(&message.topic, opaque).headers(headers);
        match &message.key {
            Some(key) => record = record.key(key),
            None => record = record.partition(message.keyless_partition(partitions)),
        }
        if let Some(payload) = &message.payload {
            record = record.payload(payload);
        }
        let Err((error, _)) = self.producer.send(record) else {
            self.next_ticket += 1;
            return Ok(ticket);
        };
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
        if code == RDKafkaErrorCode::QueueFull {
            return Err(SendError::Full);
        }
        let refusal = refusal(code);
        if refusal == Refusal::Record {
            return Err(SendError::Refused(error.to_string()));
        }
        let failure = DeliveryFailure { topic: message.topic.clone(), refusal, reason: error.to_string() };
        self.deliveries.answers().failure.get_or_insert(failure);
        Err(SendError::Broken)
    }

    /// Every ticket below it is acknowledged by the broker.
    pub fn acknowledged(&self) -> u64 {
        self.deliveries.answers().acks.get()
    }

    /// How many were handed over and not acknowledged yet.
    pub fn in_flight(&self) -> u64 {
        self.next_ticket - self.acknowledged()
    }

    /// The ticket that the next message gets: all those sent so far are below it.
    pub fn next_ticket(&self) -> u64 {
        self.next_ticket
    }

    /// Why this incarnation must end, if it must.
    pub fn failure(&self) -> Option<DeliveryFailure> {
        self.deliveries.answers().failure.clone()
    }

    /// Waits until every ticket below that one is acknowledged, or the incarnation fails.
    pub async fn settled(&self, below: u64) -> Result<(), DeliveryFailure> {
        loop {
            {
                let answers = self.deliveries.answers();
                if answers.acks.get() >= below {
                    return Ok(());
                }
                if let Some(failure) = &answers.failure {
                    return Err(failure.clone());
                }
            }
            self.deliveries.changed.notified().await;
        }
    }

    /// Ends it: nothing more is sent, what is under way counts as unknown. Returns the prefix that the broker
    /// acknowledged, and the error that proves most.
    pub async fn end(self) -> (u64, Option<DeliveryFailure>) {
        let Self { producer, deliveries, .. } = self;
        blocking(move || {
            producer.purge(PurgeConfig::default().queue().inflight());
            if let Err(error) = producer.flush(PURGE_PATIENCE) {
                tracing::debug!("after a purge: {error}");
            }
            drop(producer);
        })
        .await;
        let answers = deliveries.answers();
        (answers.acks.get(), answers.failure.clone())
    }
}

/// Runs a call of librdkafka that blocks on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(call).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
