//! One start of a handler.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::message::Message;
use super::{Handled, effects};
use crate::consumer::Group;
use crate::consumer::handler::{Handle, Handler};
use crate::domain::delivery::Outcome;
use crate::failpoint;

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
    /// Nothing came of it, and it may start again.
    Again,
    /// The connection was lost while it ran: it may be what ended it.
    Suspect,
    /// Its partition is not ours any more; whether anything was done is not known.
    Lost,
}

/// Messages that start together, each with its end.
pub(super) async fn run(group: Arc<Group>, messages: Vec<Box<Message>>) -> Vec<Handled> {
    failpoint::hit("consumer-before-handle");
    let started = Instant::now();
    let ended = match &group.handler {
        Handler::Outside(handler) => {
            let mut ended = Vec::with_capacity(messages.len());
            for message in messages {
                let end = handle(handler.as_ref(), &message).await;
                ended.push((message, end));
            }
            ended
        }
        Handler::Sql(handler) => effects::apply(&group, handler, messages).await,
    };
    group.status.answered(started.elapsed());
    failpoint::hit("consumer-after-handle");
    ended
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
