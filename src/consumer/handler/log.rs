//! `log`: a line per message, for looking at a topic and for first steps.

use std::time::Duration;

use super::{Answer, Handle};
use crate::domain::delivery::{Delivery, Outcome};

pub struct LogHandler;

impl Handle for LogHandler {
    fn handle<'a>(&'a self, delivery: &'a Delivery) -> Answer<'a> {
        let record = &delivery.record;
        tracing::info!(
            group = &*delivery.group,
            id = %delivery.message_id,
            "type" = delivery.event_type(),
            key = record.key.as_deref().map(String::from_utf8_lossy).as_deref(),
            topic = &*record.topic,
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::example::delivery;
    use super::*;

    #[tokio::test]
    async fn a_line_tells_the_facts_and_not_the_payload() {
        let lines = tempfile::NamedTempFile::new().unwrap();
        let writer = Mutex::new(lines.reopen().unwrap());
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(writer).finish();
        let delivery = delivery();
        let outcome = tracing::subscriber::with_default(log, || LogHandler.handle(&delivery)).await;
        assert_eq!(outcome, Outcome::Done);
        let line = std::fs::read_to_string(lines.path()).unwrap();
        let facts = "message handled group=\"orders\" id=01910000-0000-7000-8000-00000000002a type=\"OrderPlaced\" \
                     key=\"customer 7\" topic=\"shop.orders\" partition=5 offset=77 size=9\n";
        assert!(line.ends_with(facts), "{line}");
    }
}
