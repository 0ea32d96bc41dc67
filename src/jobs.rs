//! What recurs: each job has a name, a schedule and a body without input that may run twice without harm.

pub mod cleanup;
pub mod dead_letters;
mod evidence;
mod logs;
pub mod partitions;
pub mod process_retry;
pub mod reap_agents;

use std::pin::Pin;
use std::time::Duration;

use chrono::Utc;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::domain::schedule::Schedule;

/// Between two runs of a job that is always due.
const REST: Duration = Duration::from_secs(1);

/// A run that takes longer is cut.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What a run says: a line for the log if it did something.
pub type Outcome = Result<Option<String>, Box<dyn std::error::Error + Send + Sync>>;

/// Something that the runner starts by schedule.
pub struct Job {
    pub name: &'static str,
    pub schedule: Schedule,
    /// Runs once before the first firing as well.
    pub at_start: bool,
    pub body: Box<dyn Fn() -> Pin<Box<dyn Future<Output = Outcome> + Send>> + Send + Sync>,
}

impl Job {
    /// As the file has it: `None` if it is switched off there.
    pub fn configured(mut self, config: Option<&config::Job>) -> Option<Self> {
        if let Some(config) = config {
            if !config.enabled {
                return None;
            }
            if let Some(schedule) = &config.schedule {
                self.schedule = schedule.clone();
            }
        }
        Some(self)
    }

    /// Runs it at each firing, one run at a time, until `drain`.
    pub async fn run(self, drain: CancellationToken) {
        let mut failures = 0_u32;
        let mut at_start = self.at_start;
        loop {
            let now = Utc::now();
            let Some(next) = self.schedule.next_after(now) else { return };
            let wait = match (next - now).to_std() {
                _ if std::mem::take(&mut at_start) => Duration::ZERO,
                _ if next == now => REST,
                wait => wait.unwrap_or_default(),
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = drain.cancelled() => return,
            }
            let trouble = match tokio::time::timeout(TIMEOUT, (self.body)()).await {
                Ok(Ok(done)) => {
                    if let Some(done) = done {
                        tracing::info!(job = self.name, "{done}");
                    }
                    failures = 0;
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("cut after {}", humantime::format_duration(TIMEOUT)),
            };
            failures += 1;
            // Told at growing distances while it goes on.
            if failures.is_power_of_two() {
                let name = self.name;
                tracing::warn!(
                    job = name,
                    failures,
                    "the job failed and runs again at its next firing: {trouble}"
                );
            }
        }
    }
}
