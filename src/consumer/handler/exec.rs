//! `exec`: a process per message, its payload on standard input, its facts in the environment. No shell.

mod facts;
mod process;

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::fs::{Access, access};
use rustix::io::Errno;

use super::{Answer, Handle, HandlerError, reason};
use crate::domain::delivery::{Delivery, Outcome};
use process::{Ended, GRACE, LEFTOVERS};

/// `EX_DATAERR` of sysexits: the message itself is wrong, no further try can succeed.
const PERMANENT: i32 = 65;

/// What overrides the configuration may hold secrets, and is outboxd's own.
const OVERRIDES: &str = "OUTBOXD__";

/// Where a program is looked for if `PATH` is not set, as the C library does.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

pub struct ExecHandler {
    program: String,
    arguments: Vec<String>,
    timeout: Duration,
    /// Variables of the daemon that are not for the program.
    withheld: Vec<OsString>,
}

impl ExecHandler {
    pub fn new(command: &[String], timeout: Duration) -> Result<Self, HandlerError> {
        let (program, arguments) = command
            .split_first()
            .filter(|(program, _)| !program.is_empty())
            .ok_or(HandlerError::NoCommand)?;
        find(program).map_err(|problem| HandlerError::Program { program: program.clone(), problem })?;
        let withheld = std::env::vars_os()
            .map(|(name, _)| name)
            .filter(|name| name.as_encoded_bytes().starts_with(OVERRIDES.as_bytes()))
            .collect();
        Ok(Self { program: program.clone(), arguments: arguments.to_vec(), timeout, withheld })
    }

    async fn run(&self, delivery: &Delivery) -> Outcome {
        let mut command = tokio::process::Command::new(&self.program);
        command.args(&self.arguments);
        for name in &self.withheld {
            command.env_remove(name);
        }
        for (name, value) in facts::of(delivery) {
            match value {
                Some(value) => command.env(name, value),
                // The daemon's own environment may have one by this name.
                None => command.env_remove(name),
            };
        }
        let payload = delivery.record.payload.as_deref().unwrap_or_default();
        match process::run(command, payload, self.timeout).await {
            Ok(Ended { status: Some(status), words }) => judge(status, &words),
            Ok(Ended { status: None, .. }) => reason::timed_out(self.timeout),
            Err(error) if error.raw_os_error() == Some(Errno::TOOBIG.raw_os_error()) => Outcome::Permanent {
                reason: "its key or headers are too large for the environment of a program".into(),
            },
            Err(error) => reason::retry(self.explain(&error)),
        }
    }

    fn explain(&self, error: &io::Error) -> String {
        let hint = if error.kind() == io::ErrorKind::NotFound {
            " (is it still there, and the interpreter that its first line names?)"
        } else {
            ""
        };
        format!("program `{}` could not be run: {error}{hint}", self.program)
    }
}

impl Handle for ExecHandler {
    fn handle<'a>(&'a self, delivery: &'a Delivery) -> Answer<'a> {
        Box::pin(self.run(delivery))
    }

    fn timeout(&self) -> Duration {
        self.timeout.saturating_add(GRACE + LEFTOVERS)
    }
}

fn judge(status: ExitStatus, words: &[u8]) -> Outcome {
    match status.code() {
        Some(0) => Outcome::Done,
        Some(PERMANENT) => Outcome::Permanent { reason: reason::with_words(&status.to_string(), words) },
        _ => reason::retry(reason::with_words(&status.to_string(), words)),
    }
}

/// Looks a program up as `execvp` will.
fn find(program: &str) -> Result<(), &'static str> {
    if program.contains('/') {
        return check(Path::new(program));
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    let mut found = Err("is not in PATH");
    for candidate in
        std::env::split_paths(&path).map(|folder| folder.join(program)).filter(|path| path.exists())
    {
        found = check(&candidate);
        if found.is_ok() {
            break;
        }
    }
    found
}

fn check(path: &Path) -> Result<(), &'static str> {
    if !path.exists() {
        return Err("does not exist");
    }
    if !path.is_file() {
        return Err("is not a file");
    }
    access(path, Access::EXEC_OK).map_err(|_| "is not executable by the daemon's user")
}

#[cfg(test)]
mod tests;
