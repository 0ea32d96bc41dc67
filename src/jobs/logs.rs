//! What the topics still hold, as far as retention asks: a record that was deleted with its topic is waited for by nobody.

use std::collections::HashMap;

use crate::config::Kafka;
use crate::domain::delivery::TopicPartition;
use crate::kafka::KafkaFailure;
use crate::kafka::topics::{TopicState, Topics};
use crate::pg::retention::Behind;

/// Where partitions end, asked once in its life.
pub(super) struct Logs<'a> {
    kafka: &'a Kafka,
    topics: Option<Topics>,
    cluster_id: Option<String>,
    ends: HashMap<TopicPartition, i64>,
}

impl<'a> Logs<'a> {
    pub(super) fn new(kafka: &'a Kafka) -> Self {
        Self { kafka, topics: None, cluster_id: None, ends: HashMap::new() }
    }

    /// Whether something that this group has to pass may be in its log still: nothing is if the topic is gone, or ends
    /// before the lowest of it, because it was made anew. As long as no broker of the group's cluster tells, it may.
    pub(super) async fn may_hold(&mut self, behind: &Behind) -> bool {
        let Behind { topic, partition, lowest, cluster_id, .. } = behind;
        match self.end(cluster_id, &(topic.as_str().into(), *partition)).await {
            Ok(Some(end)) => *lowest < end,
            Ok(None) => true,
            Err(error) => {
                tracing::debug!(topic, partition, "its end is not known: {error}");
                true
            }
        }
    }

    /// Nothing if that cluster is another than ours.
    async fn end(&mut self, cluster_id: &str, at: &TopicPartition) -> Result<Option<i64>, KafkaFailure> {
        let topics = match &self.topics {
            Some(topics) => topics,
            None => self.topics.insert(Topics::new(self.kafka, "outboxd-cleanup")?),
        };
        let ours = match &self.cluster_id {
            Some(ours) => ours,
            None => self.cluster_id.insert(topics.cluster_id().await?),
        };
        if ours != cluster_id {
            return Ok(None);
        }
        if let Some(end) = self.ends.get(at) {
            return Ok(Some(*end));
        }
        let end = match topics.check(&at.0).await? {
            TopicState::Missing => 0,
            TopicState::Ready { partitions } if at.1 >= partitions => 0,
            _ => topics.extent(at).await?.high,
        };
        self.ends.insert(at.clone(), end);
        Ok(Some(end))
    }
}
