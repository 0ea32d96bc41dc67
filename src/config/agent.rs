//! `[agent]`: what is the same for every role.

use std::time::Duration;

pub const HEARTBEAT: Duration = Duration::from_secs(30);
pub const INACTIVE_AFTER: Duration = Duration::from_secs(300);
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(25);

#[derive(Clone, Debug)]
pub struct Agent {
    /// Chosen by the operator; else made of host, role and groups.
    pub name: Option<String>,
    pub heartbeat: Duration,
    pub inactive_after: Duration,
    pub drain_timeout: Duration,
}
