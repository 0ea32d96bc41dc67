//! What the broker says of a topic, asked by a client that never creates one.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;

use super::client::{self, Logged};
use super::error::{KafkaFailure, Refusal, refusal};
use super::publish::blocking;
use crate::config::Kafka;

const PATIENCE: Duration = Duration::from_secs(5);

/// Can records be sent to it?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopicState {
    Ready { partitions: i32 },
    Missing,
    Forbidden,
}

/// Asks for metadata. A consumer without a group: unlike a producer's, its requests create no topic.
#[derive(Clone)]
pub struct Topics {
    client: Arc<BaseConsumer<Logged>>,
    brokers: String,
}

impl Topics {
    pub fn new(kafka: &Kafka, client_id: &str) -> Result<Self, KafkaFailure> {
        let config = client::consumer_config(kafka, client_id)?;
        let client = BaseConsumer::from_config_and_context(&config, Logged)
            .map_err(|error| KafkaFailure::Setup(format!("the Kafka client cannot be made: {error}")))?;
        Ok(Self { client: Arc::new(client), brokers: kafka.brokers.clone() })
    }

    /// The state of one topic; an error means that no broker answered.
    pub async fn check(&self, topic: &str) -> Result<TopicState, KafkaFailure> {
        let (client, name) = (Arc::clone(&self.client), topic.to_owned());
        let metadata = blocking(move || {
            client.fetch_metadata(Some(&name), PATIENCE).map(|metadata| {
                metadata.topics().first().map(|topic| {
                    (
                        topic.error().map(RDKafkaErrorCode::from),
                        i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX),
                    )
                })
            })
        })
        .await
        .map_err(|error| self.unreachable(&error))?;
        let unclear = |reason: String| KafkaFailure::Unreachable { brokers: self.brokers.clone(), reason };
        match metadata {
            None => Ok(TopicState::Missing),
            Some((None, partitions)) if partitions > 0 => Ok(TopicState::Ready { partitions }),
            Some((None, _)) => Err(unclear(format!("topic `{topic}` has no partitions yet"))),
            Some((Some(code), _)) => match refusal(code) {
                Refusal::TopicMissing => Ok(TopicState::Missing),
                Refusal::TopicForbidden => Ok(TopicState::Forbidden),
                Refusal::Record | Refusal::Transport => Err(unclear(code.to_string())),
            },
        }
    }

    /// The cluster's id, once a broker has answered.
    pub async fn cluster_id(&self) -> Result<String, KafkaFailure> {
        let client = Arc::clone(&self.client);
        let id = blocking(move || client.client().fetch_cluster_id(PATIENCE)).await;
        id.ok_or_else(|| KafkaFailure::Unreachable {
            brokers: self.brokers.clone(),
            reason: format!("no broker answered within {}", humantime::format_duration(PATIENCE)),
        })
    }

    fn unreachable(&self, error: &rdkafka::error::KafkaError) -> KafkaFailure {
        KafkaFailure::Unreachable { brokers: self.brokers.clone(), reason: error.to_string() }
    }
}
