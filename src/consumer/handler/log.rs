//! `log`: a line per message, for looking at a topic and for first steps.

use std::time::Duration;

use super::{Answer, Handle};
use crate::domain::delivery::{Delivery, Outcome};

pub struct LogHandler;

impl Handle for LogHandler {
    fn handle<'a>(&'a self, delivery: &'a Delivery) -> Answer<'a> {
        let record = &delivery.record;
        tracing::info!(
            group = delivery.group,
            id = %delivery.message_id,
            "type" = delivery.event_type(),
            key = record.key.as_deref().map(String::from_utf8_lossy).as_deref(),
            topic = record.topic,
            partition = record.partition,
            offset = record.offset,
            size = record.payload.as_ref().map(bytes::Bytes::len),
            "message handled"
        );
        Box::pin(std::future::ready(Outcome::Done))
    }

    fn timeout(&self) -> Duration {
        Duration::ZERO
    }
}
