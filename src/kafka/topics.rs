//! What the broker says of a topic, asked by a client that never creates one.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use chrono::{DateTime, Utc};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::{ClientConfig, FromClientConfigAndContext};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use uuid::Uuid;

use super::client::{self, Logged};
use super::error::{KafkaFailure, Refusal, refusal};
use super::publish::blocking;
use super::subscribe::offsets;
use super::topic_ids::topic_ids;
use crate::config::{Create, Kafka};
use crate::domain::delivery::TopicPartition;
use crate::domain::start_offset::Extent;

const PATIENCE: Duration = Duration::from_secs(5);

/// For the ids of topics: whoever waits for them handles nothing meanwhile.
const IDS_PATIENCE: Duration = Duration::from_secs(3);

/// Can records be sent to it?
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopicState {
    Ready {
        partitions: i32,
    },
    Missing,
    Forbidden,
    /// The brokers answer, and this topic cannot be written to at the moment: it has no leader, say.
    NotNow(String),
}

/// Asks for metadata. A consumer without a group: unlike a producer's, its requests create no topic.
#[derive(Clone)]
pub struct Topics {
    client: Arc<BaseConsumer<Logged>>,
    /// For a client that makes topics, if there ever is one to be made.
    config: ClientConfig,
    admin: Arc<OnceLock<AdminClient<Logged>>>,
    brokers: String,
}

impl Topics {
    pub fn new(kafka: &Kafka, client_id: &str) -> Result<Self, KafkaFailure> {
        Self::from_config(&client::consumer_config(kafka, client_id)?, kafka)
    }

    /// Can tell a group's offsets too. It never joins the group.
    pub fn of_group(kafka: &Kafka, client_id: &str, kafka_group: &str) -> Result<Self, KafkaFailure> {
        Self::from_config(&client::group_config(kafka, client_id, kafka_group)?, kafka)
    }

    fn from_config(config: &ClientConfig, kafka: &Kafka) -> Result<Self, KafkaFailure> {
        let client = BaseConsumer::from_config_and_context(config, Logged)
            .map_err(|error| KafkaFailure::client("the Kafka client", &error))?;
        Ok(Self {
            client: Arc::new(client),
            config: config.clone(),
            admin: Arc::default(),
            brokers: kafka.brokers.clone(),
        })
    }

