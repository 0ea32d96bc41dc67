//! The lease on the owned lanes, renewed by a task and a connection of its own, so that no slow publish costs it.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::pg::Connector;
use crate::pg::lanes;

/// Renewed three times within its length.
const RENEWALS: u32 = 3;

/// We stop one part in this many of the lease early: what is under way must be purged before another owner may start.
const MARGIN: u32 = 10;

/// Keeps the leases of one session.
pub(super) struct LeaseKeeper {
    owners: watch::Sender<Vec<Uuid>>,
    valid_until: watch::Sender<Option<Instant>>,
    lease: Duration,
    _task: AbortOnDropHandle<()>,
}

impl LeaseKeeper {
    pub(super) fn start(connector: Connector, lease: Duration) -> Self {
        let (owners, _) = watch::channel(Vec::new());
        let (valid_until, _) = watch::channel(None);
        let task = tokio::spawn(renew(connector, lease, owners.subscribe(), valid_until.clone()));
        Self { owners, valid_until, lease, _task: AbortOnDropHandle::new(task) }
    }

    /// Keeps one more lane, acquired by a statement sent at `since`.
    pub(super) fn add(&self, owner: Uuid, since: Instant) {
        let end = end_of(since, self.lease);
        self.valid_until.send_modify(|until| *until = Some(until.map_or(end, |until| until.min(end))));
        self.owners.send_modify(|owners| owners.push(owner));
    }

    /// Keeps one less: it was given up.
    pub(super) fn remove(&self, owner: Uuid) {
        self.owners.send_modify(|owners| owners.retain(|kept| *kept != owner));
        if self.owners.borrow().is_empty() {
            self.valid_until.send_replace(None);
        }
    }

    /// Returns once the lease may have ended, by our monotonic clock.
    pub(super) async fn ended(&self) {
        let mut valid_until = self.valid_until.subscribe();
        loop {
            let until = *valid_until.borrow_and_update();
            if until.is_some_and(|until| until <= Instant::now()) {
                return;
            }
            let end = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = end => {}
                changed = valid_until.changed() => if changed.is_err() { return },
            }
        }
    }
}

fn end_of(since: Instant, lease: Duration) -> Instant {
    since + lease * (MARGIN - 1) / MARGIN
}

async fn renew(
    connector: Connector,
    lease: Duration,
    mut owners: watch::Receiver<Vec<Uuid>>,
    valid_until: watch::Sender<Option<Instant>>,
) {
    let mut connection = None;
    loop {
        tokio::select! {
            () = tokio::time::sleep(lease / RENEWALS) => {}
            changed = owners.changed() => if changed.is_err() { return },
        }
        let held = owners.borrow_and_update().clone();
        if held.is_empty() {
            continue;
        }
        let client = match &connection {
            Some(client) => client,
            None => match connector.connect().await {
                Ok(client) => connection.insert(client),
                Err(error) => {
                    tracing::warn!("the lease is not renewed: {error}");
                    continue;
                }
            },
        };
        let begun = Instant::now();
        match tokio::time::timeout(lease, lanes::renew(client, &held, lease)).await {
            Ok(Ok(renewed)) if usize::try_from(renewed) == Ok(held.len()) => {
                // A lane added meanwhile has the nearer end, and its own renewal comes next.
                if *owners.borrow() == held {
                    valid_until.send_replace(Some(end_of(begun, lease)));
                }
            }
            // One was given up meanwhile: the others are renewed at once.
            Ok(Ok(_)) if *owners.borrow() != held => {}
            Ok(Ok(_)) => {
                tracing::warn!("another producer has taken a lane over");
                valid_until.send_replace(Some(begun));
                return;
            }
            Ok(Err(error)) => {
                tracing::warn!("the lease is not renewed: {error}");
                connection = None;
            }
            Err(_) => connection = None,
        }
    }
}
