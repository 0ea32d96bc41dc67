//! `outboxd messages`.

use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use uuid::Uuid;

use super::global::{Global, connect_to_look};
use super::output::{self, maybe};
use crate::config::Kafka;
use crate::domain::partition;
use crate::domain::payload::Payload;
use crate::failure::{Exit, Failure};
use crate::kafka::topics::{TopicState, Topics};
use crate::pg::inspect::{
    self, FailedAttempt, Failing, Handled, MessageFilter, MessageState, MessageStory, Publication,
    PublishedTo,
};

/// How long Kafka may take to say how many partitions a topic has: it is not needed for the rest.
const KAFKA_PATIENCE: Duration = Duration::from_secs(2);

const STATES: [&str; 7] = ["pending", "scheduled", "published", "parked", "held", "discarded", "replayed"];

/// Look at the messages of the outbox: their state, and what became of them
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  outboxd messages list --state parked")]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(List),
    Show(Show),
}

/// The newest messages, newest first
///
/// States: pending (committed, not yet published), scheduled (due later), published, parked (refused by Kafka for good:
/// an operator decides), held (waits behind a parked one, or for its topic), discarded (by an operator), replayed (by an
/// operator, as a new message that carries the same id).
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  outboxd messages list --topic orders --limit 10
  outboxd messages list --key customer-7 --json
  outboxd messages list --before 120000   the next page: older than the last SEQ of this one")]
struct List {
    /// Only of this topic. Those of outboxd itself, which name the agent of a retry (outboxd.retry.GROUP), are shown only so
    #[arg(long)]
    topic: Option<String>,
    #[arg(long)]
    key: Option<String>,
    #[arg(long, value_parser = PossibleValuesParser::new(STATES))]
    state: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Only those before this `seq`
    #[arg(long, value_name = "SEQ")]
    before: Option<i64>,
    /// One array of objects
    #[arg(long)]
    json: bool,
}

/// One message: its state, its content, and what each group did with it
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  outboxd messages show 0199e0c4-35a1-7d27-9a7e-5be91bd1c5f2")]
struct Show {
    /// The id that `send` and `enqueue` return: the message's own, or the derived one in header outboxd-id
    id: Uuid,
    /// One object
    #[arg(long)]
    json: bool,
}

impl Options {
    pub async fn run(&self, global: &Global) -> anyhow::Result<Exit> {
        match &self.command {
            Command::List(options) => options.run(global).await,
            Command::Show(options) => options.run(global).await,
        }
    }
}

impl List {
    async fn run(&self, global: &Global) -> anyhow::Result<Exit> {
        let filter = MessageFilter {
            topic: self.topic.clone(),
            key: self.key.clone(),
            state: self.state.clone(),
            before: self.before,
            limit: self.limit.into(),
        };
        let config = global.load()?.config;
        let client = connect_to_look(&config, "messages").await?;
        let messages = inspect::messages(&client, &filter).await?;
        if self.json {
            output::json(&messages)?;
        } else {
            let columns = ["SEQ", "ID", "STATE", "PRIORITY", "TOPIC", "KEY", "TYPE", "CREATED"];
            output::table(columns, messages.iter().map(row))?;
        }
        Ok(Exit::Done)
    }
}

fn row(message: &MessageState) -> [String; 8] {
    [
        message.seq.to_string(),
        message.id.to_string(),
        message.state.clone(),
        message.priority.to_string(),
        message.topic.clone(),
        maybe(message.key.clone()),
        maybe(message.event_type.clone()),
        output::time(message.created_at),
    ]
}

impl Show {
    async fn run(&self, global: &Global) -> anyhow::Result<Exit> {
        let config = global.load()?.config;
        let client = connect_to_look(&config, "messages").await?;
        let mut story = inspect::message(&client, self.id).await?.ok_or_else(|| {
            Failure::not_found(format!(
                "no message {} is in the outbox: it was never committed, or it is past its retention",
                self.id
            ))
        })?;
        tell_partition(&mut story, &config.kafka).await;
        if self.json {
            output::json(&story)?;
            return Ok(Exit::Done);
        }
        output::line(&describe(&story))?;
        if !story.handled.is_empty() {
            output::line("")?;
            let columns =
                ["GROUP", "AGENT", "ATTEMPT", "PARTITION", "OFFSET", "HANDLED", "TOOK", "DUPLICATE OF"];
            output::table(columns, story.handled.iter().map(handled))?;
        }
        if !story.failing.is_empty() {
            output::line("")?;
            let columns = ["GROUP", "STATE", "ATTEMPTS", "GIVEN UP", "FIRST", "NEXT", "ERROR"];
            output::table(columns, story.failing.iter().map(failing))?;
        }
        if !story.failed_attempts.is_empty() {
            output::line("")?;
            let columns = ["GROUP", "ATTEMPT", "AGENT", "FAILED", "ERROR"];
            output::table(columns, story.failed_attempts.iter().map(failed_attempt))?;
        }
        Ok(Exit::Done)
    }
}

