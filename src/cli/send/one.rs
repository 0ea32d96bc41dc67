//! One message from the command line.

use std::io::{self, IsTerminal, Read};

use anyhow::Context;
use serde_json::json;

use super::{Options, max_bytes, named_file};
use crate::cli::global::{Global, connect};
use crate::cli::output;
use crate::domain::new_message::{Due, NewMessage};
use crate::failure::{Exit, Failure, Kind};
use crate::pg::messages;

pub async fn run(options: &Options, global: &Global) -> anyhow::Result<Exit> {
    let config = global.load()?.config;
    let mut message = message(options);
    let limit = max_bytes(&config.kafka)?;
    // What the command line says is judged before standard input is asked for.
    check(&message, limit)?;
    message.payload = payload(options)?;
    check(&message, limit)?;
    let client = connect(&config, "send").await?;
    let id = messages::enqueue(&client, &message).await?;
    let printed =
        if options.json { output::json(&json!({ "id": id })) } else { output::line(&id.to_string()) };
    printed?;
    Ok(Exit::Done)
}

fn message(options: &Options) -> NewMessage {
    let facts = &options.facts;
    NewMessage {
        key: facts.key.clone(),
        headers: facts.headers.clone(),
        event_type: facts.event_type.clone(),
        idempotency_key: facts.idempotency_key.clone(),
        priority: facts.priority,
        due: facts.after.map(Due::After).or(facts.at.map(Due::At)).unwrap_or(Due::Now),
        id: facts.id,
        ..NewMessage::to(options.topic.clone().unwrap_or_default())
    }
}

fn payload(options: &Options) -> anyhow::Result<Option<Vec<u8>>> {
    if options.tombstone {
        return Ok(None);
    }
    if let Some(payload) = &options.payload {
        return Ok(Some(payload.clone().into_bytes()));
    }
    let mut bytes = Vec::new();
    if let Some(mut file) = named_file(options.file.as_deref())? {
        file.read_to_end(&mut bytes).context("the file cannot be read")?;
    } else {
        if io::stdin().is_terminal() {
            return Err(Failure::usage(
                "no payload: give it as the argument, with --file, or on standard input, which is a terminal here \
                 (--tombstone sends a message without one)",
            )
            .into());
        }
        io::stdin().lock().read_to_end(&mut bytes).context("standard input cannot be read")?;
    }
    Ok(Some(bytes))
}

fn check(message: &NewMessage, max_bytes: usize) -> Result<(), Failure> {
    message.check(max_bytes).map_err(|refused| Failure::new(Kind::Input, refused.to_string()))
}
