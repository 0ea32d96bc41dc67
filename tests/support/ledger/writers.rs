//! Applications that go on writing while the services below them fail.

use std::time::Duration;

use fastrand::Rng;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::super::database;
use super::Ledger;

/// Between two transactions of one session, and between two tries to connect.
const PACE: Duration = Duration::from_millis(20);

/// A session that hears nothing for so long begins anew.
const PATIENCE: Duration = Duration::from_secs(5);

/// Ended when dropped.
pub struct Writers {
    stop: CancellationToken,
    sessions: JoinSet<Vec<String>>,
}

impl Writers {
    pub(super) fn start(ledger: &Ledger, sessions: u64) -> Self {
        let stop = CancellationToken::new();
        let mut running = JoinSet::new();
        for session in 0..sessions {
            running.spawn(write(ledger.clone(), Rng::with_seed(session), stop.clone()));
        }
        Self { stop, sessions: running }
    }

    /// The ids of all messages whose commit was acknowledged. One that was not may have happened all the same.
    pub async fn stop(self) -> Vec<String> {
        self.stop.cancel();
        self.sessions.join_all().await.concat()
    }
}

async fn write(ledger: Ledger, mut rng: Rng, stop: CancellationToken) -> Vec<String> {
    let mut committed = Vec::new();
    let mut client = None;
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !stop.is_cancelled() {
        pace.tick().await;
        let wrote = tokio::time::timeout(PATIENCE, async {
            let client = match &mut client {
                Some(client) => client,
                none => none.insert(database::try_connect(&ledger.url).await?),
            };
            ledger.transaction(client, &mut rng).await
        });
        match wrote.await {
            Ok(Ok(ids)) => committed.extend(ids),
            Ok(Err(_)) | Err(_) => client = None,
        }
    }
    committed
}
