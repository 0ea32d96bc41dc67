//! What an error of Kafka means: one table for delivery, so that no transport error ever counts against a message.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// What went wrong with Kafka, sorted by what the caller does about it.
#[derive(Debug, thiserror::Error)]
pub enum KafkaFailure {
    #[error("Kafka at {brokers} cannot be reached: {reason}")]
    Unreachable { brokers: String, reason: String },
    #[error("{0}")]
    Setup(String),
    #[error(transparent)]
    Client(#[from] KafkaError),
}

impl KafkaFailure {
    /// A client that cannot be made. librdkafka tells a property that it refuses with its value, which may be a secret.
    pub fn client(what: &str, error: &KafkaError) -> Self {
        let reason = match error {
            KafkaError::ClientConfig(_, reason, ..) => reason.clone(),
            other => other.to_string(),
        };
        Self::Setup(format!("{what} cannot be made: {reason}"))
    }

    /// A file with a secret that cannot be read.
    #[allow(clippy::needless_pass_by_value, reason = "taken by map_err")]
    pub fn secret(error: std::io::Error) -> Self {
        Self::Setup(error.to_string())
    }
}

/// What an error of delivery proves, from least to most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// Nothing of the record: the way to the broker, its state, or a request that others spoiled.
    Transport,
    /// The topic is forbidden to us.
    TopicForbidden,
    /// The topic is missing.
    TopicMissing,
    /// The broker refuses this record, if it was alone in its request: it can never be published as it is.
    Record,
}

/// The table. What it does not name proves nothing, and neither do two that sound as if they did: a checksum that does not
/// fit (`InvalidMessage`, which librdkafka sends again by itself) can be the way's fault, and a time out of range
/// (`InvalidTimestamp`) is that of a clock, because a record's time is when it is sent.
pub fn refusal(code: RDKafkaErrorCode) -> Refusal {
    use RDKafkaErrorCode as Code;
    match code {
        // The second is said of a batch that does not fit a segment of the log, which one record alone may not either.
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidRecord => Refusal::Record,
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition | Code::InvalidTopic => {
            Refusal::TopicMissing
        }
        Code::TopicAuthorizationFailed => Refusal::TopicForbidden,
        _ => Refusal::Transport,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transport_errors_prove_nothing_of_a_record() {
        use RDKafkaErrorCode as Code;
        for code in [
            Code::MessageTimedOut,
            Code::BrokerTransportFailure,
            Code::AllBrokersDown,
            Code::PurgeQueue,
            Code::PurgeInflight,
            Code::NotEnoughReplicas,
            Code::NotLeaderForPartition,
            Code::Fatal,
            Code::InvalidProducerEpoch,
            Code::InvalidMessage,
            Code::InvalidTimestamp,
            // An innocent in the same request.
            Code::InvalidDifferentRecord,
            Code::ClusterAuthorizationFailed,
            Code::ThrottlingQuotaExceeded,
        ] {
            assert_eq!(refusal(code), Refusal::Transport, "{code:?}");
        }
        for code in [Code::MessageSizeTooLarge, Code::MessageBatchTooLarge, Code::InvalidRecord] {
            assert_eq!(refusal(code), Refusal::Record, "{code:?}");
        }
        assert_eq!(refusal(Code::UnknownTopicOrPartition), Refusal::TopicMissing);
        assert_eq!(refusal(Code::TopicAuthorizationFailed), Refusal::TopicForbidden);
    }
}
