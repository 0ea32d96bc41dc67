//! What recurs: the runner, and the jobs that are built in, a file each. `runner` knows none of them.

pub mod cleanup;
pub mod dead_letters;
mod evidence;
mod logs;
pub mod own;
pub mod partitions;
pub mod process_retry;
pub mod reap_agents;
pub mod runner;
pub mod services;

use crate::config;
use crate::domain::firings::Rules;
use crate::domain::schedule::Schedule;
use runner::Job;

/// As the file has it.
pub fn configured(mut job: Job, config: Option<&config::Job>) -> Job {
    let Some(config) = config else { return job };
    job.enabled = config.enabled;
    if let Some(schedule) = &config.schedule {
        job.rules.schedule = schedule.clone();
    }
    job.rules.jitter = config.jitter;
    job.timeout = config.timeout.unwrap_or(job.timeout);
    job
}

/// Of jobs that are built in: they can run twice without harm, and whatever is late is made up for by the next run.
fn every(seconds: u64) -> Rules {
    Rules::forgiving(Schedule::Every(std::time::Duration::from_secs(seconds)))
}
