//! What the topics still hold, as far as retention asks: a record that was deleted with its topic is waited for by nobody.

use std::collections::HashMap;

use crate::config::Kafka;
use crate::domain::delivery::TopicPartition;
use crate::kafka::KafkaFailure;
use crate::kafka::topics::{TopicState, Topics};

/// Where partitions end, asked once in its life.
pub(super) struct Logs<'a> {
    kafka: &'a Kafka,
    topics: Option<Topics>,
    ends: HashMap<TopicPartition, i64>,
}

impl<'a> Logs<'a> {
    pub(super) fn new(kafka: &'a Kafka) -> Self {
        Self { kafka, topics: None, ends: HashMap::new() }
    }

    /// Whether a record that was published there may be there still, or anything later: it is not if the topic is gone,
    /// or ends before that offset, because it was made anew. As long as no broker tells, it may.
    pub(super) async fn may_hold(&mut self, topic: &str, partition: i32, offset: i64) -> bool {
        match self.end(&(topic.into(), partition)).await {
            Ok(end) => offset < end,
            Err(error) => {
                tracing::debug!(topic, partition, "its end is not known: {error}");
                true
            }
        }
    }

    async fn end(&mut self, at: &TopicPartition) -> Result<i64, KafkaFailure> {
        if let Some(end) = self.ends.get(at) {
            return Ok(*end);
        }
        let topics = match &self.topics {
            Some(topics) => topics,
            None => self.topics.insert(Topics::new(self.kafka, "outboxd-cleanup")?),
        };
        let end = match topics.check(&at.0).await? {
            TopicState::Missing => 0,
            TopicState::Ready { partitions } if at.1 >= partitions => 0,
            _ => topics.extent(at).await?.high,
        };
        self.ends.insert(at.clone(), end);
        Ok(end)
    }
}
