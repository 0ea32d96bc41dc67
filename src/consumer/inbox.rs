//! The reader of a group's retry topic. Every agent of the group reads all of it for itself, from where it ended when the
//! agent began, and hands on what names this agent. While it does not move, the agent takes no retries.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::Group;
use super::wait::Wait;
use crate::config::Create;
use crate::domain::dispatch::{self, Dispatch};
use crate::kafka::KafkaFailure;
use crate::kafka::topics::TopicState;
use crate::kafka::whole_topic::{Read, WholeTopic};

/// How often the topic is asked for its ends.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// The reader moves as long as it has come to ends that were seen within this time: less than what `process-retry` gives
/// it before it takes a dispatch for read.
const MOVES_FOR: Duration = Duration::from_secs(10);

/// How often it is looked whether the reader moves, if nothing comes.
const TICK: Duration = Duration::from_secs(1);

/// After an error of the client.
const REST: Duration = Duration::from_secs(1);

/// Dispatches are small, and every agent reads all of them.
const PARTITIONS: i32 = 1;

/// A dispatch that is older than this has long been taken back.
const RETENTION: Duration = Duration::from_secs(86_400);

/// What the topic had at that time: by partition its first offset, and the one behind its last.
#[derive(Clone, Debug)]
struct Seen {
    at: Instant,
    extents: BTreeMap<i32, (i64, i64)>,
}

/// Reads as long as it is not dropped.
pub(super) async fn read(group: Arc<Group>, dispatches: mpsc::UnboundedSender<Dispatch>) {
    let topic = dispatch::topic(&group.name);
    let (sender, seen) = watch::channel(None);
    let _watcher = AbortOnDropHandle::new(tokio::spawn(look(Arc::clone(&group), topic.clone(), sender)));
    // Whatever is lost later, it goes on from where it was: what was published meanwhile may be for this agent.
    let mut position = BTreeMap::new();
    loop {
        let ended = read_on(&group, &topic, &mut position, seen.clone(), &dispatches).await;
        let reason = ended.unwrap_or_else(|error| error.to_string());
        group.status.take_retries(false);
        tracing::warn!(group = &*group.name, topic, "the retry topic is read anew: {reason}");
        tokio::time::sleep(REST).await;
    }
}

/// Returns with the reason why this client is of no more use.
async fn read_on(
    group: &Group,
    topic: &str,
    position: &mut BTreeMap<i32, i64>,
    mut seen: watch::Receiver<Option<Seen>>,
    dispatches: &mpsc::UnboundedSender<Dispatch>,
) -> Result<String, KafkaFailure> {
    let mut reader = WholeTopic::new(&group.kafka, &group.client_id(), &group.kafka_group(), topic)?;
    if position.is_empty() {
        // The sender lives as long as the group does.
        let Ok(first) = seen.wait_for(Option::is_some).await else { return Ok("the group ends".into()) };
        let extents = first.iter().flat_map(|seen| &seen.extents);
        position.extend(extents.map(|(partition, (_, end))| (*partition, *end)));
    }
    reader.read_on(position)?;
    let (mut moved_at, mut read_at) = (None, BTreeMap::new());
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            read = reader.next() => match read {
                Read::Record(record) => {
                    position.insert(record.partition, record.offset + 1);
                    read_at.insert(record.partition, Instant::now());
                    if let Some(dispatch) = Dispatch::of(&record)
                        && dispatch.target == group.store.agent
                        && dispatch.group == *group.name
                    {
                        // Without a receiver the group has come to its end.
                        let _ = dispatches.send(dispatch);
                    }
                }
                // Until its end is known it is read again and again. What was in it comes again: a dispatch that is not
                // started is given out anew.
                Read::Illegible(reason) => {
                    let ahead = ahead(position, seen.borrow().as_ref());
                    if !ahead.is_empty() {
                        tracing::warn!(group = &*group.name, topic, "passing over what cannot be decoded: {reason}");
                        position.extend(ahead);
                        reader.read_on(position)?;
                    }
                }
                Read::Trouble(reason) => tracing::debug!(group = &*group.name, topic, "{reason}"),
                Read::Fatal(reason) => return Ok(reason),
            },
            _ = tick.tick() => {}
        }
        let latest = seen.borrow_and_update().clone();
        let Some(Seen { at, extents }) = latest else { continue };
        // What was read since is beyond the ends that were seen then.
        let is_older = |partition: &i32| read_at.get(partition).is_none_or(|read_at| *read_at < at);
        let astray: BTreeMap<i32, i64> =
            astray(position, &extents).into_iter().filter(|(partition, _)| is_older(partition)).collect();
        if !astray.is_empty() {
            position.extend(&astray);
            reader.read_on(position)?;
        }
        if extents.iter().all(|(partition, (_, end))| position.get(partition) >= Some(end)) {
            moved_at = Some(at);
        }
        let moves = moved_at.is_some_and(|at| at.elapsed() < MOVES_FOR);
        group.status.take_retries(moves);
    }
}

