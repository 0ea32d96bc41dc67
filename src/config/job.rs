//! `[jobs.NAME]`: when something recurring runs.

use crate::domain::schedule::Schedule;

#[derive(Clone, Debug)]
pub struct Job {
    /// `None`: the job's own default.
    pub schedule: Option<Schedule>,
    pub enabled: bool,
}
