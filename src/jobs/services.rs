//! What runs all the time, on the board beside the rest: the relay, the consumers, the heartbeat. They start with their
//! agent and end with it; none of them costs a statement for being shown.

use std::time::Duration;

use super::runner::{Job, Order};
use crate::domain::firings::Rules;
use crate::domain::schedule::Schedule;

pub const PROCESS_PENDING: &str = "process-pending";
pub const HEARTBEAT: &str = "heartbeat";

/// The relay. `hears` opens and shuts its gate, or lets it through at a firing.
pub fn process_pending(hears: impl Fn(Order) + Send + Sync + 'static) -> Job {
    Job::service(PROCESS_PENDING, Rules::forgiving(Schedule::Continuous), hears)
}

/// A consumer of a group, which hears its orders by itself.
pub fn consume(group: &str) -> Job {
    let rules = Rules::forgiving(Schedule::Continuous);
    Job::service(&format!("consume-{group}"), rules, |_| {}).role("consumer")
}

/// An agent's, which never stops.
pub fn heartbeat(every: Duration) -> Job {
    let rules = Rules::forgiving(Schedule::Every(every));
    Job::service(HEARTBEAT, rules, |_| {}).role("any")
}
