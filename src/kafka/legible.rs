//! Whether what comes next in a partition can be decoded. librdkafka says that a batch cannot be, and not of which partition;
//! and where it is the checksum that does not fit, it reads on behind that batch.

use std::time::Duration;

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::client::{self, Logged};
use super::error::KafkaFailure;
use super::subscribe::offsets;
use crate::config::Kafka;
use crate::domain::delivery::TopicPartition;

/// For a record, or for the end of the partition.
const PATIENCE: Duration = Duration::from_secs(10);

/// What says that a batch cannot be decoded, if it says that: its checksum does not fit, its compression is broken or not
/// known, or no record is found in it however much is fetched.
pub(super) fn illegible(error: &KafkaError) -> Option<String> {
    let KafkaError::MessageConsumption(code) = error else { return None };
    let reason = match code {
        RDKafkaErrorCode::BadMessage => "its checksum does not fit",
        RDKafkaErrorCode::BadCompression => "its compression is broken",
        RDKafkaErrorCode::NotImplemented => "its compression is not known",
        RDKafkaErrorCode::MessageSizeTooLarge => "no record is found in it",
        _ => return None,
    };
    Some(reason.into())
}

/// Why the first record from that offset on cannot be decoded; nothing if it can, or if there is none. A client of its own
/// asks, which is given nothing else to read.
pub async fn why_illegible(
    kafka: &Kafka,
    client_id: &str,
    kafka_group: &str,
    at: &TopicPartition,
    offset: i64,
) -> Result<Option<String>, KafkaFailure> {
    let mut config = client::group_config(kafka, client_id, kafka_group)?;
    config.set("enable.partition.eof", "true").set("queued.min.messages", "1");
    let consumer: StreamConsumer<Logged> = StreamConsumer::from_config_and_context(&config, Logged)
        .map_err(|error| KafkaFailure::client("the consumer", &error))?;
    consumer.assign(&offsets(&[(at.clone(), offset)])?)?;
    let answer = tokio::time::timeout(PATIENCE, answer(&consumer)).await;
    client::close(consumer);
    answer.map_err(|_| KafkaFailure::Unreachable {
        brokers: kafka.brokers.clone(),
        reason: format!("no record of {}[{}] within {}", at.0, at.1, humantime::format_duration(PATIENCE)),
    })
}

async fn answer(consumer: &StreamConsumer<Logged>) -> Option<String> {
    loop {
        match consumer.recv().await {
            Ok(_)
            | Err(
                KafkaError::PartitionEOF(_)
                | KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset),
            ) => return None,
            Err(error) => {
                if let Some(reason) = illegible(&error) {
                    return Some(reason);
                }
            }
        }
    }
}
