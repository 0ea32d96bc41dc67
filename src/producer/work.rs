//! What the lanes of one session share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::confirmed::Confirmed;
use super::outlook::Outlook;
use super::{Relay, SessionError, in_time};
use crate::kafka::KafkaFailure;
use crate::kafka::publish::Incarnation;
use crate::kafka::topics::{TopicState, Topics};
use crate::pg::lanes::LaneStore;
use crate::pg::lanes::read::LaneReader;

/// How long a topic's metadata is believed.
const TOPIC_AGE: Duration = Duration::from_secs(60);

/// For the connections to open.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why a lane stopped.
pub(super) enum Stop {
    /// The session is over.
    End(SessionError),
    /// The incarnation failed; another begins at the committed cursors.
    Broken,
    /// Nothing was sent of this step; it is tried again after a while.
    Away(String),
}

impl<E: Into<SessionError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::End(error.into())
    }
}

pub(super) struct Work<'a> {
    pub(super) relay: &'a Relay,
    pub(super) store: Arc<LaneStore>,
    pub(super) reader: Arc<LaneReader>,
    pub(super) topics: Topics,
    pub(super) outlook: Outlook,
    pub(super) confirmed: &'a Confirmed,
    ready_topics: Mutex<HashMap<String, (Instant, i32)>>,
}

impl<'a> Work<'a> {
    pub(super) async fn open(relay: &'a Relay, confirmed: &'a Confirmed) -> Result<Self, SessionError> {
        let limits = relay.limits()?;
        let (store, reader) = in_time(PATIENCE, async {
            let store = LaneStore::open(relay.connector.connect().await?, limits).await?;
            let connection = relay.connector.connect().await?;
            let reader = LaneReader::open(connection, store.tag(), limits).await?;
            Ok((store, reader))
        })
        .await?;
        Ok(Self {
            relay,
            store: Arc::new(store),
            reader: Arc::new(reader),
            topics: Topics::new(&relay.kafka, &relay.client_id())?,
            outlook: Outlook::default(),
            confirmed,
            ready_topics: Mutex::default(),
        })
    }

    fn ready_topics(&self) -> MutexGuard<'_, HashMap<String, (Instant, i32)>> {
        self.ready_topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new incarnation knows no topic.
    pub(super) fn forget_topics(&self) {
        self.ready_topics().clear();
    }

    /// The partitions of a topic that was confirmed not long ago.
    pub(super) fn partitions(&self, topic: &str) -> Option<i32> {
        let ready = self.ready_topics();
        ready.get(topic).filter(|(at, _)| at.elapsed() < TOPIC_AGE).map(|(_, partitions)| *partitions)
    }

    /// Asks the broker, and lets the incarnation know the topic before the first record of it.
    pub(super) async fn confirm(
        &self,
        incarnation: &Arc<Incarnation>,
        topic: &str,
    ) -> Result<Result<i32, String>, Stop> {
        let away = |error: KafkaFailure| Stop::Away(error.to_string());
        match self.topics.check(topic).await.map_err(away)? {
            TopicState::Ready { partitions } => {
                incarnation.learn(topic).await.map_err(away)?;
                self.ready_topics().insert(topic.to_owned(), (Instant::now(), partitions));
                Ok(Ok(partitions))
            }
            TopicState::Missing => Ok(Err(self.make(topic).await)),
            TopicState::NotNow(reason) => Ok(Err(format!("topic `{topic}` does not take records: {reason}"))),
            TopicState::Forbidden => Ok(Err(format!("topic `{topic}` is forbidden to us"))),
        }
    }

    /// Makes a missing topic if the configuration says how. Its messages are held until the brokers know it.
    async fn make(&self, topic: &str) -> String {
        let Some(create) = self.relay.topics.create(topic) else {
            return format!("topic `{topic}` does not exist");
        };
        match self.topics.create(topic, create).await {
            Ok(()) => {
                tracing::info!(topic, "the topic was missing and has been created");
                format!("topic `{topic}` has just been created")
            }
            Err(reason) => format!("topic `{topic}` does not exist and cannot be created: {reason}"),
        }
    }
}
