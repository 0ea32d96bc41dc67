//! Publishing: one incarnation of an idempotent, gapless producer, and what the broker says of what it sent.
//!
//! Of what one incarnation sends to a partition, the broker has a prefix. After any error of delivery it sends nothing
//! more: it is purged, and another takes its place and begins again at what is known to be published.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::client::Client;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message as _, OwnedHeaders};
use rdkafka::producer::{
    BaseProducer, BaseRecord, NoCustomPartitioner, Producer, ProducerContext, PurgeConfig,
};
use tokio::sync::Notify;

use super::client;
use super::error::{KafkaFailure, Refusal, refusal};
use crate::config::Kafka;
use crate::domain::acks::AckPrefix;
use crate::domain::message::Message;
use crate::domain::offsets::Offsets;
use crate::domain::proven::Proven;

/// How long the answers to a purge may take; they are made locally.
const PURGE_PATIENCE: Duration = Duration::from_secs(5);

/// How long a metadata request may take.
const METADATA_PATIENCE: Duration = Duration::from_secs(5);

/// How long the broker's answers are listened to at a time, and an incarnation that is dropped lives on. rdkafka waits in
/// whole milliseconds and spins through what is left of the last: here nothing is, because a wait takes a little longer.
const LISTEN: Duration = Duration::from_micros(100_100);

/// Streams of messages that one incarnation keeps apart: a lane waits for its own acknowledgements alone.
pub const LINES: usize = 3;

/// Room for the headers that most messages get besides their own.
const ADDED_HEADERS: usize = 5;

/// A delivery's opaque is the ticket, with the line above it. 2^56 tickets last for longer than any process.
const TICKET_BITS: u32 = 56;

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
    /// Nothing was touched: it goes behind the first record of its partition, once all tickets below that one are
    /// acknowledged.
    Unproven(u64),
    /// The incarnation has failed.
    Broken,
}

/// What the broker has said of one line.
#[derive(Debug, Default)]
struct Answers {
    acks: AckPrefix,
    /// Somebody waits for the prefix to get there: to be woken for each step would cost more than the work.
    wanted: u64,
    offsets: Offsets,
    /// Tickets that came back with an error that may be theirs.
    suspects: Vec<u64>,
}

#[derive(Debug, Default)]
struct Line {
    answers: Mutex<Answers>,
    changed: Notify,
}

impl Line {
    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where librdkafka's thread leaves the broker's answers.
#[derive(Debug, Default)]
struct Deliveries {
    lines: [Line; LINES],
    failure: Mutex<Option<DeliveryFailure>>,
    /// Asked before each send, so without a lock.
    failed: AtomicBool,
}

impl Deliveries {
    fn fail(&self, failure: DeliveryFailure) {
        let mut known = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        // The first error may be of an innocent in the same request, or of the client's own end: the one that proves
        // most is told.
        if known.as_ref().is_none_or(|known| failure.refusal > known.refusal) {
            *known = Some(failure);
            drop(known);
            self.failed.store(true, Ordering::Release);
            for line in &self.lines {
                line.changed.notify_one();
            }
        }
    }

    fn failure(&self) -> Option<DeliveryFailure> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
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

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        let (index, ticket) = (opaque >> TICKET_BITS, (opaque & ((1 << TICKET_BITS) - 1)) as u64);
        let line = &self.0.lines[index];
        match result {
            Ok(record) => {
                let mut answers = line.answers();
                answers.offsets.note(record.topic(), record.partition(), record.offset());
                if answers.acks.ack(ticket) && answers.acks.get() >= answers.wanted {
                    drop(answers);
                    line.changed.notify_one();
                }
            }
            Err((error, record)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
                let refusal = refusal(code);
                if refusal == Refusal::Record {
                    line.answers().suspects.push(ticket);
                }
                self.0.fail(DeliveryFailure {
                    topic: record.topic().to_owned(),
                    refusal,
                    reason: error.to_string(),
                });
            }
        }
    }
}

/// One life of the producer.
pub struct Incarnation {
    producer: Arc<BaseProducer<Context, NoCustomPartitioner>>,
    deliveries: Arc<Deliveries>,
}

impl Incarnation {
    /// Starts a producer. It needs no broker yet.
    pub fn start(kafka: &Kafka, client_id: &str, buffer_bytes: u64) -> Result<Self, KafkaFailure> {
        let config = client::producer_config(kafka, client_id, buffer_bytes)?;
        let deliveries = Arc::new(Deliveries::default());
        let producer: BaseProducer<_, NoCustomPartitioner> =
            BaseProducer::from_config_and_context(&config, Context(Arc::clone(&deliveries)))
                .map_err(|error| KafkaFailure::client("the producer", &error))?;
        let producer = Arc::new(producer);
        let listening = Arc::downgrade(&producer);
        let listen = move || {
            while let Some(producer) = listening.upgrade() {
                producer.poll(LISTEN);
            }
        };
        thread::Builder::new()
            .name("kafka-answers".into())
            .spawn(listen)
            .map_err(|error| KafkaFailure::Setup(format!("the producer cannot be listened to: {error}")))?;
        Ok(Self { producer, deliveries })
    }