    /// The state of one topic; an error means that no broker answered.
    pub async fn check(&self, topic: &str) -> Result<TopicState, KafkaFailure> {
        let (client, name) = (Arc::clone(&self.client), topic.to_owned());
        let metadata = blocking(move || {
            client.fetch_metadata(Some(&name), PATIENCE).map(|metadata| {
                metadata.topics().first().map(|topic| {
                    let has_leaders = topic.partitions().iter().all(|partition| partition.leader() >= 0);
                    (
                        topic.error().map(RDKafkaErrorCode::from),
                        i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX),
                        has_leaders,
                    )
                })
            })
        })
        .await
        .map_err(|error| self.unreachable(&error))?;
        match metadata {
            None => Ok(TopicState::Missing),
            Some((None, 0, _)) => Ok(TopicState::NotNow("it has no partitions yet".into())),
            Some((None, _, false)) => Ok(TopicState::NotNow("a partition has no leader".into())),
            Some((None, partitions, true)) => Ok(TopicState::Ready { partitions }),
            Some((Some(code), ..)) => match refusal(code) {
                Refusal::TopicMissing => Ok(TopicState::Missing),
                Refusal::TopicForbidden => Ok(TopicState::Forbidden),
                Refusal::Record | Refusal::Transport => Ok(TopicState::NotNow(code.to_string())),
            },
        }
    }

    /// Makes a topic. One that somebody else has made meanwhile is fine; else, why there is none.
    pub async fn create(&self, topic: &str, create: &Create) -> Result<(), String> {
        let admin = self.admin().map_err(|error| error.to_string())?;
        let replication = TopicReplication::Fixed(create.replication);
        let new = create
            .config
            .iter()
            .fold(NewTopic::new(topic, create.partitions, replication), |new, (property, value)| {
                new.set(property, value)
            });
        let options = AdminOptions::new().request_timeout(Some(PATIENCE)).operation_timeout(Some(PATIENCE));
        let made = admin.create_topics(&[new], &options).await.map_err(|error| error.to_string())?;
        match made.into_iter().next() {
            Some(Err((_, code))) if code != RDKafkaErrorCode::TopicAlreadyExists => {
                Err(why_not(code, create))
            }
            Some(_) => Ok(()),
            None => Err("the broker did not say".into()),
        }
    }

    fn admin(&self) -> Result<&AdminClient<Logged>, KafkaError> {
        if let Some(admin) = self.admin.get() {
            return Ok(admin);
        }
        let admin = AdminClient::from_config_and_context(&self.config, Logged)?;
        Ok(self.admin.get_or_init(|| admin))
    }

    /// Does a broker answer? Which topic is asked for does not matter.
    pub async fn answer(&self) -> Result<(), KafkaFailure> {
        self.check("__consumer_offsets").await.map(drop)
    }

    /// The cluster's id, once a broker has answered.
    pub async fn cluster_id(&self) -> Result<String, KafkaFailure> {
        // librdkafka waits for metadata that somebody else asks for: without topics its own timer does, after a second.
        self.answer().await?;
        let client = Arc::clone(&self.client);
        let id = blocking(move || client.client().fetch_cluster_id(PATIENCE)).await;
        id.ok_or_else(|| KafkaFailure::Unreachable {
            brokers: self.brokers.clone(),
            reason: format!("no broker answered within {}", humantime::format_duration(PATIENCE)),
        })
    }

    /// The ids of those topics that are there; a broker that knows no ids (before 2.8) tells none, and neither does one that
    /// leaves this question alone unanswered, as the one of `outboxd dev`.
    pub async fn ids(&self, topics: &[String]) -> Result<HashMap<String, Uuid>, KafkaFailure> {
        let (client, topics) = (Arc::clone(&self.client), topics.to_vec());
        match blocking(move || topic_ids(client.client().native_ptr(), &topics, IDS_PATIENCE)).await {
            Ok(ids) => Ok(ids),
            Err(RDKafkaErrorCode::UnsupportedFeature) => Ok(HashMap::new()),
            Err(RDKafkaErrorCode::OperationTimedOut) => self.answer().await.map(|()| HashMap::new()),
            Err(code) => {
                Err(KafkaFailure::Unreachable { brokers: self.brokers.clone(), reason: code.to_string() })
            }
        }
    }

    /// What a partition has now.
    pub async fn extent(&self, (topic, partition): &TopicPartition) -> Result<Extent, KafkaFailure> {
        let (client, topic, partition) = (Arc::clone(&self.client), topic.clone(), *partition);
        let (low, high) = blocking(move || client.fetch_watermarks(&topic, partition, PATIENCE))
            .await
            .map_err(|error| self.unreachable(&error))?;
        Ok(Extent { low, high })
    }

    /// What the group has committed of these; a partition without an offset is left out.
    pub async fn committed(
        &self,
        partitions: &[TopicPartition],
    ) -> Result<HashMap<TopicPartition, i64>, KafkaFailure> {
        let client = Arc::clone(&self.client);
        let mut wanted = TopicPartitionList::with_capacity(partitions.len());
        for (topic, partition) in partitions {
            wanted.add_partition(topic, *partition);
        }
        let found = blocking(move || client.committed_offsets(wanted, PATIENCE))
            .await
            .map_err(|error| self.unreachable(&error))?;
        let mut committed = HashMap::new();
        for element in found.elements() {
            // An offset that could not be told is not one that is missing.
            element.error().map_err(|error| self.unreachable(&error))?;
            if let Offset::Offset(offset) = element.offset() {
                committed.insert((element.topic().into(), element.partition()), offset);
            }
        }
        Ok(committed)
    }

    /// How many consumers the group has, whoever they are.
    pub async fn members(&self, kafka_group: &str) -> Result<usize, KafkaFailure> {
        let (client, group) = (Arc::clone(&self.client), kafka_group.to_owned());
        let found = blocking(move || {
            let list = client.fetch_group_list(Some(&group), PATIENCE)?;
            Ok(list.groups().iter().map(|group| group.members().len()).sum())
        });
        found.await.map_err(|error| self.unreachable(&error))
    }

    /// The first record of each from that time on; a partition without one is left out.
    pub async fn offsets_at(
        &self,
        partitions: &[TopicPartition],
        time: DateTime<Utc>,
    ) -> Result<HashMap<TopicPartition, i64>, KafkaFailure> {
        let client = Arc::clone(&self.client);
        let wanted: Vec<_> = partitions.iter().map(|at| (at.clone(), time.timestamp_millis())).collect();
        let found = blocking(move || client.offsets_for_times(offsets(&wanted)?, PATIENCE))
            .await
            .map_err(|error| self.unreachable(&error))?;
        let mut first = HashMap::new();
        for element in found.elements() {
            element.error().map_err(|error| self.unreachable(&error))?;
            if let Offset::Offset(offset) = element.offset() {
                first.insert((element.topic().into(), element.partition()), offset);
            }
        }
        Ok(first)
    }

    /// Sets the group's offsets, and waits for the answer. For a group that has no members.
    pub async fn commit(&self, positions: Vec<(TopicPartition, i64)>) -> Result<(), KafkaFailure> {
        let client = Arc::clone(&self.client);
        blocking(move || client.commit(&offsets(&positions)?, CommitMode::Sync))
            .await
            .map_err(|error| self.unreachable(&error))
    }

    /// For a caller that cannot go on without that topic.
    pub fn not_now(&self, topic: &str, reason: &str) -> KafkaFailure {
        let reason = format!("topic `{topic}`: {reason}");
        KafkaFailure::Unreachable { brokers: self.brokers.clone(), reason }
    }

    fn unreachable(&self, error: &KafkaError) -> KafkaFailure {
        KafkaFailure::Unreachable { brokers: self.brokers.clone(), reason: error.to_string() }
    }
}

/// Why the broker does not make a topic, in words for whoever wrote `create`.
fn why_not(code: RDKafkaErrorCode, create: &Create) -> String {
    use RDKafkaErrorCode as Code;
    match code {
        Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed => {
            "we are not allowed to create topics".into()
        }
        Code::InvalidReplicationFactor => {
            format!("too few brokers for `replication` {}", create.replication)
        }
        Code::InvalidPartitions => format!("`partitions` {} is not valid", create.partitions),
        Code::InvalidConfig => "its `config` is not valid".into(),
        Code::InvalidTopic => "Kafka takes no such name".into(),
        Code::PolicyViolation => "a policy of the cluster forbids it".into(),
        code => code.to_string(),
    }
}
