//! Reading alone: a member of a group that takes records over as the consumer does, and does nothing with them.
//!
//! Twice: as our members read, and as a client does that leaves librdkafka's defaults. What that has read ahead (64 MB) it
//! finishes long before it fetches again, so that most of a second is a wait.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::sink::Ends;
use crate::config::Kafka;
use crate::kafka::subscribe::{Polled, Rebalance, Subscription};

/// A broker that brings nothing for so long brings nothing any more.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// From the start of the member to its last record.
    pub per_second: f64,
    /// Between the first and the last tenth.
    pub steady_per_second: f64,
}

/// As librdkafka has it, in milliseconds, where the configuration says nothing else.
pub fn with_defaults(kafka: &Kafka) -> Kafka {
    let mut kafka = kafka.clone();
    let wait = kafka.consumer.0.entry("fetch.queue.backoff.ms".into());
    wait.or_insert_with(|| "1000".into());
    kafka
}

/// Every record between the two, read by the one member of a new group.
#[allow(clippy::cast_precision_loss, reason = "counts of a benchmark")]
pub async fn alone(kafka: &Kafka, topic: &str, from: &Ends, to: &Ends) -> anyhow::Result<Reading> {
    let group = format!("bench-alone-{:08x}", fastrand::u32(..));
    let topics = [topic.to_owned()];
    let began = Instant::now();
    let mut member = Subscription::new(kafka, "outboxd-bench", &group, None, &topics)?;
    let count: i64 = from.iter().zip(to).map(|(from, to)| to - from).sum();
    let (tenth, last_tenth) = (count / 10, count - count / 10);
    let (mut read, mut steady_since, mut steady_until) = (0, began, began);
    while read < count {
        let polled = tokio::time::timeout(PATIENCE, member.next()).await;
        let mut next = match polled.with_context(|| format!("no record of {topic} came any more"))? {
            Polled::Record(record) => Some(record),
            Polled::Rebalance(Rebalance::Assigned(partitions)) => {
                let starts: Vec<_> = partitions
                    .into_iter()
                    .filter_map(|at| Some((at.clone(), *from.get(usize::try_from(at.1).ok()?)?)))
                    .collect();
                member.assign(&starts)?;
                None
            }
            Polled::Rebalance(other) => bail!("a member that is alone in its group was disturbed: {other:?}"),
            Polled::Fatal(reason) => bail!(reason),
            _ => None,
        };
        while let Some(record) = next {
            std::hint::black_box(&record);
            read += 1;
            if read == tenth {
                steady_since = Instant::now();
            } else if read == last_tenth {
                steady_until = Instant::now();
            }
            next = member.next_record();
        }
    }
    let whole = began.elapsed();
    member.leave().await;
    Ok(Reading {
        per_second: count as f64 / whole.as_secs_f64(),
        steady_per_second: (last_tenth - tenth) as f64 / (steady_until - steady_since).as_secs_f64(),
    })
}
