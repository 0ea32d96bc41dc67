//! One process that takes message after message.

use std::io;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::super::super::reason;
use super::protocol::LONGEST_ANSWER;
use crate::outside::process::{GRACE, Group, LEFTOVERS, end};
use crate::outside::program::Program;

/// Bytes of a line of standard error that go to the log as one.
const LONGEST_COMPLAINT: usize = 8 * 1024;

/// Dropped, it is killed, with all that it started.
pub struct Process {
    child: Child,
    /// After the child, so that it is dropped before.
    group: Group,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// The end of its standard error.
    words: Arc<Mutex<Vec<u8>>>,
    complaints: AbortOnDropHandle<()>,
}

/// Why there is no answer.
pub enum Silence {
    /// It ended, or closed its input or output.
    Ended,
    TooLong,
    /// Before it had been told everything.
    TooSoon,
}

impl Process {
    pub fn start(program: &Program) -> io::Result<Self> {
        let mut child = program
            .command()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let group = Group::led_by(&child);
        let (Some(stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(io::Error::other("it has no pipes"));
        };
        let words = Arc::default();
        let pid = child.id().unwrap_or_default();
        let complaints = tokio::spawn(pass_on(stderr, program.name.clone(), pid, Arc::clone(&words)));
        tracing::debug!(program = program.name, pid, "a worker is started");
        Ok(Self {
            child,
            group,
            stdin,
            stdout: BufReader::new(stdout),
            words,
            complaints: AbortOnDropHandle::new(complaints),
        })
    }

    /// Whether it waits for a message: it has not ended, and has said nothing that nobody asked.
    pub fn is_quiet(&mut self) -> bool {
        self.stdout.fill_buf().now_or_never().is_none()
    }

    /// Gives it a line, and takes one.
    pub async fn ask(&mut self, line: &[u8]) -> Result<Vec<u8>, Silence> {
        let Self { child, stdin, stdout, .. } = self;
        let tell = async {
            stdin.write_all(line).await?;
            stdin.flush().await
        };
        let mut told = false;
        let talk = async {
            let hear = read_line(stdout, LONGEST_ANSWER);
            tokio::pin!(tell, hear);
            loop {
                // Who has the end of the line has been told: in this order, no honest answer comes too soon.
                tokio::select! {
                    biased;
                    sent = &mut tell, if !told => match sent {
                        Ok(()) => told = true,
                        Err(_) => return Err(Silence::Ended),
                    },
                    heard = &mut hear => return if told { heard } else { heard.and(Err(Silence::TooSoon)) },
                }
            }
        };
        tokio::pin!(talk);
        tokio::select! {
            biased;
            heard = &mut talk => heard,
            // What it said before it ended counts, though something that it left behind holds its output open.
            _ = child.wait() => timeout(LEFTOVERS, talk).await.unwrap_or(Err(Silence::Ended)),
        }
    }

    /// Kills it, and tells what became of it, and what it said last.
    pub async fn post_mortem(mut self) -> String {
        let status = timeout(LEFTOVERS, self.child.wait()).await;
        self.group.signal(Signal::KILL);
        self.group.disband();
        let _ = timeout(LEFTOVERS, &mut self.complaints).await;
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        let fate = match status {
            Ok(Ok(status)) => format!("the worker ended without an answer ({status})"),
            _ => "the worker closed its input or output".to_owned(),
        };
        reason::with_words(&fate, &words)
    }

    /// Its time is over: it is asked to end, and then made to.
    pub async fn cut(mut self) {
        let _ = end(&mut self.child, &self.group, Duration::ZERO).await;
        self.group.disband();
    }

    /// Nothing more will come: it ends by itself, or is made to.
    pub async fn retire(mut self) {
        drop(self.stdin);
        if let Ok(Some(_)) = end(&mut self.child, &self.group, GRACE).await {
            self.group.signal(Signal::KILL);
        }
        self.group.disband();
    }
}

/// A line without its end.
async fn read_line(stream: &mut BufReader<ChildStdout>, longest: usize) -> Result<Vec<u8>, Silence> {
    let mut line = Vec::new();
    loop {
        let chunk = stream.fill_buf().await.map_err(|_| Silence::Ended)?;
        if chunk.is_empty() {
            return Err(Silence::Ended);
        }
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let length = end.unwrap_or(chunk.len());
        if line.len() + length > longest {
            return Err(Silence::TooLong);
        }
        line.extend_from_slice(&chunk[..length]);
        stream.consume(end.map_or(length, |end| end + 1));
        if end.is_some() {
            return Ok(line);
        }
    }
}

/// Standard error goes to the log, line by line, and its end is remembered.
async fn pass_on(stderr: ChildStderr, program: String, pid: u32, words: Arc<Mutex<Vec<u8>>>) {
    let mut stream = BufReader::new(stderr);
    let mut line = Vec::new();
    let log = |line: &mut Vec<u8>| {
        let text = reason::legible(line);
        line.clear();
        if !text.is_empty() {
            tracing::info!(program, pid, "worker: {text}");
        }
    };
    while let Ok(chunk @ [_, ..]) = stream.fill_buf().await {
        let end = chunk.iter().position(|byte| *byte == b'\n').map(|end| end + 1);
        let taken = end.unwrap_or(chunk.len()).min(LONGEST_COMPLAINT);
        line.extend_from_slice(&chunk[..taken]);
        {
            let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
            words.extend_from_slice(&chunk[..taken]);
            let excess = words.len().saturating_sub(reason::LIMIT);
            words.drain(..excess);
        }
        stream.consume(taken);
        if end == Some(taken) || line.len() >= LONGEST_COMPLAINT {
            log(&mut line);
        }
    }
    log(&mut line);
}
