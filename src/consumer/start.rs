//! Where a group begins: entered in the database once in its life, and looked up for every assignment.

use std::collections::HashMap;
use std::sync::Arc;

use super::session::{Event, Events};
use super::wait::Wait;
use super::{ConsumerError, Group, SetupError};
use crate::config::Start;
use crate::domain::delivery::TopicPartition;
use crate::domain::start_offset::{Extent, StartOffset};
use crate::kafka::KafkaFailure;
use crate::kafka::topics::{TopicState, Topics};
use crate::pg::consuming::Declared;

/// What Kafka has of the group's topics.
pub(super) struct Inventory {
    pub(super) partitions: Vec<TopicPartition>,
    /// Topics that are not there, or not for us, in words.
    pub(super) missing: Vec<String>,
}

/// Asks for each topic.
pub(super) async fn inventory(topics: &Topics, wanted: &[String]) -> Result<Inventory, KafkaFailure> {
    let mut inventory = Inventory { partitions: Vec::new(), missing: Vec::new() };
    for topic in wanted {
        match topics.check(topic).await? {
            TopicState::Ready { partitions } => {
                let name: Arc<str> = topic.as_str().into();
                inventory.partitions.extend((0..partitions).map(|partition| (Arc::clone(&name), partition)));
            }
            TopicState::Missing => inventory.missing.push(format!("topic {topic} does not exist")),
            TopicState::Forbidden => inventory.missing.push(format!("topic {topic} is forbidden to us")),
            // Not missing: where a new group begins in it must be known first.
            TopicState::NotNow(reason) => return Err(topics.not_now(topic, &reason)),
        }
    }
    Ok(inventory)
}

/// Enters a group that is new, with where it begins, before it joins for the first time. A topic that does not exist
/// yet will be read from its beginning.
pub(super) async fn declare(group: &Group) -> Result<(), SetupError> {
    let declared = match group.store.standing(group.kafka_group()).await? {
        Declared::New => {
            let inventory = inventory(&group.topics, &group.config.topics).await?;
            let mut starts = Vec::with_capacity(inventory.partitions.len());
            for at in inventory.partitions {
                let extent = group.topics.extent(&at).await?;
                let offset = match group.config.start {
                    Start::Earliest => extent.low,
                    Start::Latest => extent.high,
                };
                starts.push((at, offset));
            }
            let declared = group.store.declare(group.kafka_group(), &starts).await?;
            if declared == Declared::New {
                tracing::info!(
                    group = &*group.name,
                    partitions = starts.len(),
                    "a new group: its start is stored"
                );
            }
            declared
        }
        declared => declared,
    };
    match declared {
        Declared::New | Declared::Known => Ok(group.store.subscribe(&group.config.topics).await?),
        Declared::Refused(reason) => Err(ConsumerError::Refused(reason).into()),
    }
}

/// Finds where each of these partitions begins, however long that takes, and tells one after the other, so that none
/// waits for another's broker.
pub(super) async fn find_starts(
    group: &Group,
    mut partitions: Vec<TopicPartition>,
    assignment: u64,
    events: &Events,
) {
    let mut wait = Wait::new(&group.name, &group.status, "start");
    loop {
        let problem = match find_once(group, &mut partitions, assignment, events).await {
            Ok(()) => break,
            Err(problem) => problem,
        };
        wait.pause(&format!("where to begin is not known: {problem}")).await;
    }
    wait.end();
}

/// Leaves those that could not be found.
async fn find_once(
    group: &Group,
    partitions: &mut Vec<TopicPartition>,
    assignment: u64,
    events: &Events,
) -> Result<(), SetupError> {
    let stored = group.store.positions(&group.config.topics).await?;
    let committed = group.topics.committed(partitions).await?;
    let mut problem = Ok(());
    let mut left = Vec::new();
    for at in partitions.drain(..) {
        match find(group, &at, &stored, &committed).await {
            // Without a loop there is nobody to tell.
            Ok(offset) => drop(events.send(Event::Found(at, assignment, offset))),
            Err(error) => {
                problem = Err(error.into());
                left.push(at);
            }
        }
    }
    *partitions = left;
    problem
}

async fn find(
    group: &Group,
    at: &TopicPartition,
    stored: &HashMap<TopicPartition, i64>,
    committed: &HashMap<TopicPartition, i64>,
) -> Result<i64, KafkaFailure> {
    let extent = group.topics.extent(at).await?;
    let start = extent.start(stored.get(at).copied(), committed.get(at).copied());
    tell_reset(&group.name, at, start);
    Ok(start.offset())
}

/// What each of these has now, asked until all have answered.
pub(super) async fn extents(
    group: &Group,
    partitions: Vec<(TopicPartition, i64)>,
) -> Vec<(TopicPartition, i64, Extent)> {
    let mut wait = Wait::new(&group.name, &group.status, "extents");
    let mut extents = Vec::with_capacity(partitions.len());
    for (at, next) in partitions {
        loop {
            match group.topics.extent(&at).await {
                Ok(extent) => break extents.push((at, next, extent)),
                Err(error) => wait.pause(&format!("a position is out of range: {error}")).await,
            }
        }
    }
    wait.end();
    extents
}

/// An offset out of range is never silent.
pub(super) fn tell_reset(group: &str, (topic, partition): &TopicPartition, start: StartOffset) {
    if let StartOffset::Reset { wanted, low } = start {
        tracing::error!(
            group,
            topic = &**topic,
            partition,
            "offset {wanted} is not in the log (records have gone by retention, or the topic is another): \
             reading on from the earliest record, {low}"
        );
    }
}
