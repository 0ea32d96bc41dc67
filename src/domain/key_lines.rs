//! Keys of a lane whose messages wait one behind the other: the first was refused for good.

use std::collections::HashMap;

use super::message::Message;

/// A line is named by the `seq` of the message that was refused first.
#[derive(Clone, Debug, Default)]
pub struct KeyLines(HashMap<String, HashMap<String, i64>>);

impl KeyLines {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The line that this message must join. Delayed messages keep no order, and those without a key have none.
    pub fn of(&self, message: &Message) -> Option<i64> {
        if self.is_empty() || message.is_scheduled {
            return None;
        }
        self.0.get(&message.topic)?.get(message.key.as_ref()?).copied()
    }

    /// The line that begins with this message, or that it is in already.
    pub fn line_from(&self, message: &Message) -> Option<i64> {
        let keeps_order = message.key.is_some() && !message.is_scheduled;
        keeps_order.then(|| self.of(message).unwrap_or(message.seq))
    }

    pub fn insert(&mut self, topic: String, key: String, line: i64) {
        self.0.entry(topic).or_default().insert(key, line);
    }

    pub fn remove(&mut self, topic: &str, key: &str) {
        if let Some(keys) = self.0.get_mut(topic) {
            keys.remove(key);
            if keys.is_empty() {
                self.0.remove(topic);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn message(seq: i64, key: Option<&str>, is_scheduled: bool) -> Message {
        Message {
            seq,
            message_id: Uuid::nil(),
            own_id: None,
            topic: "orders".into(),
            key: key.map(str::to_owned),
            payload: None,
            unread: None,
            headers: Vec::new(),
            event_type: None,
            idempotency_key: None,
            is_scheduled,
            dispatch: None,
        }
    }

    #[test]
    fn only_later_messages_of_the_key_that_keep_order_join_its_line() {
        let mut lines = KeyLines::default();
        let refused = message(7, Some("a"), false);
        assert_eq!((lines.of(&refused), lines.line_from(&refused)), (None, Some(7)));
        lines.insert("orders".into(), "a".into(), 7);
        assert_eq!(lines.of(&message(8, Some("a"), false)), Some(7));
        assert_eq!(
            lines.line_from(&message(8, Some("a"), false)),
            Some(7),
            "the second head is in the same line"
        );
        for other in [
            message(8, Some("b"), false),
            message(8, None, false),
            message(8, Some("a"), true),
            Message { topic: "other".into(), ..message(8, Some("a"), false) },
        ] {
            assert_eq!(lines.of(&other), None, "{other:?}");
        }
        for orderless in [message(8, None, false), message(8, Some("a"), true)] {
            assert_eq!(lines.line_from(&orderless), None, "{orderless:?}");
        }
        lines.remove("orders", "a");
        assert!(lines.is_empty());
    }
}
