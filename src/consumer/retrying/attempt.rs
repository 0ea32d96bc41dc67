//! One attempt of a retry, from its handler's start to its end.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::insist;
use crate::consumer::Group;
use crate::consumer::handler::{Handle, Handler, SqlHandler};
use crate::consumer::places::Place;
use crate::domain::delivery::{Delivery, Outcome};
use crate::domain::suspicion::Suspicion;
use crate::failpoint;
use crate::pg::claims::{Claim, OperationKey};
use crate::pg::completing::Finished;
use crate::pg::effect::Effect;
use crate::pg::held::{Next, Successor};
use crate::pg::retrying::{Applied, Named};

/// One dispatch, opened.
pub(super) struct Attempt {
    pub(super) named: Named,
    /// Attempts that started before this one,
    pub(super) attempts: i32,
    /// and how many of them an operator has forgiven.
    pub(super) forgiven: i32,
    /// Starts that their connection did not outlive.
    pub(super) starts: u32,
    pub(super) delivery: Delivery,
    pub(super) keys: Vec<OperationKey>,
    pub(super) payload_hash: i64,
    pub(super) claims: Vec<Claim>,
}

impl Attempt {
    /// What its evidence says.
    pub(super) fn finished(&self) -> Finished {
        Finished::new(self.delivery.message_id, &self.delivery.record, self.delivery.attempt)
    }
}

/// What became of it.
pub(super) enum End {
    /// Its evidence is still to be written.
    Done(Duration),
    /// All is written, in the transaction of its effect.
    Applied(Option<Next>),
    /// There was evidence before.
    Known,
    /// Another message has done this operation.
    Duplicate {
        by: Uuid,
    },
    /// Another start holds a key now.
    Busy,
    /// Another dispatch is under way: nothing happened.
    Late,
    Failed(Outcome),
    /// The connection was lost while it ran, which may be its doing.
    Suspect(Suspicion),
}

pub(super) async fn run(group: &Group, attempt: &Attempt, place: Place, successor: Successor) -> End {
    let max_starts = group.config().retry.max_starts;
    let is_last =
        attempt.starts > 0 && Suspicion { starts: attempt.starts, was_alone: false }.is_last(max_starts);
    let (alone, _place) = if is_last {
        drop(place);
        (Some(group.places.alone().await), None)
    } else {
        (None, Some(place))
    };
    failpoint::hit("retry-before-handle");
    let began = Instant::now();
    let end = match &group.handler {
        Handler::Outside(handler) => handle(handler.as_ref(), attempt, began).await,
        Handler::Sql(handler) => apply(group, handler, attempt, alone.is_some(), successor).await,
    };
    group.status.answered(began.elapsed());
    failpoint::hit("retry-after-handle");
    end
}

/// Effect first, evidence behind it.
async fn handle(handler: &dyn Handle, attempt: &Attempt, began: Instant) -> End {
    match handler.handle(&attempt.delivery).await {
        Outcome::Done => End::Done(began.elapsed()),
        outcome => End::Failed(outcome),
    }
}

async fn apply(
    group: &Group,
    handler: &SqlHandler,
    attempt: &Attempt,
    was_alone: bool,
    successor: Successor,
) -> End {
    let effect = Effect {
        delivery: &attempt.delivery,
        chain: None,
        keys: &attempt.keys,
        payload_hash: attempt.payload_hash,
    };
    let dispatch = attempt.named.dispatch;
    match insist(group, || group.store.apply_retry(dispatch, (handler.function(), effect), successor)).await {
        Applied::Done(next) => End::Applied(next),
        // After an unclear outcome it was this very attempt.
        Applied::Repeat => End::Known,
        Applied::Duplicate { by } => End::Duplicate { by },
        Applied::Busy => End::Busy,
        Applied::Late => End::Late,
        Applied::Failed(error) => End::Failed(handler.failed(&error)),
        Applied::Lost => {
            let id = [attempt.named.message_id];
            let starts = insist(group, || group.store.count_starts(&id, was_alone)).await;
            End::Suspect(Suspicion { starts, was_alone })
        }
    }
}
