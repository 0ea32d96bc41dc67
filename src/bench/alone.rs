//! Records sent at a given rate with no database before them: what of a latency is Kafka's, and the way to the consumer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, NoCustomPartitioner, Producer, ProducerContext, ThreadedProducer};

use super::payload;
use crate::config::Config;
use crate::kafka::client;

/// For what is under way at the end.
const FLUSH: Duration = Duration::from_secs(60);

/// One run of it.
#[derive(Clone, Debug)]
pub struct Alone {
    pub topic: String,
    /// Records a second.
    pub rate: f64,
    pub duration: Duration,
    pub payload_bytes: usize,
    /// They take turns, as the clients that insert do.
    pub keys: u64,
    /// The number of the first record.
    pub first: u64,
}

/// A record that the broker has acknowledged.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    pub number: u64,
    pub at: Instant,
    pub acknowledged_at: Instant,
}

#[derive(Clone, Default)]
struct Acknowledged(Arc<Mutex<Vec<Sent>>>);

impl Acknowledged {
    fn take(&self) -> Vec<Sent> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ClientContext for Acknowledged {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }
}

impl ProducerContext for Acknowledged {
    type DeliveryOpaque = Box<(u64, Instant)>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: Self::DeliveryOpaque) {
        let (number, at) = *sent;
        if result.is_ok() {
            let sent = Sent { number, at, acknowledged_at: Instant::now() };
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(sent);
        }
    }
}

impl Alone {
    /// Sends them with the relay's settings, and returns those that were acknowledged.
    pub async fn run(self, config: &Config) -> anyhow::Result<Vec<Sent>> {
        let settings = client::producer_config(&config.kafka, "outboxd-bench", config.producer.buffer_bytes)?;
        let acknowledged = Acknowledged::default();
        let producer: ThreadedProducer<_, NoCustomPartitioner> =
            ThreadedProducer::from_config_and_context(&settings, acknowledged.clone())?;
        let mut noise = fastrand::Rng::with_seed(0);
        let start = Instant::now();
        for number in self.first.. {
            #[allow(clippy::cast_precision_loss, reason = "counts of a benchmark")]
            let due = Duration::from_secs_f64((number - self.first) as f64 / self.rate);
            if due >= self.duration {
                break;
            }
            tokio::time::sleep_until((start + due).into()).await;
            let key = payload::key(number, self.keys);
            let payload = payload::write(number, self.payload_bytes, &mut noise);
            let record = BaseRecord::with_opaque_to(&self.topic, Box::new((number, Instant::now())));
            producer.send(record.key(&key).payload(&payload)).map_err(|(error, _)| error)?;
        }
        tokio::task::spawn_blocking(move || producer.flush(FLUSH)).await??;
        Ok(acknowledged.take())
    }
}
