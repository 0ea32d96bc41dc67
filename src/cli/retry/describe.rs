//! One of them in words.

use crate::cli::output::{self, maybe};
use crate::domain::payload::Payload;
use crate::pg::retry::Decided;
use crate::pg::{failures, parked};

/// One that Kafka refused.
pub fn refused(story: &parked::Story) -> String {
    let entry = &story.entry;
    let holds = match (story.stops_lane, story.holds_key) {
        (true, _) => "its lane, which stands still".to_owned(),
        (false, true) => format!("its key; {} later messages wait behind it", story.held_behind),
        (false, false) => String::new(),
    };
    let mut facts = vec![
        ("id", entry.id.to_string()),
        ("state", entry.state.clone()),
        ("since", output::time(entry.since)),
        ("error", maybe(entry.error.clone())),
        ("holds", holds),
        ("decided", maybe(story.decided.as_ref().map(decided))),
        ("topic", entry.topic.clone()),
        ("key", maybe(entry.key.clone())),
        ("type", maybe(entry.event_type.clone())),
        ("idempotency", maybe(story.idempotency_key.clone())),
        ("created", output::time(story.created_at)),
    ];
    for (name, value) in story.content.headers.as_object().into_iter().flatten() {
        facts.push(("header", format!("{name}={}", value.as_str().unwrap_or_default())));
    }
    facts.push(payload(&story.content.payload));
    output::facts(facts)
}

/// One that a group failed to handle.
pub fn failed(story: &failures::Story) -> String {
    let entry = &story.entry;
    let holds = format!("its key; {} later messages wait behind it", story.held_behind);
    let mut facts = vec![
        ("id", entry.id.to_string()),
        ("group", maybe(entry.group.clone())),
        (
            "state",
            if entry.state == story.stage {
                story.stage.clone()
            } else {
                format!("{}: {}", entry.state, story.stage)
            },
        ),
        ("since", output::time(entry.since)),
        ("error", maybe(entry.error.clone())),
        ("given up", maybe(story.reason.clone())),
        ("attempts", story.attempts.to_string()),
        ("failed first", maybe(story.failed_at.map(output::time))),
        ("next attempt", maybe(story.next_attempt_at.map(output::time))),
        ("holds", if story.held_behind > 0 { holds } else { String::new() }),
        ("decided", maybe(story.decided.as_ref().map(decided))),
        ("topic", format!("{}/{}, offset {}", entry.topic, story.partition, story.offset)),
        ("key", maybe(entry.key.clone())),
        ("type", maybe(entry.event_type.clone())),
        ("idempotency", maybe(story.idempotency_key.clone())),
        ("recorded", maybe(story.recorded_at.map(output::time))),
    ];
    for header in &story.headers {
        let text = |name: &str| header[name].as_str().unwrap_or_default();
        facts.push(("header", format!("{}={}{}", text("name"), text("value"), text("value_base64"))));
    }
    facts.push(payload(&story.payload));
    output::facts(facts)
}

/// A line of its history.
pub fn attempt(attempt: &failures::Attempt) -> [String; 4] {
    [
        attempt.attempt.to_string(),
        attempt.agent.clone(),
        output::time(attempt.failed_at),
        attempt.error.clone(),
    ]
}

fn decided(decided: &Decided) -> String {
    let Decided { command, database_user, os_user, host, operation } = decided;
    format!("{command}, by {os_user} on {host} as {database_user}, operation {operation}")
}

fn payload(payload: &Payload) -> (&'static str, String) {
    match payload {
        Payload::Text(Some(text)) => ("payload", text.clone()),
        Payload::Text(None) => ("payload", "none: a tombstone".to_owned()),
        Payload::Base64(bytes) => ("payload, base64", bytes.clone()),
    }
}
