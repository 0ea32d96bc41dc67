//! Decisions about many messages: carried out in steps by a task of its own, on record, until done or cancelled.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::Site;
use super::problem::Problem;
use crate::pg::connect::Connection;
use crate::pg::operations::{self, Operation, Operator};
use crate::pg::retry::{self, BATCH, Behind, Decision, Entry, Filter};

/// What is done within this time is answered as done.
const PATIENCE: Duration = Duration::from_secs(2);

/// Messages that are looked up at a time, and more than that are not in memory.
const PAGE: i64 = 1_000;

/// Where the counting of a preview ends.
const MOST_COUNTED: usize = 10_000;

/// Which messages a decision is about.
pub(super) enum Chosen {
    /// Found by their ids.
    These(Vec<Entry>),
    AllThatFit(Filter),
}

impl Chosen {
    /// As the record has it.
    pub(super) fn on_record(&self) -> Value {
        match self {
            Self::These(entries) => {
                let ids: BTreeSet<_> = entries.iter().map(|entry| entry.id).collect();
                json!({ "ids": ids })
            }
            Self::AllThatFit(filter) => json!(filter),
        }
    }

    /// Which they are now, as far as anybody counts.
    pub(super) async fn counted(&self, client: &Connection) -> Result<Vec<Entry>, Problem> {
        match self {
            Self::These(entries) => Ok(entries.clone()),
            Self::AllThatFit(filter) => {
                let limit = i64::try_from(MOST_COUNTED).ok();
                Ok(retry::list(client, &Filter { limit, ..filter.clone() }).await?)
            }
        }
    }
}

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
    chosen: Chosen,
    by: Operator,
) -> Result<Operation, Problem> {
    let client = site.database.lend().await?;
    let chosen = match chosen {
        Chosen::AllThatFit(filter) => Chosen::AllThatFit(retry::until_now(&client, filter).await?),
        these @ Chosen::These(_) => these,
    };
    let operation = operations::begin(&client, decision.command(), &chosen.on_record(), &by).await?;
    drop(client);
    let token = CancellationToken::new();
    site.bulk.running().insert(operation, token.clone());
    let task = {
        let site = Arc::clone(site);
        tokio::spawn(async move {
            let result = match carry_out(&site, decision, operation, chosen, &token).await {
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
    chosen: Chosen,
    token: &CancellationToken,
) -> Result<bool, Problem> {
    let (mut page, filter) = match chosen {
        Chosen::These(entries) => (entries, None),
        Chosen::AllThatFit(filter) => (next_page(site, &filter, Behind::Refused(0)).await?, Some(filter)),
    };
    while !page.is_empty() {
        // Before the last of this one is decided about: the next page begins behind it.
        let next = match (&filter, page.last()) {
            (Some(filter), Some(last)) => next_page(site, filter, Behind::from(&last.place)).await?,
            _ => Vec::new(),
        };
        for places in retry::in_order(page).chunks(BATCH) {
            if token.is_cancelled() {
                return Ok(false);
            }
            let mut client = site.database.lend().await?;
            retry::decide(&mut client, decision, operation, places).await?;
        }
        page = next;
    }
    Ok(true)
}

async fn next_page(site: &Site, filter: &Filter, behind: Behind) -> Result<Vec<Entry>, Problem> {
    let client = site.database.lend().await?;
    Ok(retry::list_behind(&client, filter, behind, PAGE).await?)
}
