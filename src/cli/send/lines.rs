//! Many messages, one JSON object a line, in batches.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal};
use std::ops::RangeInclusive;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use uuid::Uuid;

use super::{Options, max_bytes, named_file};
use crate::cli::global::{Global, connect};
use crate::cli::output;
use crate::cli::report::kind;
use crate::domain::new_message::NewMessage;
use crate::failure::{Exit, Failure, Kind};
use crate::pg::connect::Connection;
use crate::pg::{PgError, messages};

/// Messages of a batch.
const BATCH: usize = 1000;
/// Bytes of lines after which a batch is closed: what the server must hold at once.
const BATCH_BYTES: usize = 8 << 20;

pub async fn run(options: &Options, global: &Global) -> anyhow::Result<Exit> {
    let config = global.load()?.config;
    let file = named_file(options.file.as_deref())?;
    if file.is_none() && io::stdin().is_terminal() {
        return Err(
            Failure::usage("no lines: give --file, or standard input, which is a terminal here").into()
        );
    }
    let progress = progress(file.as_ref());
    let batches = Batches::new(reader(file), options.topic.as_deref(), max_bytes(&config.kafka)?);
    let client = connect(&config, "send").await?;
    let mut inserted = Inserted { messages: 0, last_line: 0, shows_ids: options.json };
    let sent = insert_all(&client, batches, &mut inserted, &progress).await;
    progress.finish_and_clear();
    match sent {
        Ok(()) if options.json => {}
        Ok(()) => output::line(&format!("{} messages inserted", inserted.messages))?,
        Err(error) => return Err(inserted.explain(error)),
    }
    Ok(Exit::Done)
}

async fn insert_all<R: BufRead>(
    client: &Connection,
    mut batches: Batches<'_, R>,
    inserted: &mut Inserted,
    progress: &ProgressBar,
) -> anyhow::Result<()> {
    while let Some(batch) = batches.next()? {
        let ids =
            messages::enqueue_all(client, &batch.messages).await.map_err(|error| batch.explain(error))?;
        inserted.messages += ids.len();
        inserted.last_line = *batch.lines().end();
        progress.inc(batch.bytes as u64);
        progress.set_message(format!("{} messages", inserted.messages));
        if inserted.shows_ids {
            match progress.suspend(|| print_ids(&batch.numbers, &ids)) {
                // Nobody reads them any more; the messages go in all the same.
                Err(error) if error.is_closed() => inserted.shows_ids = false,
                printed => printed?,
            }
        }
    }
    Ok(())
}

/// What is in, whatever comes.
struct Inserted {
    messages: usize,
    last_line: usize,
    shows_ids: bool,
}

impl Inserted {
    /// What was inserted stays: after that a bad line is no wrong usage any more, to be repeated as a whole.
    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        if self.messages > 0 {
            let what = format!("lines 1-{} are inserted, {} messages; then", self.last_line, self.messages);
            error.context(Failure::new(Kind::Other, what))
        } else if kind(&error) == Kind::Input {
            error.context("nothing is inserted")
        } else {
            error
        }
    }
}

fn print_ids(numbers: &[usize], ids: &[Uuid]) -> Result<(), output::OutputError> {
    let lines: Vec<_> =
        numbers.iter().zip(ids).map(|(line, id)| json!({ "line": line, "id": id }).to_string()).collect();
    output::line(&lines.join("\n"))
}

fn reader(file: Option<File>) -> Box<dyn BufRead> {
    const BUFFER: usize = 1 << 18;
    match file {
        Some(file) => Box::new(BufReader::with_capacity(BUFFER, file)),
        None => Box::new(BufReader::with_capacity(BUFFER, io::stdin())),
    }
}