    /// Lets this client learn of a topic before the first record of it, so that none waits for metadata.
    pub async fn learn(self: &Arc<Self>, topic: &str) -> Result<(), KafkaFailure> {
        let (this, topic) = (Arc::clone(self), topic.to_owned());
        blocking(move || {
            let client: &Client<Context> = this.producer.client();
            client.fetch_metadata(Some(&topic), METADATA_PATIENCE).map(|_| ())
        })
        .await
        .map_err(KafkaFailure::Client)
    }

    /// Why this incarnation must end, if it must.
    pub fn failure(&self) -> Option<DeliveryFailure> {
        self.deliveries.failure()
    }

    /// Ends it: nothing more is sent, what is under way counts as unknown. Afterwards its lines tell all that is ever
    /// known of them.
    pub async fn end(self: Arc<Self>) {
        blocking(move || {
            self.producer.purge(PurgeConfig::default().queue().inflight());
            if let Err(error) = self.producer.flush(PURGE_PATIENCE) {
                tracing::debug!("after a purge: {error}");
            }
        })
        .await;
    }
}

/// One lane's way to the broker in one incarnation.
pub struct Sender {
    incarnation: Arc<Incarnation>,
    line: usize,
    next_ticket: u64,
    proven: Proven,
}

impl Sender {
    /// `line` is below `LINES`, and nobody else has it in this incarnation.
    pub fn new(incarnation: &Arc<Incarnation>, line: usize) -> Self {
        Self { incarnation: Arc::clone(incarnation), line, next_ticket: 0, proven: Proven::default() }
    }

    fn line(&self) -> &Line {
        &self.incarnation.deliveries.lines[self.line]
    }

    /// Hands a message to librdkafka and returns its ticket. `partitions` is the topic's count.
    pub fn send(&mut self, message: &Message, partitions: i32) -> Result<u64, SendError> {
        if self.is_broken() {
            return Err(SendError::Broken);
        }
        if let Some(bytes) = message.unread {
            let reason = format!("its payload of {bytes} bytes is too large for `message.max.bytes`");
            return Err(SendError::Refused(reason));
        }
        let (ticket, partition, now) = (self.next_ticket, message.partition(partitions), Instant::now());
        let line = &self.incarnation.deliveries.lines[self.line];
        self.proven
            .may_send(&message.topic, partition, now, || line.answers().acks.get())
            .map_err(SendError::Unproven)?;
        let mut headers = Some(OwnedHeaders::new_with_capacity(message.headers.len() + ADDED_HEADERS));
        message.each_header(|key, value| {
            headers = headers.take().map(|headers| headers.insert(Header { key, value: Some(value) }));
        });
        #[allow(
            clippy::cast_possible_truncation,
            reason = "usize has 64 bits wherever librdkafka's clients run"
        )]
        let opaque = ticket as usize | self.line << TICKET_BITS;
        let mut record: BaseRecord<'_, str, [u8], usize> = BaseRecord::with_opaque_to(&message.topic, opaque);
        record = record.partition(partition);
        record.headers = headers;
        if let Some(key) = &message.key {
            record = record.key(key);
        }
        if let Some(payload) = &message.payload {
            record = record.payload(payload);
        }
        let Err((error, _)) = self.incarnation.producer.send(record) else {
            self.next_ticket += 1;
            self.proven.sent(&message.topic, partition, ticket, now);
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
        self.incarnation.deliveries.fail(failure);
        Err(SendError::Broken)
    }

    pub fn incarnation(&self) -> &Arc<Incarnation> {
        &self.incarnation
    }

    /// Must this incarnation end?
    pub fn is_broken(&self) -> bool {
        self.incarnation.deliveries.failed.load(Ordering::Acquire)
    }

    /// Every ticket below it is acknowledged by the broker.
    pub fn acknowledged(&self) -> u64 {
        self.line().answers().acks.get()
    }

    /// The ticket that the next message gets: all those sent so far are below it.
    pub fn next_ticket(&self) -> u64 {
        self.next_ticket
    }

    /// The highest offsets that have become known since the last call.
    pub fn take_offsets(&self) -> Offsets {
        std::mem::take(&mut self.line().answers().offsets)
    }

    /// Tickets that came back with an error that may be theirs, or of another in the same request.
    pub fn suspects(&self) -> Vec<u64> {
        self.line().answers().suspects.clone()
    }

    /// Waits until every ticket below that one is acknowledged, or the incarnation fails.
    pub async fn settled(&self, below: u64) -> Result<(), Broken> {
        loop {
            {
                let mut answers = self.line().answers();
                if answers.acks.get() >= below {
                    return Ok(());
                }
                answers.wanted = below;
            }
            if self.is_broken() {
                return Err(Broken);
            }
            self.line().changed.notified().await;
        }
    }

    /// Returns once the incarnation has failed.
    pub async fn broken(&self) {
        while !self.is_broken() {
            self.line().changed.notified().await;
        }
    }
}

/// The incarnation has failed: `Incarnation::failure` tells why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// Runs a call of librdkafka that blocks on a thread that may block.
pub async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(call).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