/// The ends that lie behind where it stands.
fn ahead(position: &BTreeMap<i32, i64>, seen: Option<&Seen>) -> BTreeMap<i32, i64> {
    let ends = seen.iter().flat_map(|seen| &seen.extents).map(|(partition, (_, end))| (*partition, *end));
    ends.filter(|(partition, end)| position.get(partition).is_none_or(|next| next < end)).collect()
}

/// Partitions that are new, or whose log is another than it was, are read from their beginning.
fn astray(position: &BTreeMap<i32, i64>, extents: &BTreeMap<i32, (i64, i64)>) -> BTreeMap<i32, i64> {
    let is_astray = |partition: &i32, first: i64, end: i64| {
        position.get(partition).is_none_or(|next| !(first..=end).contains(next))
    };
    let wrong = extents.iter().filter(|(partition, (first, end))| is_astray(partition, *first, *end));
    wrong.map(|(partition, (first, _))| (*partition, *first)).collect()
}

/// Asks for the topic's ends again and again, and makes the topic if it is not there.
async fn look(group: Arc<Group>, topic: String, seen: watch::Sender<Option<Seen>>) {
    let mut wait = Wait::new(&group.name, &group.status, "retry topic");
    loop {
        // Before it asks: it has come to these ends at the earliest.
        let at = Instant::now();
        match extents(&group, &topic).await {
            Ok(extents) => {
                std::mem::replace(&mut wait, Wait::new(&group.name, &group.status, "retry topic")).end();
                seen.send_replace(Some(Seen { at, extents }));
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Err(reason) => wait.pause(&format!("no retries are taken: {reason}")).await,
        }
    }
}

async fn extents(group: &Group, topic: &str) -> Result<BTreeMap<i32, (i64, i64)>, String> {
    let text = |error: KafkaFailure| error.to_string();
    let partitions = match group.topics.check(topic).await.map_err(text)? {
        TopicState::Ready { partitions } => partitions,
        TopicState::Missing => {
            let made = group.topics.create(topic, &create()).await;
            made.map_err(|reason| format!("topic `{topic}` does not exist and cannot be created: {reason}"))?;
            return Err(format!("topic `{topic}` has just been created"));
        }
        TopicState::Forbidden => return Err(format!("topic `{topic}` is forbidden to us")),
        TopicState::NotNow(reason) => return Err(format!("topic `{topic}`: {reason}")),
    };
    let mut extents = BTreeMap::new();
    for partition in 0..partitions {
        let extent = group.topics.extent(&(topic.into(), partition)).await.map_err(text)?;
        extents.insert(partition, (extent.low, extent.high));
    }
    Ok(extents)
}

fn create() -> Create {
    let config =
        [("cleanup.policy", "delete".to_owned()), ("retention.ms", RETENTION.as_millis().to_string())];
    let config = config.into_iter().map(|(property, value)| (property.to_owned(), value)).collect();
    Create { partitions: PARTITIONS, replication: -1, config }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_another_is_read_from_its_beginning() {
        let extents = BTreeMap::from([(0, (5, 9)), (1, (0, 2)), (2, (3, 3)), (3, (0, 4))]);
        let position = BTreeMap::from([(0, 4), (1, 3), (2, 3)]);
        assert_eq!(astray(&position, &extents), BTreeMap::from([(0, 5), (1, 0), (3, 0)]));
    }
}
