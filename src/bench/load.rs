//! Applications that insert single messages, each in a transaction of its own: as fast as they can, or at a given rate.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::payload;
use super::workbench::Outbox;
use crate::pg::benching::{self, Table};

/// How often it is looked whether anybody waits for a lock.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// One run of it.
#[derive(Clone, Debug)]
pub struct Load {
    pub table: Table,
    pub topic: String,
    pub clients: u64,
    /// Transactions a second of all clients together; without, each goes on as soon as it is answered.
    pub rate: Option<f64>,
    pub duration: Duration,
    pub payload_bytes: usize,
    /// The number of the first message.
    pub first: u64,
}

/// What became of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// In order of number, which has no gaps.
    pub commits: Vec<Commit>,
    pub errors: u64,
    pub seconds: f64,
    /// Looks at which some session waited for a lock.
    pub lock_waits: i64,
}

/// A transaction that is known to be committed.
#[derive(Clone, Copy, Debug)]
pub struct Commit {
    pub number: u64,
    /// When its client knew.
    pub at: Instant,
    /// What the client waited for it.
    pub took: Duration,
}

impl Outcome {
    #[allow(clippy::cast_precision_loss, reason = "counts of a benchmark")]
    pub fn rate(&self) -> f64 {
        self.commits.len() as f64 / self.seconds
    }

    /// What clients waited for, in milliseconds.
    pub fn waits(&self) -> Vec<f64> {
        self.commits.iter().map(|commit| commit.took.as_secs_f64() * 1e3).collect()
    }
}

/// Numbers as they are handed out, and what stops it.
struct Shared {
    load: Load,
    start: Instant,
    next: AtomicU64,
    failed: AtomicBool,
    errors: AtomicU64,
}

impl Load {
    /// Runs it to its end. A client whose insert fails stops, and it counts.
    pub async fn run(self, outbox: &Outbox) -> anyhow::Result<Outcome> {
        let watcher = outbox.connect().await?;
        let (mut clients, mut sessions) = (Vec::new(), Vec::new());
        for _ in 0..self.clients {
            let client = outbox.connect().await?;
            sessions.push(benching::backend(&client).await?.0);
            let insert = benching::prepare_insert(&client, self.table).await?;
            clients.push((client, insert));
        }
        let lock_waits = Arc::new(AtomicI64::new(0));
        let counted = Arc::clone(&lock_waits);
        let watching = AbortOnDropHandle::new(tokio::spawn(async move {
            while let Ok(waiting) = benching::waiting(&watcher, &sessions).await {
                counted.fetch_add(waiting.min(1), Ordering::Relaxed);
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }));
        let (next, start) = (AtomicU64::new(self.first), Instant::now());
        let (failed, errors) = (AtomicBool::new(false), AtomicU64::new(0));
        let shared = Arc::new(Shared { load: self, start, next, failed, errors });
        let mut running = JoinSet::new();
        for (number, (client, insert)) in (0..).zip(clients) {
            let shared = Arc::clone(&shared);
            running.spawn(async move { shared.client(number, &client, &insert).await });
        }
        let mut commits: Vec<Commit> = running.join_all().await.into_iter().flatten().collect();
        drop(watching);
        commits.sort_by_key(|commit| commit.number);
        Ok(Outcome {
            seconds: start.elapsed().as_secs_f64(),
            commits,
            errors: shared.errors.load(Ordering::Relaxed),
            lock_waits: lock_waits.load(Ordering::Relaxed),
        })
    }
}

impl Shared {
    async fn client(
        &self,
        name: u64,
        client: &tokio_postgres::Client,
        insert: &tokio_postgres::Statement,
    ) -> Vec<Commit> {
        let load = &self.load;
        // A key is one client's, which inserts in turn: so the numbers of a key are in order.
        let key = format!("client-{name}");
        let mut noise = fastrand::Rng::with_seed(name);
        let mut commits = Vec::new();
        while !self.failed.load(Ordering::Relaxed) && self.start.elapsed() < load.duration {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if let Some(rate) = load.rate {
                #[allow(clippy::cast_precision_loss, reason = "counts of a benchmark")]
                let due = Duration::from_secs_f64((number - load.first) as f64 / rate);
                tokio::time::sleep_until((self.start + due).into()).await;
            }
            let payload = payload::write(number, load.payload_bytes, &mut noise);
            let began = Instant::now();
            if client.execute(insert, &[&load.topic, &key, &payload]).await.is_err() {
                self.errors.fetch_add(1, Ordering::Relaxed);
                self.failed.store(true, Ordering::Relaxed);
                break;
            }
            let at = Instant::now();
            commits.push(Commit { number, at, took: at - began });
        }
        commits
    }
}
