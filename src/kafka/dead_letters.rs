//! Publishing copies of dead letters. They keep no order and may come twice; what is binary stays so.

use std::time::Duration;

use rdkafka::config::FromClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer, PurgeConfig};

use super::client;
use super::error::KafkaFailure;
use super::publish::blocking;
use crate::config::Kafka;
use crate::domain::dead_letter::DeadLetter;

/// A copy that is not acknowledged by then is made again later.
const PATIENCE: Duration = Duration::from_secs(20);

/// What waits in the producer at the most, in bytes.
const BUFFER_BYTES: u64 = 64 << 20;

/// Publishes them all; says of each in its place why it was not acknowledged, if it was not.
pub async fn publish(
    kafka: &Kafka,
    client_id: &str,
    letters: &[DeadLetter],
) -> Result<Vec<Result<(), String>>, KafkaFailure> {
    let mut config = client::producer_config(kafka, client_id, BUFFER_BYTES)?;
    // Nothing stands on their order: one that cannot be published does not stop the others.
    config.set("enable.gapless.guarantee", "false");
    config.set("message.timeout.ms", PATIENCE.as_millis().to_string());
    let producer: FutureProducer =
        FutureProducer::from_config(&config).map_err(|error| KafkaFailure::client("the producer", &error))?;
    let sent: Vec<Result<DeliveryFuture, String>> =
        letters.iter().map(|letter| send(&producer, letter)).collect();
    let mut answers = Vec::with_capacity(sent.len());
    for sent in sent {
        answers.push(match sent {
            Ok(delivery) => acknowledged(delivery).await,
            Err(reason) => Err(reason),
        });
    }
    blocking(move || {
        producer.purge(PurgeConfig::default().queue().inflight());
        drop(producer);
    })
    .await;
    Ok(answers)
}

fn send(producer: &FutureProducer, letter: &DeadLetter) -> Result<DeliveryFuture, String> {
    let record = &letter.record;
    let own = record.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref()));
    let added = letter.headers();
    let added = added.iter().map(|(name, value)| (*name, Some(value.as_slice())));
    let headers = own
        .chain(added)
        .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value }));
    let topic = letter.topic();
    let mut copy: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(&topic).headers(headers);
    copy.key = record.key.as_deref();
    copy.payload = record.payload.as_deref();
    producer.send_result(copy).map_err(|(error, _)| error.to_string())
}

async fn acknowledged(delivery: DeliveryFuture) -> Result<(), String> {
    match delivery.await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err((error, _))) => Err(error.to_string()),
        Err(_) => Err("the producer has ended".into()),
    }
}
