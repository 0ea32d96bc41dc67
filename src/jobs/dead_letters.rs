//! `dead-letters`: copies what a group gave up to `<topic>-dlt`, for groups that say so. A copy that was acknowledged is
//! marked; one that may not have been is made again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::{Job, Outcome};
use crate::config::{self, Group};
use crate::domain::schedule::Schedule;
use crate::kafka::dead_letters::publish;
use crate::kafka::topics::{TopicState, Topics};
use crate::pg::connect::Connection;
use crate::pg::dead_letters::{self, Uncopied};
use crate::pg::{Connector, leaves};

pub const NAME: &str = "dead-letters";

/// Copies that are under way at a time.
const BATCH: i64 = 50;

/// What the copies are made with.
struct Copies {
    connector: Connector,
    kafka: config::Kafka,
    client_id: String,
    topics: config::Topics,
    groups: Vec<String>,
}

/// None if no group wants copies.
pub fn job(
    connector: Connector,
    kafka: config::Kafka,
    client_id: String,
    topics: config::Topics,
    groups: &BTreeMap<String, Group>,
) -> Option<Job> {
    let wanted = groups.iter().filter(|(_, group)| group.retry.dead_letter_topic);
    let groups: Vec<String> = wanted.map(|(name, _)| name.clone()).collect();
    if groups.is_empty() {
        return None;
    }
    let copies = Arc::new(Copies { connector, kafka, client_id, topics, groups });
    Some(Job {
        name: NAME,
        schedule: Schedule::Every(Duration::from_secs(5)),
        at_start: false,
        body: Box::new(move || {
            let copies = Arc::clone(&copies);
            Box::pin(async move { copies.run().await })
        }),
    })
}

impl Copies {
    async fn run(&self) -> Outcome {
        let client = self.connector.connect().await?;
        let groups: Vec<&str> = self.groups.iter().map(String::as_str).collect();
        if dead_letters::uncopied(&client, &groups, 1).await?.is_empty()
            || !leaves::claim(&client, NAME).await?
        {
            return Ok(None);
        }
        let outcome = self.copy(&client, &groups).await;
        leaves::give_back(&client, NAME).await?;
        outcome
    }

    async fn copy(&self, client: &Connection, groups: &[&str]) -> Outcome {
        let uncopied = dead_letters::uncopied(client, groups, BATCH).await?;
        let topics: BTreeSet<String> = uncopied.iter().map(|copy| copy.letter.topic()).collect();
        for topic in &topics {
            self.confirm(topic).await?;
        }
        let letters: Vec<_> = uncopied.iter().map(|copy| copy.letter.clone()).collect();
        let answers = publish(&self.kafka, &self.client_id, &letters).await?;
        let (mut done, mut trouble): (Vec<Uncopied>, Option<String>) = (Vec::new(), None);
        for (copy, answer) in uncopied.into_iter().zip(answers) {
            match answer {
                Ok(()) => done.push(copy),
                Err(reason) => trouble = Some(format!("{}: {reason}", copy.letter.topic())),
            }
        }
        dead_letters::copied(client, &done).await?;
        match trouble {
            Some(reason) => Err(format!("dead letters are not copied to {reason}").into()),
            None => Ok(Some(format!("{} dead letters copied", done.len()))),
        }
    }

    /// The topic is there; made, if the configuration says how.
    async fn confirm(&self, topic: &str) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let kafka = Topics::new(&self.kafka, &self.client_id)?;
        match (kafka.check(topic).await?, self.topics.create(topic)) {
            (TopicState::Ready { .. }, _) => Ok(()),
            (TopicState::Missing, Some(create)) => Ok(kafka.create(topic, create).await?),
            (TopicState::Missing, None) => {
                Err(format!("topic `{topic}` does not exist: create it, or say how in `[topics.{topic}]`")
                    .into())
            }
            (TopicState::Forbidden, _) => Err(format!("topic `{topic}` is forbidden to us").into()),
            (TopicState::NotNow(reason), _) => Err(format!("topic `{topic}`: {reason}").into()),
        }
    }
}
