//! One start of a handler.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::message::Message;
use crate::consumer::Group;
use crate::consumer::handler::{Handle, Handler, SqlHandler};
use crate::consumer::wait::Wait;
use crate::domain::delivery::Outcome;
use crate::failpoint;
use crate::pg::effect::{Affected, Effect};

/// What became of it.
#[derive(Debug)]
pub(super) enum End {
    /// Its evidence is still to be written.
    Done(Duration),
    /// The transaction of its effect has written its evidence.
    Applied,
    /// There was evidence before.
    Repeat,
    /// Another message had done its operation.
    Duplicate {
        by: Uuid,
        same_payload: bool,
    },
    /// Another start holds one of its keys.
    Busy,
    Failed(Outcome),
    /// Its partition is not ours any more; whether anything was done is not known.
    Lost,
}

pub(super) async fn run(group: Arc<Group>, message: Box<Message>) -> (Box<Message>, End) {
    failpoint::hit("consumer-before-handle");
    let started = Instant::now();
    let end = match &group.handler {
        Handler::Outside(handler) => handle(handler.as_ref(), &message).await,
        Handler::Sql(handler) => apply(&group, handler, &message).await,
    };
    group.status.answered(started.elapsed());
    failpoint::hit("consumer-after-handle");
    (message, end)
}

/// Effect first, evidence behind it.
async fn handle(handler: &dyn Handle, message: &Message) -> End {
    let started = Instant::now();
    let answer = pin!(handler.handle(&message.delivery));
    let outcome = tokio::select! {
        biased;
        outcome = answer => outcome,
        () = message.ending.lost.cancelled() => return End::Lost,
    };
    match outcome {
        Outcome::Done => End::Done(started.elapsed()),
        outcome => End::Failed(outcome),
    }
}

/// Effect and evidence in one transaction. Errors of the connection, and conflicts, are nobody's failure.
async fn apply(group: &Group, handler: &SqlHandler, message: &Message) -> End {
    let mut wait = Wait::new(&group.name, &group.status, "effects");
    let mut unclear = false;
    loop {
        let effect = Effect {
            function: &handler.function,
            statement_timeout: handler.statement_timeout(),
            delivery: &message.delivery,
            keys: &message.keys,
            payload_hash: message.payload_hash,
        };
        let error = match group.store.apply(effect).await {
            Ok(affected) => {
                wait.end();
                return match affected {
                    Affected::Done => End::Applied,
                    // After an unclear outcome, evidence means that it was this very try.
                    Affected::Repeat if unclear => End::Applied,
                    Affected::Repeat => End::Repeat,
                    Affected::Duplicate { by, same_payload } => End::Duplicate { by, same_payload },
                    Affected::Busy => End::Busy,
                    Affected::Failed(error) => End::Failed(handler.failed(&error)),
                };
            }
            Err(error) => error,
        };
        unclear |= !error.is_conflict();
        let reason = error.to_string();
        tokio::select! {
            () = wait.pause(&reason) => {}
            () = message.ending.stop.cancelled() => return End::Lost,
        }
    }
}
