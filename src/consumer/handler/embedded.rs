//! `embedded`: a Rust type of the program that outboxd is a part of.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;

use super::{Answer, Handle, reason};
use crate::domain::delivery::{Delivery, Outcome};

/// What a program does with the messages of a group.
///
/// It is called for several messages at once, each in a future of its own. When a crash or a drain cut short comes
/// between the effect and its evidence, the call is repeated, with the same message id and idempotency key: look them
/// up before acting, if acting twice would do harm.
pub trait EmbeddedHandler: Send + Sync + 'static {
    /// Handles one message. A panic counts as [`Outcome::Retry`], as does an answer that takes longer than `timeout` in
    /// the configuration: the future is dropped then.
    fn handle(&self, delivery: &Delivery) -> impl Future<Output = Outcome> + Send;
}

/// Any such type, within its time.
pub struct Embedded<H> {
    pub handler: H,
    pub timeout: Duration,
}

impl<H: EmbeddedHandler> Handle for Embedded<H> {
    fn handle<'a>(&'a self, delivery: &'a Delivery) -> Answer<'a> {
        Box::pin(async {
            // Called inside, so that a panic before the first future is caught too.
            let handled = AssertUnwindSafe(async { self.handler.handle(delivery).await }).catch_unwind();
            match tokio::time::timeout(self.timeout, handled).await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(panic)) => reason::retry(reason::with_words("the handler panicked", words(&*panic))),
                Err(_) => reason::timed_out(self.timeout),
            }
        })
    }

    fn timeout(&self) -> Duration {
        self.timeout
    }
}

fn words(panic: &(dyn Any + Send)) -> &[u8] {
    let text = panic.downcast_ref::<&str>().copied();
    let words = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or_default();
    &words.as_bytes()[..words.len().min(reason::LIMIT)]
}

#[cfg(test)]
mod tests {
    use super::super::example::delivery;
    use super::*;

    struct Moody(&'static str);

    impl EmbeddedHandler for Moody {
        async fn handle(&self, delivery: &Delivery) -> Outcome {
            match self.0 {
                "panics" => panic!("no {}", delivery.attempt),
                "hangs" => std::future::pending().await,
                _ => Outcome::Done,
            }
        }
    }

    async fn outcome(mood: &'static str) -> Outcome {
        let timeout = Duration::from_millis(50);
        Embedded { handler: Moody(mood), timeout }.handle(&delivery()).await
    }

    #[tokio::test]
    async fn a_panic_or_a_hang_fails_the_message_and_not_the_program() {
        assert_eq!(outcome("works").await, Outcome::Done);
        assert_eq!(outcome("panics").await, reason::retry("the handler panicked: no 3"));
        assert_eq!(outcome("hangs").await, reason::retry("timed out after 50ms"));
    }
}
