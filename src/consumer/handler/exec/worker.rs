//! `exec` with `mode = "worker"`: processes that live on, each with one message at a time, one line each way.

mod process;
mod protocol;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::super::{Answer, Closing, Handle, reason};
use crate::domain::backoff::Backoff;
use crate::domain::delivery::{Delivery, Outcome};
use crate::outside::SetupError;
use crate::outside::process::{GRACE, LEFTOVERS};
use crate::outside::program::Program;
use process::{Process, Silence};

/// Between the starts of processes while they fail.
const RESTART: Backoff = Backoff { first: Duration::from_millis(100), max: Duration::from_secs(10) };

/// As many processes as there were calls at once.
pub struct Workers {
    program: Program,
    timeout: Duration,
    idle: Mutex<Vec<Process>>,
    starts: Mutex<Starts>,
}

/// When the next process may be started.
struct Starts {
    /// Processes lost since the last answer.
    lost: u32,
    not_before: Instant,
}

impl Starts {
    /// The time for a start, taken from those that come after: while processes fail, starts are apart.
    fn take(&mut self, now: Instant, deadline: Instant) -> Result<Instant, Duration> {
        let at = self.not_before.max(now);
        if at >= deadline {
            return Err(at.duration_since(now));
        }
        if self.lost > 0 {
            self.not_before = at + RESTART.bound(self.lost);
        }
        Ok(at)
    }

    fn lost(&mut self, now: Instant) {
        self.lost = self.lost.saturating_add(1);
        self.not_before = self.not_before.max(now + RESTART.bound(self.lost));
    }

    fn answered(&mut self, now: Instant) {
        if self.lost > 0 {
            *self = Self { lost: 0, not_before: now };
        }
    }
}

impl Workers {
    pub fn new(command: &[String], timeout: Duration) -> Result<Self, SetupError> {
        Ok(Self {
            program: Program::new(command)?,
            timeout,
            idle: Mutex::default(),
            starts: Mutex::new(Starts { lost: 0, not_before: Instant::now() }),
        })
    }

    async fn give(&self, delivery: &Delivery) -> Outcome {
        let deadline = Instant::now() + self.timeout;
        let line = protocol::request(delivery, self.timeout);
        let mut worker = match self.hire(deadline).await {
            Ok(worker) => worker,
            Err(outcome) => return outcome,
        };
        let problem = match timeout_at(deadline, worker.ask(&line)).await {
            Err(_) => {
                self.starts().lost(Instant::now());
                worker.cut().await;
                return reason::timed_out(self.timeout);
            }
            Ok(Ok(line)) => match protocol::answer(&line, delivery) {
                Ok(outcome) => {
                    self.starts().answered(Instant::now());
                    self.idle().push(worker);
                    return outcome;
                }
                Err(problem) => format!("the worker was ended: {problem}"),
            },
            Ok(Err(Silence::Ended)) => worker.post_mortem().await,
            Ok(Err(Silence::TooLong)) => {
                format!(
                    "the worker was ended: its answer is longer than {} KiB",
                    protocol::LONGEST_ANSWER / 1024
                )
            }
            Ok(Err(Silence::TooSoon)) => {
                "the worker was ended: it answered before it had read its message".to_owned()
            }
        };
        self.starts().lost(Instant::now());
        reason::retry(problem)
    }

    /// One that waits, else a new one.
    async fn hire(&self, deadline: Instant) -> Result<Process, Outcome> {
        loop {
            let Some(mut worker) = self.idle().pop() else { break };
            if worker.is_quiet() {
                return Ok(worker);
            }
            // Nobody's message is to blame.
            tracing::info!(
                program = self.program.name,
                "a worker ended, or spoke unasked; another takes its place"
            );
        }
        let taken = self.starts().take(Instant::now(), deadline);
        let at = taken.map_err(|wait| Outcome::Retry {
            reason: format!(
                "program `{}` fails again and again; it is not started for now",
                self.program.name
            ),
            after: Some(wait),
        })?;
        sleep_until(at).await;
        Process::start(&self.program).map_err(|error| {
            self.starts().lost(Instant::now());
            reason::retry(self.program.explain(&error))
        })
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Process>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn starts(&self) -> MutexGuard<'_, Starts> {
        self.starts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handle for Workers {
    fn handle<'a>(&'a self, delivery: &'a Delivery) -> Answer<'a> {
        Box::pin(self.give(delivery))
    }

    fn timeout(&self) -> Duration {
        self.timeout.saturating_add(GRACE + 2 * LEFTOVERS)
    }

    fn close(&self) -> Closing<'_> {
        let workers = std::mem::take(&mut *self.idle());
        Box::pin(async { drop(join_all(workers.into_iter().map(Process::retire)).await) })
    }
}

#[cfg(test)]
mod tests;
