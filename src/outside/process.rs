//! Runs one program to its end, within a time, whatever it does with its pipes and its children.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;

use super::words;

/// Between the request to end and the order.
pub const GRACE: Duration = Duration::from_secs(2);

/// How long to wait for the pipes of a program that has ended: something that it left in the background holds them.
pub const LEFTOVERS: Duration = Duration::from_millis(100);

/// How a program ended.
pub struct Ended {
    /// `None`: it was ended, because its time was over.
    pub status: Option<ExitStatus>,
    /// The end of its standard error.
    pub words: Vec<u8>,
}

/// Starts a program, gives it its input, and sees it end within `limit`, or ends it with all of its children.
/// Dropped before, it does the same at once.
pub async fn run(mut command: Command, input: &[u8], limit: Duration) -> io::Result<Ended> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = command.spawn()?;
    // After the child, so that it is dropped before: until its leader is reaped, no other group can have that number.
    let mut group = Group::led_by(&child);
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let mut words = Vec::new();
    let status = {
        let talk = async { tokio::join!(feed(stdin, input), keep_the_end(stderr, &mut words)) };
        let end = end(&mut child, &group, limit);
        tokio::pin!(talk, end);
        let mut talking = true;
        let status = loop {
            tokio::select! {
                status = &mut end => break status,
                _ = &mut talk, if talking => talking = false,
            }
        };
        if talking {
            // Nothing is lost if this ends early: what the program itself wrote is read first.
            let _ = timeout(LEFTOVERS, talk).await;
        }
        status?
    };
    group.disband();
    Ok(Ended { status, words })
}

/// Waits for the end of the program, and ends it when its time is over: `None`.
pub async fn end(child: &mut Child, group: &Group, limit: Duration) -> io::Result<Option<ExitStatus>> {
    if let Ok(status) = timeout(limit, child.wait()).await {
        return status.map(Some);
    }
    group.signal(Signal::TERM);
    let _ = timeout(GRACE, child.wait()).await;
    // Also when the leader has gone: a child of it may have ignored the request.
    group.signal(Signal::KILL);
    child.wait().await?;
    Ok(None)
}

/// Writes the input and closes. A program need not read it: what went wrong with it, its exit tells.
async fn feed(stdin: Option<ChildStdin>, input: &[u8]) {
    if let Some(mut stdin) = stdin {
        let _ = stdin.write_all(input).await;
    }
}

/// Reads to the end, so that the program never waits for a reader, and keeps only the last bytes.
async fn keep_the_end(stream: Option<impl AsyncRead + Unpin>, end: &mut Vec<u8>) {
    let Some(mut stream) = stream else { return };
    let mut chunk = vec![0; 8 * words::LIMIT];
    while let Ok(count @ 1..) = stream.read(&mut chunk).await {
        end.extend_from_slice(&chunk[..count]);
        end.drain(..end.len().saturating_sub(words::LIMIT));
    }
}

/// The process group of a program, which is killed if it is forgotten.
pub struct Group(Option<Pid>);

impl Group {
    pub fn led_by(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw))
    }

    /// A group that is gone has had what the signal asks for.
    pub fn signal(&self, signal: Signal) {
        if let Some(leader) = self.0 {
            let _ = kill_process_group(leader, signal);
        }
    }

    /// What it left in the background goes its own way.
    pub fn disband(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}