/// Of several partitions, the one that the key or the id leads to, if Kafka tells soon how many there are. If there were
/// fewer when it was published, it need not be one of them.
async fn tell_partition(story: &mut MessageStory, kafka: &Kafka) {
    let Some(publication) = story.publication.as_mut().filter(|publication| publication.places.len() > 1)
    else {
        return;
    };
    let Ok(topics) = Topics::new(kafka, "outboxd-cli") else { return };
    let asked = tokio::time::timeout(KAFKA_PATIENCE, topics.check(&story.message.topic)).await;
    let Ok(Ok(TopicState::Ready { partitions })) = asked else { return };
    let partition = partition::of(story.message.key.as_deref(), story.message_id, partitions);
    if let Some(place) = publication.places.iter().copied().find(|place| place.partition == partition) {
        publication.places = vec![place];
    }
}

fn published(publication: &Publication) -> String {
    let began = output::time(publication.began_at);
    let ended = publication.ended_at.map_or("now".to_owned(), output::time);
    let by = maybe(publication.agent.as_ref().map(|agent| format!(", by {agent}")));
    format!("between {began} and {ended}{by}")
}

fn places(publication: &Publication) -> String {
    let place = |place: &PublishedTo| {
        format!("partition {}, offset at most {}", place.partition, place.offset_at_most)
    };
    publication.places.iter().map(place).collect::<Vec<_>>().join("; or ")
}

fn describe(story: &MessageStory) -> String {
    let message = &story.message;
    let derived = (story.message_id != message.id).then(|| story.message_id.to_string());
    let state = match &message.reason {
        Some(reason) => format!("{}: {reason}", message.state),
        None => message.state.clone(),
    };
    let mut facts = vec![
        ("id", message.id.to_string()),
        ("outboxd-id", maybe(derived)),
        ("state", state),
        ("topic", message.topic.clone()),
        ("key", maybe(message.key.clone())),
        ("type", maybe(message.event_type.clone())),
        ("priority", message.priority.to_string()),
        ("seq", message.seq.to_string()),
        ("created", output::time(message.created_at)),
        ("deliver after", maybe(message.deliver_after.map(output::time))),
        ("idempotency", maybe(message.idempotency_key.clone())),
        ("published", maybe(story.publication.as_ref().map(published))),
        ("to", maybe(story.publication.as_ref().map(places))),
    ];
    let Some(content) = &story.content else {
        facts.push(("payload", "not shown: this user may not read it".to_owned()));
        return output::facts(facts);
    };
    for (name, value) in content.headers.as_object().into_iter().flatten() {
        facts.push(("header", format!("{name}={}", value.as_str().unwrap_or_default())));
    }
    facts.push(match &content.payload {
        Payload::Text(Some(text)) => ("payload", text.clone()),
        Payload::Text(None) => ("payload", "none: a tombstone".to_owned()),
        Payload::Base64(bytes) => ("payload, base64", bytes.clone()),
    });
    output::facts(facts)
}

fn failing(failing: &Failing) -> [String; 7] {
    [
        failing.group.clone(),
        failing.state.clone(),
        failing.attempts.to_string(),
        maybe(failing.reason.clone()),
        maybe(failing.failed_at.map(output::time)),
        maybe(failing.next_attempt_at.map(output::time)),
        maybe(failing.error.clone()),
    ]
}

fn failed_attempt(attempt: &FailedAttempt) -> [String; 5] {
    [
        attempt.group.clone(),
        attempt.attempt.to_string(),
        attempt.agent.clone(),
        output::time(attempt.failed_at),
        attempt.error.clone(),
    ]
}

fn handled(handled: &Handled) -> [String; 8] {
    [
        handled.group.clone(),
        handled.agent.clone(),
        handled.attempt.to_string(),
        format!("{}/{}", handled.topic, handled.partition),
        handled.offset.to_string(),
        output::time(handled.handled_at),
        maybe(handled.took_seconds.map(output::age)),
        maybe(handled.duplicate_of),
    ]
}
