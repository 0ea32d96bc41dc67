//! What a group does with a message. Whatever can be wrong with a handler is found when it is prepared, not at the
//! first message; `docs/handlers.md` says what each kind gets and what its answers mean.

mod embedded;
mod exec;
mod http;
mod log;
mod reason;
mod sql;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use crate::config;
use crate::config::group::ExecMode;
use crate::domain::delivery::{Delivery, Outcome};
use crate::outside::SetupError;

pub use embedded::{Embedded, EmbeddedHandler};
pub use sql::SqlHandler;

/// An outcome to come. Dropping it ends the attempt, and with it a program that was started for it.
pub type Answer<'a> = Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

/// The end of a handler.
pub type Closing<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Handles a delivery outside of the database. Its own time limit is enforced inside.
pub trait Handle: Send + Sync {
    fn handle<'a>(&'a self, delivery: &'a Delivery) -> Answer<'a>;

    /// The longest that an answer can take: for how long a claim must hold.
    fn timeout(&self) -> Duration;

    /// No more deliveries will come: what the handler keeps may end in order.
    fn close(&self) -> Closing<'_> {
        Box::pin(std::future::ready(()))
    }
}

/// A handler that is ready for its first message.
pub enum Handler {
    /// Effect first, evidence behind it: a crash between them repeats the call.
    Outside(Box<dyn Handle>),
    /// Effect and evidence are one transaction.
    Sql(SqlHandler),
}

impl Handler {
    /// The longest that one attempt can take.
    pub fn timeout(&self) -> Duration {
        match self {
            Self::Outside(handler) => handler.timeout(),
            Self::Sql(handler) => handler.timeout,
        }
    }

    /// Ends what it keeps, after the last delivery.
    pub async fn close(&self) {
        if let Self::Outside(handler) = self {
            handler.close().await;
        }
    }
}

/// Why a handler cannot start: always something for the operator to change.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(
        "kind = \"embedded\" is for a program that brings the handler (outboxd::embed): \
         name another `kind`, or run that program instead"
    )]
    Embedded,
}

/// Makes the handler that a group names.
pub fn prepare(config: &config::Handler) -> Result<Handler, HandlerError> {
    Ok(match config {
        config::Handler::Log => Handler::Outside(Box::new(log::LogHandler)),
        config::Handler::Exec { command, mode: ExecMode::Each, timeout } => {
            Handler::Outside(Box::new(exec::ExecHandler::new(command, *timeout)?))
        }
        config::Handler::Exec { command, mode: ExecMode::Worker, timeout } => {
            Handler::Outside(Box::new(exec::Workers::new(command, *timeout)?))
        }
        config::Handler::Embedded { .. } => return Err(HandlerError::Embedded),
        config::Handler::Http(settings) => Handler::Outside(Box::new(http::Poster::new(settings)?)),
        config::Handler::Sql { function, mode, timeout } => {
            Handler::Sql(SqlHandler { function: function.clone(), mode: *mode, timeout: *timeout })
        }
    })
}

#[cfg(test)]
mod example {
    use bytes::Bytes;
    use chrono::DateTime;
    use uuid::Uuid;

    use crate::domain::delivery::{Delivery, Record};

    /// A delivery with something in each place.
    pub fn delivery() -> Delivery {
        let header =
            |name: &str, value: &'static str| (name.to_owned(), Some(Bytes::from_static(value.as_bytes())));
        Delivery {
            group: "orders".into(),
            message_id: Uuid::from_u128(0x0191_0000_0000_7000_8000_0000_0000_002a),
            idempotency_key: Some("order-42".into()),
            attempt: 3,
            record: Record {
                topic: "shop.orders".into(),
                partition: 5,
                offset: 77,
                timestamp: DateTime::from_timestamp_millis(1_790_000_000_123),
                key: Some(Bytes::from_static("customer 7".as_bytes())),
                payload: Some(Bytes::from_static(b"{\"id\":42}")),
                headers: vec![
                    header("type", "OrderPlaced"),
                    header("content-type", "application/json"),
                    header("tenant", "first"),
                    header("tenant", "zürich"),
                    ("image".into(), Some(Bytes::from_static(&[0xff, 0xfe]))),
                ],
            },
        }
    }
}
