//! A record under way, and what it stands for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering as Atomic};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::Slot;
use crate::config::{OnFailure, Ordering};
use crate::consumer::{CLAIM_MARGIN, Group, keys};
use crate::domain::chains::Chain;
use crate::domain::delivery::{Delivery, Record};
use crate::domain::identity;
use crate::domain::suspicion::Suspicion;
use crate::domain::watermark::Ticket;
use crate::pg::claims::{Claim, OperationKey};
use crate::pg::completing::Finished;

/// How a partition comes to its end.
#[derive(Debug, Default)]
pub(super) struct Ending {
    stopping: AtomicBool,
    /// Start nothing more of it.
    pub(super) stop: CancellationToken,
    /// Drop what runs: another member may be at work on it.
    pub(super) lost: CancellationToken,
}

impl Ending {
    pub(super) fn stop(&self) {
        self.stopping.store(true, Atomic::SeqCst);
        self.stop.cancel();
    }

    pub(super) fn lose(&self) {
        self.stop();
        self.lost.cancel();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Atomic::SeqCst)
    }
}

/// A record that was taken in, and its place in its partition.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) slot: Slot,
    pub(super) ticket: Ticket,
    pub(super) ending: Arc<Ending>,
    pub(super) record: Record,
    /// It lies in the span that whoever had the partition before may have begun.
    pub(super) in_doubt: bool,
}

#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Message {
    pub(super) slot: Slot,
    pub(super) ticket: Ticket,
    pub(super) ending: Arc<Ending>,
    pub(super) delivery: Delivery,
    pub(super) size: usize,
    pub(super) chain: Option<Chain>,
    /// Its key, if messages of one key wait behind one that failed.
    pub(super) hold: Option<u64>,
    /// Of the attempts that failed here.
    pub(super) errors: Vec<(u32, String)>,
    pub(super) keys: Vec<OperationKey>,
    pub(super) payload_hash: i64,
    /// Noted as one that lies where a process may have died.
    pub(super) in_doubt: bool,
    /// It was noted already: a process died that had it. What has happened since.
    pub(super) suspicion: Option<Suspicion>,
    /// Its next start is counted: it runs with no others but those that were counted with it.
    pub(super) counted: bool,
    /// Its keys are taken within this engine: no other message of the same operation is under way here.
    pub(super) alone: bool,
    pub(super) claims: Vec<Claim>,
    pub(super) claimed_at: Option<Instant>,
    /// Its partition is not at its end before this message is.
    pub(super) begun: bool,
    /// How often another had one of its keys.
    pub(super) busy: u32,
}

impl Message {
    pub(super) fn new(group: &Group, taken: Taken) -> Self {
        let Taken { slot, ticket, ending, record, in_doubt } = taken;
        let message_id = identity::identify(&record, &group.store.cluster_id);
        let config = group.config();
        let keys = keys::operation_keys(&record, message_id, config.dedup);
        let payload_hash =
            if keys.is_empty() { 0 } else { identity::payload_hash(record.payload.as_deref()) };
        Self {
            slot,
            ticket,
            ending,
            size: record.size(),
            chain: chain(config.ordering, &record),
            hold: (config.retry.on_failure == OnFailure::HoldKey)
                .then(|| chain(Ordering::Key, &record))
                .flatten(),
            errors: Vec::new(),
            keys,
            payload_hash,
            in_doubt,
            suspicion: None,
            counted: false,
            alone: false,
            claims: Vec::new(),
            claimed_at: None,
            begun: false,
            busy: 0,
            delivery: Delivery {
                group: Arc::clone(&group.name),
                message_id,
                idempotency_key: keys::idempotency_key(&record),
                attempt: 1,
                record,
            },
        }
    }

    pub(super) fn id(&self) -> Uuid {
        self.delivery.message_id
    }

    pub(super) fn finished(&self) -> Finished {
        Finished::new(self.id(), &self.delivery.record, self.delivery.attempt)
    }

    /// It has, and they will hold until it is completed.
    pub(super) fn has_claims(&self) -> bool {
        self.claimed_at.is_some_and(|at| at.elapsed() < CLAIM_MARGIN / 2)
    }

    pub(super) fn operations(&self) -> impl Iterator<Item = u64> {
        let seed = |namespace: &str| u64::from(namespace == "key");
        self.keys.iter().map(move |key| xxh3_64_with_seed(key.key.as_bytes(), seed(key.namespace)))
    }
}

/// Whom it waits for.
fn chain(ordering: Ordering, record: &Record) -> Option<Chain> {
    let topic = || xxh3_64(record.topic.as_bytes());
    match ordering {
        Ordering::Key => record.key.as_ref().map(|key| xxh3_64_with_seed(key, topic())),
        Ordering::Partition => Some(xxh3_64_with_seed(&record.partition.to_le_bytes(), topic())),
        Ordering::None => None,
    }
}
