//! A dead letter as a record of its own: as it was, with what Spring's tools read of its end.

use super::delivery::Record;

/// Behind the name of the topic that it came from.
pub const TOPIC_SUFFIX: &str = "-dlt";

/// A message that a group gave up.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    pub group: String,
    pub record: Record,
    /// Why it was given up: `attempts`, `permanent` and so on.
    pub reason: String,
    /// Of the last attempt.
    pub error: String,
}

impl DeadLetter {
    pub fn topic(&self) -> String {
        format!("{}{TOPIC_SUFFIX}", self.record.topic)
    }

    /// What is added behind the record's own headers. Numbers are big-endian, as Java writes them.
    pub fn headers(&self) -> [(&'static str, Vec<u8>); 8] {
        let Record { topic, partition, offset, timestamp, .. } = &self.record;
        let (timestamp, kind) = match timestamp {
            Some(timestamp) => (timestamp.timestamp_millis(), "CreateTime"),
            None => (-1, "NoTimestampType"),
        };
        let text = |text: &str| text.as_bytes().to_vec();
        [
            ("kafka_dlt-original-topic", text(topic)),
            ("kafka_dlt-original-partition", partition.to_be_bytes().to_vec()),
            ("kafka_dlt-original-offset", offset.to_be_bytes().to_vec()),
            ("kafka_dlt-original-timestamp", timestamp.to_be_bytes().to_vec()),
            ("kafka_dlt-original-timestamp-type", text(kind)),
            ("kafka_dlt-original-consumer-group", text(&self.group)),
            ("kafka_dlt-exception-fqcn", text(&format!("outboxd.{}", self.reason))),
            ("kafka_dlt-exception-message", text(&self.error)),
        ]
    }
}
