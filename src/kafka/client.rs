//! Clients of librdkafka: their configuration, and their log in ours.

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;

use super::error::KafkaFailure;
use crate::config::Kafka;

/// What the guarantees of publishing stand on; the configuration refuses to set these.
///
/// Idempotence and gaplessness: of what one producer sends to a partition, the broker has a prefix. No time-out: a
/// record that timed out would let later ones pass. The partitioner agrees with Java's.
const PRODUCER: &[(&str, &str)] = &[
    ("enable.idempotence", "true"),
    ("enable.gapless.guarantee", "true"),
    ("acks", "all"),
    ("message.timeout.ms", "0"),
    ("partitioner", "murmur2_random"),
    ("allow.auto.create.topics", "false"),
];

/// What may be overridden.
const PRODUCER_DEFAULTS: &[(&str, &str)] = &[
    ("compression.type", "lz4"),
    ("linger.ms", "0"),
    ("batch.size", "1000000"),
    ("sticky.partitioning.linger.ms", "0"),
];

/// What the guarantees of consuming stand on: offsets are committed behind the work, and an offset out of range is
/// our decision.
const CONSUMER: &[(&str, &str)] = &[
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    ("auto.offset.reset", "error"),
    ("partition.assignment.strategy", "cooperative-sticky"),
    ("allow.auto.create.topics", "false"),
];

/// What may be overridden: what was damaged on its way or on a disk is not handed on. It costs next to nothing.
const CONSUMER_DEFAULTS: &[(&str, &str)] = &[("check.crcs", "true")];

/// What may be overridden for a member of a group: a topic or partition that appears is found within seconds, the ends of
/// the partitions are known for the lag, and what was full is filled again before it is empty: the client would wait for a
/// second, and what it keeps (64 MB) is handled in half of that.
const MEMBER_DEFAULTS: &[(&str, &str)] = &[
    ("topic.metadata.refresh.interval.ms", "10000"),
    ("statistics.interval.ms", "5000"),
    ("fetch.queue.backoff.ms", "20"),
];

/// For a producer; `buffer_bytes` bounds what waits in it, but for one message that is larger.
pub fn producer_config(
    kafka: &Kafka,
    client_id: &str,
    buffer_bytes: u64,
) -> Result<ClientConfig, KafkaFailure> {
    let properties = kafka.producer_properties().map_err(KafkaFailure::secret)?;
    let mut config = layered(client_id, &[PRODUCER_DEFAULTS], properties, PRODUCER);
    // In KiB. A queue without room for the largest message would be full for ever.
    let largest = config.get("message.max.bytes").and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
    let kbytes = buffer_bytes.max(largest).div_ceil(1024).clamp(1, 2_147_483_647);
    config.set("queue.buffering.max.kbytes", kbytes.to_string());
    config.set("queue.buffering.max.messages", "0");
    Ok(config)
}

/// For a consumer without a group: metadata and watermarks.
pub fn consumer_config(kafka: &Kafka, client_id: &str) -> Result<ClientConfig, KafkaFailure> {
    let properties = kafka.consumer_properties().map_err(KafkaFailure::secret)?;
    Ok(layered(client_id, &[CONSUMER_DEFAULTS], properties, CONSUMER))
}

/// For a client that may ask for a group's offsets, without being a member of it.
pub fn group_config(kafka: &Kafka, client_id: &str, kafka_group: &str) -> Result<ClientConfig, KafkaFailure> {
    let mut config = consumer_config(kafka, client_id)?;
    config.set("group.id", kafka_group);
    Ok(config)
}

/// For a member of a group; with a name by which it is known again after a restart, if it has one.
pub fn member_config(
    kafka: &Kafka,
    client_id: &str,
    kafka_group: &str,
    instance: Option<&str>,
) -> Result<ClientConfig, KafkaFailure> {
    let properties = kafka.consumer_properties().map_err(KafkaFailure::secret)?;
    let mut config = layered(client_id, &[CONSUMER_DEFAULTS, MEMBER_DEFAULTS], properties, CONSUMER);
    config.set("group.id", kafka_group);
    if let Some(instance) = instance {
        config.set("group.instance.id", instance);
    }
    Ok(config)
}

fn layered(
    client_id: &str,
    defaults: &[&[(&str, &str)]],
    properties: Vec<(String, String)>,
    fixed: &[(&str, &str)],
) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("client.id", client_id);
    for (name, value) in defaults.iter().copied().flatten() {
        config.set(*name, *value);
    }
    for (name, value) in properties {
        config.set(name, value);
    }
    for (name, value) in fixed {
        config.set(*name, *value);
    }
    config.set_log_level(RDKafkaLogLevel::Debug);
    config
}

/// On a thread of its own, which nothing joins: closing blocks, for as long as the broker is away.
pub(super) fn close(consumer: impl Send + 'static) {
    std::thread::spawn(move || drop(consumer));
}

/// A context that writes librdkafka's log lines to ours.
#[derive(Clone, Copy, Debug, Default)]
pub struct Logged;

impl ClientContext for Logged {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: rdkafka::error::KafkaError, reason: &str) {
        // Brokers that come and go are librdkafka's business; what follows from them is told where it is noticed.
        tracing::debug!("librdkafka: {error}: {reason}");
    }
}

impl ConsumerContext for Logged {}

/// One line of librdkafka's.
pub fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::warn!(target: "librdkafka", facility, "{message}");
        }
        // Its "errors" are mostly a broker that does not answer: said once by us, not at each of its tries.
        RDKafkaLogLevel::Error
        | RDKafkaLogLevel::Warning
        | RDKafkaLogLevel::Notice
        | RDKafkaLogLevel::Info => {
            tracing::debug!(target: "librdkafka", facility, "{message}");
        }
        RDKafkaLogLevel::Debug => tracing::trace!(target: "librdkafka", facility, "{message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_queue_has_room_for_the_largest_message() {
        let kbytes = |buffer_bytes| {
            let text = "[postgres]\nurl = \"postgres://localhost/app\"\n\
                        [kafka.producer]\n\"message.max.bytes\" = 100000000\n";
            let kafka = Config::parse(text, None, []).unwrap().config.kafka;
            let config = producer_config(&kafka, "test", buffer_bytes).unwrap();
            config.get("queue.buffering.max.kbytes").unwrap().parse::<u64>().unwrap()
        };
        assert_eq!(kbytes(64 << 20), 97_657);
        assert_eq!(kbytes(128 << 20), 128 << 10);
    }
}
