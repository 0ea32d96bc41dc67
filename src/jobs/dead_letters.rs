//! `dead-letters`: copies what a group gave up to `<topic>-dlt`, for groups that say so. A copy that was acknowledged is
//! marked; one that may not have been is made again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::every;
use super::runner::{Done, Failure, Job, Outcome};
use crate::config::{self, Group};
use crate::kafka::dead_letters::publish;
use crate::kafka::topics::{TopicState, Topics};
use crate::pg::Connector;
use crate::pg::connect::Connection;
use crate::pg::dead_letters::{self, Uncopied};

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
    let wanted = groups.clone();
    let copies = Arc::new(Copies { connector, kafka, client_id, topics, groups });
    let job = Job::new(NAME, every(5), move |_| {
        let copies = Arc::clone(&copies);
        Box::pin(async move { copies.run().await })
    });
    Some(job.probe(move |client| {
        let groups = wanted.clone();
        Box::pin(async move {
            let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
            Ok(!dead_letters::uncopied(client, &groups, 1).await?.is_empty())
        })
    }))
}

impl Copies {
    async fn run(&self) -> Outcome {
        let client = self.connector.connect().await?;
        let groups: Vec<&str> = self.groups.iter().map(String::as_str).collect();
        self.copy(&client, &groups).await
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
        if let Some(reason) = trouble {
            return Err(format!("dead letters are not copied to {reason}").into());
        }
        let copied = done.len();
        Ok(Done::told(copied, (copied > 0).then(|| format!("{copied} dead letters copied"))))
    }

    /// The topic is there; made, if the configuration says how.
    async fn confirm(&self, topic: &str) -> Result<(), Failure> {
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