/// A bar if the length is known, else a count; nothing if standard error is not a terminal.
fn progress(file: Option<&File>) -> ProgressBar {
    let length =
        file.and_then(|file| file.metadata().ok()).filter(std::fs::Metadata::is_file).map(|file| file.len());
    let (bar, template) = match length {
        Some(length) => {
            (ProgressBar::new(length), "{wide_bar} {percent}%  {msg}  {bytes_per_sec}, {eta} left")
        }
        None => (ProgressBar::new_spinner(), "{spinner} {msg}  {bytes_per_sec}"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Lines that are inserted together.
#[derive(Debug, Default, PartialEq)]
struct Batch {
    messages: Vec<NewMessage>,
    /// The line of each message, from 1.
    numbers: Vec<usize>,
    bytes: usize,
}

impl Batch {
    fn lines(&self) -> RangeInclusive<usize> {
        self.numbers.first().copied().unwrap_or(0)..=self.numbers.last().copied().unwrap_or(0)
    }

    fn explain(&self, error: PgError) -> anyhow::Error {
        if !error.is_connection() {
            return error.into();
        }
        // The answer to a commit may be what was lost.
        let lines = self.lines();
        let what = format!("lines {}-{} may or may not be inserted", lines.start(), lines.end());
        anyhow::Error::from(error).context(Failure::new(Kind::Other, what))
    }

    fn is_full(&self) -> bool {
        self.messages.len() == BATCH || self.bytes >= BATCH_BYTES
    }
}

/// Reads batches from lines; blank ones are counted and skipped.
struct Batches<'a, R> {
    reader: R,
    topic: Option<&'a str>,
    max_bytes: usize,
    line: usize,
    buffer: Vec<u8>,
}

impl<'a, R: BufRead> Batches<'a, R> {
    fn new(reader: R, topic: Option<&'a str>, max_bytes: usize) -> Self {
        Self { reader, topic, max_bytes, line: 0, buffer: Vec::new() }
    }

    /// `None` at the end. A bad line is an error in place of its whole batch.
    fn next(&mut self) -> anyhow::Result<Option<Batch>> {
        let mut batch = Batch::default();
        while !batch.is_full() {
            self.buffer.clear();
            let bytes =
                self.reader.read_until(b'\n', &mut self.buffer).context("the lines cannot be read")?;
            if bytes == 0 {
                break;
            }
            self.line += 1;
            batch.bytes += bytes;
            if let Some(message) = self.parse()? {
                batch.messages.push(message);
                batch.numbers.push(self.line);
            }
        }
        Ok(Some(batch).filter(|batch| !batch.messages.is_empty()))
    }

    fn parse(&self) -> Result<Option<NewMessage>, Failure> {
        let bad = |reason: String| Failure::new(Kind::Input, format!("line {}: {reason}", self.line));
        let text =
            std::str::from_utf8(&self.buffer).map_err(|error| bad(format!("not UTF-8: {error}")))?.trim();
        if text.is_empty() {
            return Ok(None);
        }
        NewMessage::from_json(text, self.topic, self.max_bytes)
            .map(Some)
            .map_err(|error| bad(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batches(text: &str) -> Batches<'_, &[u8]> {
        Batches::new(text.as_bytes(), Some("t"), 1_000_000)
    }

    #[test]
    fn batches_hold_a_thousand_in_order_with_the_numbers_of_their_lines() {
        let text: String =
            (0..1001).map(|n| ["\n{\"payload\":\"", &n.to_string(), "\"}\n"].concat()).collect();
        let mut batches = batches(&text);
        let first = batches.next().unwrap().unwrap();
        assert_eq!((first.messages.len(), first.lines()), (1000, 2..=2000));
        assert_eq!(first.messages[999].payload.as_deref(), Some(&b"999"[..]));
        let second = batches.next().unwrap().unwrap();
        assert_eq!((second.messages.len(), second.lines()), (1, 2002..=2002));
        assert_eq!(batches.next().unwrap(), None);
    }

    #[test]
    fn a_batch_is_bounded_in_bytes() {
        let line = format!("{{\"payload\":\"{}\"}}\n", "x".repeat(900_000));
        let text = line.repeat(20);
        let first = batches(&text).next().unwrap().unwrap();
        assert_eq!(first.messages.len(), BATCH_BYTES.div_ceil(line.len()));
    }

    #[test]
    fn a_bad_line_is_named_and_takes_its_batch_with_it() {
        let good = "{\"payload\":\"x\"}\n".repeat(1500);
        let text = format!("{good}{{\"payload\":7,\"keys\":1}}\n{good}");
        let mut batches = batches(&text);
        assert!(batches.next().unwrap().is_some());
        let error = batches.next().unwrap_err();
        assert_eq!(error.to_string(), "line 1501: unknown key `keys`: did you mean `key`?");
    }

    #[test]
    fn bytes_that_are_no_text_are_a_bad_line() {
        let mut batches = Batches::new(&b"{\"payload\":\"\xff\"}\n"[..], Some("t"), 1_000_000);
        assert!(batches.next().unwrap_err().to_string().starts_with("line 1: not UTF-8"));
    }

    #[test]
    fn what_was_inserted_is_said_and_tells_the_exit_code() {
        let bad_line = || anyhow::Error::from(Failure::new(Kind::Input, "line 7: no topic"));
        let after =
            |messages, last_line| Inserted { messages, last_line, shows_ids: false }.explain(bad_line());
        assert_eq!(
            (kind(&after(0, 0)), format!("{:#}", after(0, 0))),
            (Kind::Input, "nothing is inserted: line 7: no topic".into())
        );
        assert_eq!(kind(&after(5, 6)), Kind::Other);
        assert!(after(5, 6).to_string().starts_with("lines 1-6 are inserted, 5 messages"));
    }

    #[test]
    fn a_lost_connection_leaves_the_fate_of_its_batch_open() {
        let batch = Batch { numbers: vec![3, 5], ..Batch::default() };
        let lost = PgError::Unreachable { address: "a@b".into(), source: anyhow::anyhow!("gone") };
        assert_eq!(batch.explain(lost).to_string(), "lines 3-5 may or may not be inserted");
        assert_eq!(batch.explain(PgError::Setup("no".into())).to_string(), "no");
    }
}
