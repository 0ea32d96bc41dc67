//! The properties of librdkafka that are not the operator's, and why.

use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;

const PUBLISHING: &str = "publishing in order and without gaps stands on it, and outboxd sets it";
const NEVER_GIVES_UP: &str =
    "a transport failure is never the end of a message: one that timed out would let later ones pass";
const COMMITTING: &str = "offsets are committed behind the work, never before it";
const ASSIGNING: &str = "partitions are handed over cooperatively, with work under way finished first";
const BUFFER: &str = "set `[producer] buffer_bytes`";
const BROKERS: &str = "set `[kafka] brokers`";
const CALLBACK: &str = "it takes a function or an object, not a text";

const REFUSED: &[(&str, &str)] = &[
    ("bootstrap.servers", BROKERS),
    ("metadata.broker.list", BROKERS),
    ("enable.idempotence", PUBLISHING),
    ("enable.gapless.guarantee", PUBLISHING),
    ("acks", PUBLISHING),
    ("request.required.acks", PUBLISHING),
    ("max.in.flight", PUBLISHING),
    ("max.in.flight.requests.per.connection", PUBLISHING),
    ("partitioner", "a key keeps its partition, the one that Java's clients choose too"),
    (
        "transactional.id",
        "a delivery is repeated after a crash and known by its id; no transactions are used",
    ),
    ("message.timeout.ms", NEVER_GIVES_UP),
    ("delivery.timeout.ms", NEVER_GIVES_UP),
    ("retries", NEVER_GIVES_UP),
    ("message.send.max.retries", NEVER_GIVES_UP),
    ("queue.buffering.max.messages", BUFFER),
    ("queue.buffering.max.kbytes", BUFFER),
    (
        "allow.auto.create.topics",
        "a topic that is missing holds its messages; asking for it must not make it",
    ),
    ("group.id", "set `[groups.NAME] kafka_group`"),
    ("group.instance.id", "set `[groups.NAME] static_membership`"),
    ("enable.auto.commit", COMMITTING),
    ("auto.commit.enable", COMMITTING),
    ("auto.commit.interval.ms", COMMITTING),
    ("enable.auto.offset.store", COMMITTING),
    (
        "auto.offset.reset",
        "where a new group begins is `[groups.NAME] start`; an offset out of range is never passed over silently",
    ),
    ("partition.assignment.strategy", ASSIGNING),
    ("group.protocol", ASSIGNING),
    ("group.remote.assignor", ASSIGNING),
    ("log_level", "what is logged is chosen by `--log`"),
    ("opaque", CALLBACK),
    ("default_topic_conf", CALLBACK),
    ("interceptors", CALLBACK),
    ("ssl_certificate", CALLBACK),
    ("ssl_key", CALLBACK),
    ("ssl_ca", CALLBACK),
    ("ssl_engine_callback_data", CALLBACK),
];

/// Why a property is refused, if it is.
pub fn reason(property: &str) -> Option<&'static str> {
    if property.ends_with("_cb") {
        return Some(CALLBACK);
    }
    REFUSED.iter().find(|(name, _)| *name == property).map(|(_, reason)| *reason)
}

/// Why librdkafka would not take the property. It tells a name that it does not know with its value: that may be a
/// secret under a misspelt name, and is left out. What a file holds is not known here.
pub(super) fn by_librdkafka(property: &str, value: &str, is_file: bool) -> Option<String> {
    let mut config = ClientConfig::new();
    config.set(property, value);
    match config.create_native_config().err()? {
        KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..) => {
            Some(format!("librdkafka has no property `{property}`"))
        }
        KafkaError::ClientConfig(_, reason, ..) if !is_file => {
            Some(format!("`{property}` is wrong: {reason}"))
        }
        _ => None,
    }
}
