//! A batch of dispatches is opened, its operations are claimed, and what may run is started under leases.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::attempt::Attempt;
use super::{LEASE, insist};
use crate::consumer::handler::Handler;
use crate::consumer::places::Place;
use crate::consumer::{Group, keys};
use crate::domain::delivery::Delivery;
use crate::domain::identity;
use crate::pg::claims::{Claim, Claimed, OperationKey, Wanted};
use crate::pg::completing::Finished;
use crate::pg::retrying::{Named, Opened};

/// What is to become of a dispatch.
pub(super) enum Step {
    /// It is started: the attempt counts.
    Run(Box<Attempt>, Place),
    /// There is evidence of its message.
    Known,
    /// Another message has done its operation.
    Duplicate(Finished),
    /// Another has a key of it, or the group is stopped.
    NotNow,
    /// Another dispatch has taken its place; what it claimed is to be given back.
    Stale(Vec<Claim>),
}

pub(super) async fn start(group: Arc<Group>, all: Vec<(Named, Place)>) -> Vec<(Named, Step)> {
    let wanted: Vec<Named> = all.iter().map(|(named, _)| *named).collect();
    let opened = insist(&group, || group.store.open(&wanted)).await;
    let mut opened: HashMap<Named, Opened> =
        opened.into_iter().map(|opened| (opened.named, opened)).collect();
    let mut steps = Vec::new();
    let mut attempts = Vec::new();
    for (named, place) in all {
        match opened.remove(&named) {
            None => steps.push((named, Step::Stale(Vec::new()))),
            Some(opened) if opened.is_handled => steps.push((named, Step::Known)),
            Some(opened) if opened.is_stopped => steps.push((named, Step::NotNow)),
            Some(opened) => attempts.push((identify(&group, opened), place)),
        }
    }
    let attempts = claim(&group, attempts, &mut steps).await;
    let starting: Vec<(Named, i32)> =
        attempts.iter().map(|(attempt, _)| (attempt.named, attempt.attempts)).collect();
    let started = match starting.as_slice() {
        [] => HashSet::new(),
        starting => insist(&group, || group.store.start(starting, LEASE)).await,
    };
    for (attempt, place) in attempts {
        let named = attempt.named;
        let is_started = started.contains(&named.message_id);
        let step = if is_started { Step::Run(Box::new(attempt), place) } else { Step::Stale(attempt.claims) };
        steps.push((named, step));
    }
    steps
}

fn identify(group: &Group, opened: Opened) -> Attempt {
    let Opened { named, record, attempts, forgiven, starts, .. } = opened;
    let message_id = named.message_id;
    Attempt {
        named,
        attempts,
        forgiven,
        starts: u32::try_from(starts).unwrap_or(0),
        keys: keys::operation_keys(&record, message_id, group.config().dedup),
        payload_hash: identity::payload_hash(record.payload.as_deref()),
        claims: Vec::new(),
        delivery: Delivery {
            group: Arc::clone(&group.name),
            message_id,
            idempotency_key: keys::idempotency_key(&record),
            attempt: u32::try_from(attempts).unwrap_or(0) + 1,
            record,
        },
    }
}

/// Those that have all of their keys, or claim them with their effect.
async fn claim(
    group: &Group,
    attempts: Vec<(Attempt, Place)>,
    steps: &mut Vec<(Named, Step)>,
) -> Vec<(Attempt, Place)> {
    if matches!(group.handler, Handler::Sql(_)) {
        return attempts;
    }
    // Two that want the same key go one after the other.
    let mut taken: HashSet<&OperationKey> = HashSet::new();
    let mut is_first = Vec::with_capacity(attempts.len());
    for (attempt, _) in &attempts {
        let free = attempt.keys.iter().all(|key| !taken.contains(key));
        if free {
            taken.extend(&attempt.keys);
        }
        is_first.push(free);
    }
    let claiming =
        attempts.iter().zip(&is_first).filter(|((attempt, _), free)| **free && !attempt.keys.is_empty());
    let wanted: Vec<Wanted<'_>> = claiming
        .map(|((attempt, _), _)| Wanted {
            message_id: attempt.named.message_id,
            payload_hash: attempt.payload_hash,
            keys: &attempt.keys,
        })
        .collect();
    let ttl = group.claim_time();
    let claimed = match wanted.as_slice() {
        [] => Vec::new(),
        wanted => insist(group, || group.store.claim(wanted, ttl)).await,
    };
    let mut claimed = claimed.into_iter();
    let mut ready = Vec::new();
    for ((mut attempt, place), is_first) in attempts.into_iter().zip(is_first) {
        let named = attempt.named;
        if !is_first {
            steps.push((named, Step::NotNow));
            continue;
        }
        if attempt.keys.is_empty() {
            ready.push((attempt, place));
            continue;
        }
        match claimed.next() {
            Some(Claimed::All(claims)) => {
                attempt.claims = claims;
                ready.push((attempt, place));
            }
            Some(Claimed::Done { by, .. }) => {
                let mut finished = attempt.finished();
                finished.duplicate_of = Some(by);
                steps.push((named, Step::Duplicate(finished)));
            }
            Some(Claimed::Busy) | None => steps.push((named, Step::NotNow)),
        }
    }
    ready
}
