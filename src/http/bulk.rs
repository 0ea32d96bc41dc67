//! Decisions about many messages: carried out in steps by a task of its own, on record, until done or cancelled.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::Site;
use super::problem::Problem;
use crate::pg::operations::{self, Operation, Operator};
use crate::pg::retry::{self, BATCH, Decision, Entry, Place};

/// What is done within this time is answered as done.
const PATIENCE: Duration = Duration::from_secs(2);

/// Those that are under way in this process, with what cancels each.
#[derive(Default)]
pub(super) struct Bulk(Mutex<HashMap<i64, CancellationToken>>);

impl Bulk {
    fn running(&self) -> MutexGuard<'_, HashMap<i64, CancellationToken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it after its present step; false: it is not under way here.
    pub(super) fn cancel(&self, operation: i64) -> bool {
        let running = self.running();
        let token = running.get(&operation);
        token.inspect(|token| token.cancel()).is_some()
    }
}

/// Begins, and tells how far it is after a moment.
pub(super) async fn begin(
    site: &Arc<Site>,
    decision: Decision,
    entries: Vec<Entry>,
    selection: Value,
    by: Operator,
) -> Result<Operation, Problem> {
    let client = site.database.lend().await?;
    let operation = operations::begin(&client, decision.command(), &selection, &by).await?;
    drop(client);
    let token = CancellationToken::new();
    site.bulk.running().insert(operation, token.clone());
    let task = {
        let site = Arc::clone(site);
        tokio::spawn(async move {
            let result = match carry_out(&site, decision, operation, &entries, &token).await {
                Ok(true) => "done".to_owned(),
                Ok(false) => "interrupted".to_owned(),
                Err(problem) => problem.detail().to_owned(),
            };
            // If the database is gone its end stays open there, which tells as much.
            if let Ok(client) = site.database.lend().await {
                let _ = operations::end(&client, operation, &result).await;
            }
            site.bulk.running().remove(&operation);
        })
    };
    let _ = tokio::time::timeout(PATIENCE, task).await;
    let client = site.database.lend().await?;
    operations::show(&client, operation).await?.ok_or_else(|| Problem::not_found("the operation is gone"))
}

/// Says whether it came to its end.
async fn carry_out(
    site: &Site,
    decision: Decision,
    operation: i64,
    entries: &[Entry],
    token: &CancellationToken,
) -> Result<bool, Problem> {
    let places: Vec<Place> = entries.iter().map(|entry| entry.place.clone()).collect();
    for places in places.chunks(BATCH) {
        if token.is_cancelled() {
            return Ok(false);
        }
        let mut client = site.database.lend().await?;
        retry::decide(&mut client, decision, operation, places).await?;
    }
    Ok(true)
}
