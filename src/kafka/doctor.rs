//! What `outboxd doctor` asks the brokers: metadata, and the configuration of brokers and topics. Nothing is written, and no
//! topic is made by asking for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, OwnedResourceSpecifier, ResourceSpecifier};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::{MetadataBroker, MetadataPartition};

use super::client::{self, Logged};
use super::error::{KafkaFailure, Refusal, refusal};
use super::publish::blocking;
use crate::config::Config;
use crate::domain::doctor::kafka::{CLIENT_LIMIT, Properties, Standing};

const PATIENCE: Duration = Duration::from_secs(5);

/// Every broker answers for the topic of the groups' offsets, whether it is there or not.
const ANY_TOPIC: &str = "__consumer_offsets";

/// A client that looks.
pub struct Doctor {
    client: Arc<BaseConsumer<Logged>>,
    admin: AdminClient<Logged>,
    brokers: String,
    /// The largest message that the relay sends, in bytes.
    pub client_limit: i64,
}

impl Doctor {
    pub fn new(config: &Config) -> Result<Self, KafkaFailure> {
        let setup = |error: KafkaError| KafkaFailure::client("the Kafka client", &error);
        let consumer = client::consumer_config(&config.kafka, "outboxd-doctor")?;
        let producer =
            client::producer_config(&config.kafka, "outboxd-doctor", config.producer.buffer_bytes)?;
        Ok(Self {
            client: Arc::new(BaseConsumer::from_config_and_context(&consumer, Logged).map_err(setup)?),
            admin: AdminClient::from_config_and_context(&consumer, Logged).map_err(setup)?,
            brokers: config.kafka.brokers.clone(),
            client_limit: producer
                .get("message.max.bytes")
                .and_then(|bytes| bytes.parse().ok())
                .unwrap_or(CLIENT_LIMIT),
        })
    }

    /// The ids of the brokers that are there.
    pub async fn brokers(&self) -> Result<Vec<i32>, KafkaFailure> {
        let client = Arc::clone(&self.client);
        let metadata = blocking(move || client.fetch_metadata(Some(ANY_TOPIC), PATIENCE)).await;
        let metadata = metadata.map_err(|error| KafkaFailure::Unreachable {
            brokers: self.brokers.clone(),
            reason: error.to_string(),
        })?;
        Ok(metadata.brokers().iter().map(MetadataBroker::id).collect())
    }

    pub async fn standing(&self, topic: &str) -> Standing {
        let (client, name) = (Arc::clone(&self.client), topic.to_owned());
        let metadata = match blocking(move || client.fetch_metadata(Some(&name), PATIENCE)).await {
            Ok(metadata) => metadata,
            Err(error) => return Standing::NotNow(error.to_string()),
        };
        let Some(topic) = metadata.topics().first() else { return Standing::Missing };
        if let Some(code) = topic.error().map(RDKafkaErrorCode::from) {
            return match refusal(code) {
                Refusal::TopicMissing => Standing::Missing,
                Refusal::TopicForbidden => Standing::Forbidden,
                Refusal::Record | Refusal::Transport => Standing::NotNow(code.to_string()),
            };
        }
        let of = |is_meant: &dyn Fn(&MetadataPartition) -> bool| {
            topic.partitions().iter().filter(|it| is_meant(it)).map(MetadataPartition::id).collect()
        };
        Standing::There {
            without_leader: of(&|partition| partition.leader() < 0),
            behind: of(&|partition| partition.isr().len() < partition.replicas().len()),
            copies: topic.partitions().iter().map(|partition| partition.replicas().len()).min().unwrap_or(0),
        }
    }

    /// Of a broker, or why it does not tell.
    pub async fn of_broker(&self, id: i32) -> Result<Properties, String> {
        self.describe(&[ResourceSpecifier::Broker(id)]).await?.into_values().next().unwrap_or_else(nothing)
    }

    /// Of each topic, or why it is not told.
    pub async fn of_topics(
        &self,
        topics: &[&str],
    ) -> Result<BTreeMap<String, Result<Properties, String>>, String> {
        if topics.is_empty() {
            return Ok(BTreeMap::new());
        }
        let wanted: Vec<_> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
        self.describe(&wanted).await
    }

    async fn describe(
        &self,
        wanted: &[ResourceSpecifier<'_>],
    ) -> Result<BTreeMap<String, Result<Properties, String>>, String> {
        let options = AdminOptions::new().request_timeout(Some(PATIENCE));
        let told = self.admin.describe_configs(wanted, &options).await.map_err(|error| error.to_string())?;
        let mut found: BTreeMap<String, Result<Properties, String>> = BTreeMap::new();
        for (wanted, told) in wanted.iter().zip(told) {
            match told {
                Ok(resource) => {
                    let name = match resource.specifier {
                        OwnedResourceSpecifier::Topic(name) | OwnedResourceSpecifier::Group(name) => name,
                        OwnedResourceSpecifier::Broker(id) => id.to_string(),
                    };
                    let properties = resource.entries.into_iter().filter(|entry| !entry.is_sensitive);
                    let properties =
                        properties.filter_map(|entry| Some((entry.name, entry.value?))).collect();
                    found.insert(name, Ok(properties));
                }
                Err(code) => {
                    let name = match wanted {
                        ResourceSpecifier::Topic(name) | ResourceSpecifier::Group(name) => (*name).to_owned(),
                        ResourceSpecifier::Broker(id) => id.to_string(),
                    };
                    found.insert(name, Err(code.to_string()));
                }
            }
        }
        Ok(found)
    }
}

fn nothing() -> Result<Properties, String> {
    Err("the broker did not say".into())
}
