//! `exec`: a process per message, its payload on standard input, its facts in the environment; or processes that
//! live on and take one message after the other. No shell.

mod facts;
mod worker;

use std::process::ExitStatus;
use std::time::Duration;

use rustix::io::Errno;

use super::{Answer, Handle, reason};
use crate::domain::delivery::{Delivery, Outcome};
use crate::outside::SetupError;
use crate::outside::process::{self, Ended, GRACE, LEFTOVERS};
use crate::outside::program::Program;

pub use worker::Workers;

/// `EX_DATAERR` of sysexits: the message itself is wrong, no further try can succeed.
const PERMANENT: i32 = 65;

pub struct ExecHandler {
    program: Program,
    timeout: Duration,
}

impl ExecHandler {
    pub fn new(command: &[String], timeout: Duration) -> Result<Self, SetupError> {
        Ok(Self { program: Program::new(command)?, timeout })
    }

    async fn run(&self, delivery: &Delivery) -> Outcome {
        let mut command = self.program.command();
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
            Err(error) => reason::retry(self.program.explain(&error)),
        }
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

#[cfg(test)]
mod tests;
