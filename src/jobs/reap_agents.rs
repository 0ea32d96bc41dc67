//! `reap-agents`: an agent that missed two beats is suspect, one that is silent for `inactive_after` is inactive.

use std::sync::Arc;

use super::runner::{Done, Job};
use crate::config;
use crate::domain::firings::Rules;
use crate::domain::schedule::Schedule;
use crate::pg::{Connector, agents};

pub const NAME: &str = "reap-agents";

/// Due as often as agents beat.
pub fn job(connector: Connector, agent: &config::Agent) -> Job {
    let connector = Arc::new(connector);
    let inactive_after = agent.inactive_after;
    let job = Job::new(NAME, Rules::forgiving(Schedule::Every(agent.heartbeat)), move |_| {
        let connector = Arc::clone(&connector);
        Box::pin(async move {
            let client = connector.connect().await?;
            let silent = agents::reap(&client, inactive_after).await?;
            let named: Vec<String> =
                silent.iter().map(|(name, status)| format!("{name} is {status}")).collect();
            Ok(Done::told(named.len(), (!named.is_empty()).then(|| named.join(", "))))
        })
    });
    job.role("any")
}
