//! `outboxd groups reset`.

use std::collections::HashMap;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use clap::Args;

use crate::cli::confirm::confirm;
use crate::cli::global::{Global, connect};
use crate::cli::output;
use crate::domain::delivery::TopicPartition;
use crate::failure::{Failure, Kind};
use crate::kafka::topics::{TopicState, Topics};
use crate::pg::connect::Connection;
use crate::pg::groups::{self, Group, Move};

/// Move a group that is stopped to another place in its topics
///
/// What it has handled before is still skipped when it comes again, on its evidence, unless --rehandle removes that.
/// Messages that failed keep their own story: see `outboxd retry`.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  outboxd groups reset orders --to 2026-11-01T00:00:00Z --dry-run
  outboxd groups reset orders --to earliest --rehandle --yes")]
pub struct Reset {
    group: String,
    /// earliest, latest, a time in RFC 3339 (the first record from then on), or an offset
    #[arg(long, value_name = "PLACE")]
    to: Place,
    /// Only in this topic
    #[arg(long)]
    topic: Option<String>,
    /// Only in this partition of it
    #[arg(long, requires = "topic")]
    partition: Option<i32>,
    /// Handle again what was handled: removes evidence and idempotency keys from that place on
    #[arg(long)]
    rehandle: bool,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Earliest,
    Latest,
    Time(DateTime<Utc>),
    Offset(i64),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            _ => match (text.parse::<i64>(), DateTime::parse_from_rfc3339(text)) {
                (Ok(offset), _) if offset >= 0 => Ok(Self::Offset(offset)),
                (_, Ok(time)) => Ok(Self::Time(time.to_utc())),
                _ => Err("earliest, latest, a time such as 2026-11-01T00:00:00Z, or an offset".into()),
            },
        }
    }
}

impl Reset {
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let config = global.load()?.config;
        let mut client = connect(&config, "groups").await?;
        let inactive_after = config.agent.inactive_after;
        let group = super::find(&client, &self.group, inactive_after).await?;
        if !group.agents.is_empty() {
            return Err(super::alive(&client, &group).await?.into());
        }
        let topics = Topics::of_group(&config.kafka, "outboxd-cli", &group.kafka_group)?;
        self.check(&topics, &group).await?;
        let moves = self.moves(&topics, &client, &group).await?;
        let columns = ["PARTITION", "FROM", "TO", "RECORDS"];
        output::table(columns, moves.iter().map(row))?;
        if moves.is_empty() {
            output::line("nothing to move")?;
            return Ok(());
        }
        if self.rehandle {
            let handled = groups::handled_from(&client, &group.name, &moves).await?;
            output::line(&format!("evidence to be removed: {handled}"))?;
        }
        if self.dry_run {
            return Ok(());
        }
        let again = if self.rehandle { ", and handle again what it has handled from there on" } else { "" };
        confirm(&format!("Move group {} in {} partitions{again}?", group.name, moves.len()), self.yes)?;
        let Some(removed) =
            groups::reset(&mut client, &group.name, &moves, self.rehandle, inactive_after).await?
        else {
            return Err(super::alive(&client, &group).await?.into());
        };
        // Behind the database: where the two differ a group begins at the lower one, and nothing is passed over.
        topics.commit(moves.iter().map(|wanted| (wanted.at.clone(), wanted.to)).collect()).await?;
        let removed = if self.rehandle { format!(", evidence removed: {removed}") } else { String::new() };
        output::line(&format!("moved group {} in {} partitions{removed}", group.name, moves.len()))?;
        Ok(())
    }

    /// Nobody reads, and it is the cluster that the group knows.
    async fn check(&self, topics: &Topics, group: &Group) -> anyhow::Result<()> {
        let cluster = topics.cluster_id().await?;
        if cluster != group.cluster_id {
            let message = format!(
                "group `{}` reads Kafka cluster {}, and [kafka] brokers names {cluster}",
                group.name, group.cluster_id
            );
            return Err(Failure::new(Kind::Configuration, message).into());
        }
        let members = topics.members(&group.kafka_group).await?;
        if members > 0 {
            let message =
                format!("Kafka group `{}` has {members} members: stop them first", group.kafka_group);
            return Err(Failure::new(Kind::Refused, message).into());
        }
        if let Some(topic) = self.topic.as_ref().filter(|topic| !group.topics.contains(topic)) {
            let message = format!("group `{}` does not read topic {topic}", group.name);
            return Err(Failure::not_found(message).into());
        }
        Ok(())
    }

    async fn moves(&self, topics: &Topics, client: &Connection, group: &Group) -> anyhow::Result<Vec<Move>> {
        let mut partitions: Vec<TopicPartition> = Vec::new();
        for topic in group.topics.iter().filter(|topic| self.topic.as_ref().is_none_or(|only| only == *topic))
        {
            match topics.check(topic).await? {
                TopicState::Ready { partitions: count } => {
                    partitions.extend((0..count).map(|partition| (topic.as_str().into(), partition)));
                }
                state => {
                    let message =
                        format!("topic {topic} cannot be read ({state:?}): name another with --topic");
                    return Err(Failure::not_found(message).into());
                }
            }
        }
        partitions.retain(|(_, partition)| self.partition.is_none_or(|only| only == *partition));
        if let (true, Some(partition)) = (partitions.is_empty(), self.partition) {
            return Err(Failure::not_found(format!("there is no partition {partition} in that topic")).into());
        }
        let at_time = match self.to {
            Place::Time(time) => topics.offsets_at(&partitions, time).await?,
            _ => HashMap::new(),
        };
        let stored = groups::positions(client, group).await?;
        let mut moves = Vec::new();
        for at in partitions {
            let extent = topics.extent(&at).await?;
            let to = match self.to {
                Place::Earliest => extent.low,
                Place::Latest => extent.high,
                Place::Time(_) => at_time.get(&at).copied().unwrap_or(extent.high),
                // A place that the log does not have: the nearest one that it has.
                Place::Offset(offset) => offset.clamp(extent.low, extent.high),
            };
            let from = stored.get(&at).copied();
            if from != Some(to) || self.rehandle {
                moves.push(Move { at, from, to });
            }
        }
        Ok(moves)
    }
}

fn row(wanted: &Move) -> [String; 4] {
    let (topic, partition) = &wanted.at;
    [
        format!("{topic}/{partition}"),
        output::maybe(wanted.from),
        wanted.to.to_string(),
        output::maybe(wanted.from.map(|from| format!("{:+}", wanted.to - from))),
    ]
}
