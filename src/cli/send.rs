//! `outboxd send`.

mod lines;
mod one;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use chrono::{DateTime, Utc};
use clap::Args;
use uuid::Uuid;

use super::global::Global;
use crate::config::Kafka;
use crate::domain::priority::Priority;
use crate::failure::{Exit, Failure};

/// Insert messages into the outbox
///
/// One message: its payload is the argument, a file, or standard input, byte by byte; its id is printed.
///
/// With --lines, one JSON object a line: topic, key, payload (text, or a JSON value, which sets content-type) or
/// payload_base64, type, headers, idempotency_key, priority, deliver_after, id. They go in batches of up to 1000, each
/// in one transaction. A bad line is named and stops before its batch: what was inserted before it stays, and is said.
/// Exit 2 or 3: nothing was inserted. Exit 1: some lines were.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  outboxd send --topic orders --key customer-7 --type OrderPlaced '{\"id\":42}'
  outboxd send --topic orders --header content-type=application/json --file order.json
  outboxd send --topic reminders --after 10m 'time is up'
  outboxd send --topic orders --key customer-7 --tombstone
  outboxd send --lines --file messages.jsonl
  jq -c '{key: .id, payload: .}' < orders.jsonl | outboxd send --lines --topic orders")]
pub struct Options {
    /// Where to; with --lines for those that name none
    #[arg(long, required_unless_present = "lines")]
    topic: Option<String>,
    /// Many messages: one JSON object a line
    #[arg(long, conflicts_with_all = ["payload", "tombstone", "Facts"])]
    lines: bool,
    /// Read it instead of standard input; - is standard input
    #[arg(long, value_name = "PATH", conflicts_with = "payload")]
    file: Option<PathBuf>,
    /// No payload: in a compacted topic, the key is deleted
    #[arg(long, conflicts_with_all = ["payload", "file"])]
    tombstone: bool,
    /// The payload, as text
    payload: Option<String>,
    #[command(flatten)]
    facts: Facts,
    /// Print {"id":...}; with --lines, {"line":...,"id":...} for each as it is inserted
    #[arg(long)]
    json: bool,
}

/// Of one message.
#[derive(Args, Debug)]
struct Facts {
    /// Messages of one key keep their order
    #[arg(long)]
    key: Option<String>,
    /// What happened, like OrderPlaced: header `type`
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// A header of the record; repeat it for several
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// Messages with the same one are handled once per group
    #[arg(long)]
    idempotency_key: Option<String>,
    /// low, normal or high
    #[arg(long, default_value = "normal")]
    priority: Priority,
    /// Publish it after so long, like 10m
    #[arg(long, value_name = "DURATION", value_parser = delay)]
    after: Option<Duration>,
    /// Publish it at that time, like 2026-12-24T18:00:00Z
    #[arg(long, value_name = "RFC3339", value_parser = rfc3339, conflicts_with = "after")]
    at: Option<DateTime<Utc>>,
    /// Its id, instead of a derived one; a group handles an id once
    #[arg(long, value_name = "UUID")]
    id: Option<Uuid>,
}

impl Options {
    pub async fn run(&self, global: &Global) -> anyhow::Result<Exit> {
        if self.lines { lines::run(self, global).await } else { one::run(self, global).await }
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some(("", _)) => Err("it has no name: NAME=VALUE".into()),
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err("it has no `=`: NAME=VALUE".into()),
    }
}

fn rfc3339(text: &str) -> Result<DateTime<Utc>, String> {
    DateTime::parse_from_rfc3339(text)
        .map(|time| time.to_utc())
        .map_err(|error| format!("not RFC 3339: {error}"))
}

fn delay(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);
    let delay = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if delay > LONGEST { Err("more than a hundred years".into()) } else { Ok(delay) }
}

/// The file, unless that is standard input.
fn named_file(file: Option<&Path>) -> anyhow::Result<Option<std::fs::File>> {
    let Some(path) = file.filter(|path| path.as_os_str() != "-") else { return Ok(None) };
    let file = std::fs::File::open(path)
        .with_context(|| Failure::usage(format!("{} cannot be read", path.display())))?;
    Ok(Some(file))
}

/// librdkafka's limit for one record, in bytes.
fn max_bytes(kafka: &Kafka) -> Result<usize, Failure> {
    kafka.largest_record().map_err(Failure::usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_split_at_its_first_equals_sign() {
        assert_eq!(header("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(header("a="), Ok(("a".into(), String::new())));
        assert!(header("a").is_err() && header("=b").is_err());
    }

    #[test]
    fn a_delay_is_one_that_the_database_can_add() {
        assert_eq!(delay("1h 30s"), Ok(Duration::from_secs(3630)));
        assert!(delay("101years").is_err() && delay("soon").is_err());
    }

    #[test]
    fn a_time_without_a_zone_is_not_guessed_at() {
        assert!(rfc3339("2026-12-24T18:00:00").is_err() && rfc3339("2026-12-24").is_err());
        assert_eq!(rfc3339("2026-12-24T18:00:00+01:00"), Ok("2026-12-24T17:00:00Z".parse().unwrap()));
    }
}
