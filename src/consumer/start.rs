//! Where a group begins: entered in the database once in its life, and looked up for every assignment.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use uuid::Uuid;

use super::session::{Event, Events, Found};
use super::wait::Wait;
use super::{ConsumerError, Group, SetupError};
use crate::config::Start;
use crate::domain::delivery::TopicPartition;
use crate::domain::start_offset::{Extent, StartOffset};
use crate::kafka::KafkaFailure;
use crate::kafka::topics::{TopicState, Topics};
use crate::pg::consuming::{Declared, Settled, Stored};

/// Partitions of which it is found out at once where they begin: each asks Kafka, and most of them the database.
const AT_A_TIME: usize = 8;

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
    let declared = match group.store.standing(&group.kafka_group()).await? {
        Declared::New => {
            let inventory = inventory(&group.topics, &group.config().topics).await?;
            let start = group.config().start;
            let starts = inventory.partitions.into_iter().map(|at| async move {
                let extent = group.topics.extent(&at).await?;
                let offset = match start {
                    Start::Earliest => extent.low,
                    Start::Latest => extent.high,
                };
                Ok::<_, KafkaFailure>((at, offset))
            });
            let starts: Vec<_> = stream::iter(starts).buffered(AT_A_TIME).try_collect().await?;
            let declared = group.store.declare(&group.kafka_group(), &starts).await?;
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
        Declared::New | Declared::Known => Ok(group.store.subscribe(&group.config().topics).await?),
        Declared::Refused(reason) => Err(ConsumerError::Refused(reason).into()),
    }
}

/// Finds where each of these partitions begins, however long that takes, and tells each as soon as it is found, so that
/// none waits for another's broker.
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
    let stored = group.store.positions(&group.config().topics).await?;
    let known = Known {
        stored,
        committed: group.topics.committed(partitions).await?,
        ids: group.topics.ids(&group.config().topics).await?,
    };
    let known = &known;
    let finding = std::mem::take(partitions).into_iter().map(|at| async move {
        let found = find(group, &at, known).await;
        (at, found)
    });
    let mut finding = stream::iter(finding).buffer_unordered(AT_A_TIME);
    let mut problem = Ok(());
    while let Some((at, found)) = finding.next().await {
        match found {
            // Without a loop there is nobody to tell.
            Ok((start, topic_id)) => {
                drop(events.send(Event::Found(Found { at, assignment, start, topic_id })));
            }
            Err(error) => {
                problem = Err(error);
                partitions.push(at);
            }
        }
    }
    problem
}

/// What the database and Kafka say of the group's partitions, and which topics they are of now.
struct Known {
    stored: HashMap<TopicPartition, Stored>,
    committed: HashMap<TopicPartition, i64>,
    ids: HashMap<String, Uuid>,
}

async fn find(group: &Group, at: &TopicPartition, known: &Known) -> Result<(i64, Option<Uuid>), SetupError> {
    let extent = group.topics.extent(at).await?;
    let stored = known.stored.get(at);
    let before = stored.and_then(|stored| stored.topic_id);
    // A broker that tells none any more does not make it another.
    let topic_id = known.ids.get(&*at.0).copied().or(before);
    let start = if before.is_some() && before != topic_id {
        StartOffset::Anew { low: extent.low }
    } else {
        extent.start(stored.map(|stored| stored.next), known.committed.get(at).copied())
    };
    tell_reset(&group.name, at, start);
    if stored.is_none() {
        let (topic, partition) = (&*at.0, at.1);
        tracing::info!(
            group = &*group.name,
            topic,
            partition,
            "new to the group: it is read from its beginning"
        );
    }
    let goes_back = !matches!(start, StartOffset::At(_));
    let start = start.offset();
    group.store.settle(&Settled { at, start, topic_id, goes_back }).await?;
    Ok((start, topic_id))
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
            match look_at(group, &at, next).await {
                Ok(extent) => break extents.push((at, next, extent)),
                Err(error) => wait.pause(&format!("a position is out of range: {error}")).await,
            }
        }
    }
    wait.end();
    extents
}

/// A position that the log does not hold goes back in the database too, else it would be there again once the log has grown.
async fn look_at(group: &Group, at: &TopicPartition, next: i64) -> Result<Extent, SetupError> {
    let extent = group.topics.extent(at).await?;
    if let StartOffset::Reset { low: start, .. } = extent.clamp(next) {
        group.store.settle(&Settled { at, start, topic_id: None, goes_back: true }).await?;
    }
    Ok(extent)
}

/// An offset out of range is never silent.
pub(super) fn tell_reset(group: &str, (topic, partition): &TopicPartition, start: StartOffset) {
    let topic = &**topic;
    match start {
        StartOffset::At(_) => {}
        StartOffset::Reset { wanted, low } => tracing::error!(
            group,
            topic,
            partition,
            "offset {wanted} is not in the log (records have gone by retention, or the topic is another): \
             reading on from the earliest record, {low}"
        ),
        StartOffset::Anew { low } => tracing::error!(
            group,
            topic,
            partition,
            "the topic was deleted and made anew: it is read from its beginning, {low}"
        ),
    }
}
