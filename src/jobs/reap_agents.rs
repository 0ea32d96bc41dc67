//! `reap-agents`: an agent that missed two beats is suspect, one that is silent for `inactive_after` is inactive.

use std::sync::Arc;
use std::time::Duration;

use super::Job;
use crate::domain::schedule::Schedule;
use crate::pg::{Connector, agents};

/// As often as agents beat by default.
const EVERY: Duration = Duration::from_secs(30);

pub const NAME: &str = "reap-agents";

pub fn job(connector: Connector, inactive_after: Duration) -> Job {
    let connector = Arc::new(connector);
    Job {
        name: NAME,
        schedule: Schedule::Every(EVERY),
        body: Box::new(move || {
            let connector = Arc::clone(&connector);
            Box::pin(async move {
                let client = connector.connect().await?;
                let silent = agents::reap(&client, inactive_after).await?;
                let named: Vec<String> =
                    silent.iter().map(|(name, status)| format!("{name} is {status}")).collect();
                Ok((!named.is_empty()).then(|| named.join(", ")))
            })
        }),
    }
}
