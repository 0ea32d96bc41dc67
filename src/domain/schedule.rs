//! When a job is due: `continuous`, `every 5s`, or cron.

/// A schedule as the configuration writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    Continuous,
    Every(std::time::Duration),
    Cron(String),
}
