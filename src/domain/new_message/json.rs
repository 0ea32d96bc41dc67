//! A message as one JSON object, the form of `send --lines`.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Due, NewMessage, Refused};
use crate::domain::priority::Priority;

const KEYS: [&str; 10] = [
    "topic",
    "key",
    "payload",
    "payload_base64",
    "type",
    "headers",
    "idempotency_key",
    "priority",
    "deliver_after",
    "id",
];

const CONTENT_TYPE: &str = "content-type";
const JSON: &str = "application/json";

/// Why a JSON object is not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAMessage {
    #[error("not one JSON object: {0}")]
    NotAnObject(String),
    #[error("unknown key `{key}`{}", .nearest.map(|name| format!(": did you mean `{name}`?")).unwrap_or_default())]
    UnknownKey { key: String, nearest: Option<&'static str> },
    #[error("key `{0}` is given twice")]
    KeyTwice(String),
    #[error("`{key}` is not {expected}: {found}")]
    WrongType { key: &'static str, expected: &'static str, found: String },
    #[error("no topic")]
    NoTopic,
    #[error("no payload (a tombstone is `\"payload\": null`)")]
    NoPayload,
    #[error("both `payload` and `payload_base64`: give one")]
    TwoPayloads,
    #[error(transparent)]
    Refused(#[from] Refused),
}

impl NewMessage {
    /// Reads one object; `topic` is for those that name none, `max_bytes` is librdkafka's `message.max.bytes`.
    ///
    /// A payload that is a string is taken as text. Any other JSON value but null is taken as it is written, number by
    /// number, and sets `content-type` unless the headers do.
    pub fn from_json(text: &str, topic: Option<&str>, max_bytes: usize) -> Result<Self, NotAMessage> {
        let mut message = Self::to("");
        let mut named_topic = None;
        let mut payload = None;
        let mut is_json = false;
        let mut keys: Vec<Cow<str>> = Vec::with_capacity(KEYS.len());
        for (key, value) in object(text)? {
            if keys.contains(&key) {
                return Err(NotAMessage::KeyTwice(key.into_owned()));
            }
            match &*key {
                "topic" => named_topic = read(value, "topic", "text")?,
                "key" => message.key = read(value, "key", "text")?,
                "payload" => set_payload(&mut payload, json_payload(value, &mut is_json)?)?,
                "payload_base64" => set_payload(&mut payload, base64_payload(value)?)?,
                "type" => message.event_type = read(value, "type", "text")?,
                "headers" => message.headers = headers(value)?,
                "idempotency_key" => message.idempotency_key = read(value, "idempotency_key", "text")?,
                "priority" => message.priority = priority(value)?,
                "deliver_after" => {
                    let time: Option<DateTime<Utc>> = read(value, "deliver_after", "a time in RFC 3339")?;
                    message.due = time.map_or(Due::Now, Due::At);
                }
                "id" => message.id = read(value, "id", "a UUID")?,
                unknown => {
                    return Err(NotAMessage::UnknownKey {
                        key: unknown.to_owned(),
                        nearest: nearest(unknown),
                    });
                }
            }
            keys.push(key);
        }
        message.topic = named_topic.or_else(|| topic.map(str::to_owned)).ok_or(NotAMessage::NoTopic)?;
        message.payload = payload.ok_or(NotAMessage::NoPayload)?;
        if is_json && !message.headers.iter().any(|(name, _)| name == CONTENT_TYPE) {
            message.headers.push((CONTENT_TYPE.to_owned(), JSON.to_owned()));
        }
        message.check(max_bytes)?;
        Ok(message)
    }
}

type Payload = Option<Vec<u8>>;

fn set_payload(slot: &mut Option<Payload>, payload: Payload) -> Result<(), NotAMessage> {
    match slot.replace(payload) {
        Some(_) => Err(NotAMessage::TwoPayloads),
        None => Ok(()),
    }
}

fn json_payload(value: &RawValue, is_json: &mut bool) -> Result<Payload, NotAMessage> {
    let text = value.get();
    if text.starts_with('"') || text == "null" {
        return Ok(read::<String>(value, "payload", "text")?.map(String::into_bytes));
    }
    *is_json = true;
    Ok(Some(text.as_bytes().to_vec()))
}

fn base64_payload(value: &RawValue) -> Result<Payload, NotAMessage> {
    let (key, expected) = ("payload_base64", "bytes in base64");
    let Some(text) = read::<String>(value, key, expected)? else { return Ok(None) };
    let wrong =
        |error: base64::DecodeError| NotAMessage::WrongType { key, expected, found: error.to_string() };
    STANDARD.decode(text).map(Some).map_err(wrong)
}

fn headers(value: &RawValue) -> Result<Vec<(String, String)>, NotAMessage> {
    let (key, expected) = ("headers", "a flat object of strings");
    let wrong = |found: &str| NotAMessage::WrongType { key, expected, found: excerpt(found) };
    if value.get() == "null" {
        return Ok(Vec::new());
    }
    let fields = object(value.get()).map_err(|_| wrong(value.get()))?;
    fields
        .into_iter()
        .map(|(name, value)| match serde_json::from_str(value.get()) {
            Ok(text) => Ok((name.into_owned(), text)),
            Err(_) => Err(wrong(&format!("{name} = {}", value.get()))),
        })
        .collect()
}

fn priority(value: &RawValue) -> Result<Priority, NotAMessage> {
    let text = value.get().trim_matches('"');
    if text == "null" {
        return Ok(Priority::Normal);
    }
    text.parse().map_err(|_| NotAMessage::WrongType {
        key: "priority",
        expected: "low, normal or high",
        found: excerpt(value.get()),
    })
}

/// Null is as good as absent.
fn read<T: DeserializeOwned>(
    value: &RawValue,
    key: &'static str,
    expected: &'static str,
) -> Result<Option<T>, NotAMessage> {
    serde_json::from_str(value.get()).map_err(|_| NotAMessage::WrongType {
        key,
        expected,
        found: excerpt(value.get()),
    })
}

/// Enough of a value to find it by.
fn excerpt(text: &str) -> String {
    const LENGTH: usize = 40;
    match text.char_indices().nth(LENGTH) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// The nearest key, if one is near enough to be meant.
fn nearest(unknown: &str) -> Option<&'static str> {
    KEYS.into_iter()
        .map(|key| (strsim::damerau_levenshtein(key, &unknown.to_lowercase()), key))
        .filter(|(distance, key)| *distance <= key.len().div_ceil(3))
        .min()
        .map(|(_, key)| key)
}

/// The fields of an object in their order, repeated ones kept, values as they are written.
fn object(text: &str) -> Result<Vec<(Cow<'_, str>, &RawValue)>, NotAMessage> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let fields = reader.deserialize_map(Fields).and_then(|fields| reader.end().map(|()| fields));
    fields.map_err(|error| {
        // It is one line: which column is all there is to say.
        let place = format!(" at line {} column {}", error.line(), error.column());
        let reason = error.to_string();
        NotAMessage::NotAnObject(format!("{} (column {})", reason.trim_end_matches(&place), error.column()))
    })
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Vec::with_capacity(KEYS.len());
        while let Some(field) = map.next_entry::<Cow<'de, str>, &'de RawValue>()? {
            fields.push(field);
        }
        Ok(fields)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn line(text: &str) -> Result<NewMessage, NotAMessage> {
        NewMessage::from_json(text, None, 1_000_000)
    }

    fn why(text: &str) -> String {
        line(text).unwrap_err().to_string()
    }

    #[test]
    fn every_key_arrives() {
        let message = line(
            r#"{"topic":"orders","key":"k","payload":"text","type":"T","headers":{"a":"b"},"idempotency_key":"i",
                "priority":"high","deliver_after":"2026-01-02T03:04:05+01:00","id":"00000000-0000-0000-0000-000000000007"}"#,
        );
        let expected = NewMessage {
            key: Some("k".into()),
            payload: Some(b"text".to_vec()),
            headers: vec![("a".into(), "b".into())],
            event_type: Some("T".into()),
            idempotency_key: Some("i".into()),
            priority: Priority::High,
            due: Due::At("2026-01-02T02:04:05Z".parse().unwrap()),
            id: Some(Uuid::from_u128(7)),
            ..NewMessage::to("orders")
        };
        assert_eq!(message, Ok(expected));
    }

    #[test]
    fn a_json_value_is_taken_as_written_and_says_so() {
        let message = line(r#"{"topic":"t","payload":{"n": 12345678901234567890.10, "n2":1e3}}"#).unwrap();
        assert_eq!(message.payload.as_deref(), Some(&br#"{"n": 12345678901234567890.10, "n2":1e3}"#[..]));
        assert_eq!(message.headers, [("content-type".to_owned(), "application/json".to_owned())]);
        let message =
            line(r#"{"topic":"t","payload":[1],"headers":{"content-type":"application/x"}}"#).unwrap();
        assert_eq!(message.headers, [("content-type".to_owned(), "application/x".to_owned())]);
        let message = line(r#"{"topic":"t","payload":"{}"}"#).unwrap();
        assert_eq!((message.payload, message.headers.len()), (Some(b"{}".to_vec()), 0));
    }

    #[test]
    fn bytes_and_tombstones() {
        assert_eq!(line(r#"{"topic":"t","payload_base64":"AP8="}"#).unwrap().payload, Some(vec![0, 255]));
        assert_eq!(line(r#"{"topic":"t","payload":null}"#).unwrap().payload, None);
        assert_eq!(line(r#"{"topic":"t"}"#), Err(NotAMessage::NoPayload));
        assert_eq!(line(r#"{"topic":"t","payload":"a","payload_base64":""}"#), Err(NotAMessage::TwoPayloads));
        assert!(why(r#"{"topic":"t","payload_base64":"?"}"#).contains("base64"));
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        assert_eq!(why(r#"{"topci":"t"}"#), "unknown key `topci`: did you mean `topic`?");
        assert_eq!(
            why(r#"{"idempotencyKey":"t"}"#),
            "unknown key `idempotencyKey`: did you mean `idempotency_key`?"
        );
        assert_eq!(why(r#"{"partition":1}"#), "unknown key `partition`");
    }

    #[test]
    fn nothing_given_twice_is_guessed_at() {
        assert_eq!(why(r#"{"topic":"a","topic":"b"}"#), "key `topic` is given twice");
        assert_eq!(
            why(r#"{"topic":"a","payload":"","headers":{"x":"1","x":"2"}}"#),
            "header `x` is given twice"
        );
    }

    #[test]
    fn wrong_types_say_what_is_expected() {
        assert_eq!(why(r#"{"topic":"t","payload":"","key":7}"#), "`key` is not text: 7");
        assert_eq!(
            why(r#"{"topic":"t","payload":"","priority":"urgent"}"#),
            "`priority` is not low, normal or high: \"urgent\""
        );
        assert_eq!(
            why(r#"{"topic":"t","payload":"","headers":{"a":1}}"#),
            "`headers` is not a flat object of strings: a = 1"
        );
        assert!(why(r#"{"topic":"t","payload":"","deliver_after":"tomorrow"}"#).contains("RFC 3339"));
        assert!(why(r#"{"topic":"t","payload":"","id":"7"}"#).contains("UUID"));
    }

    #[test]
    fn what_is_no_object_says_where() {
        for (text, column) in [("{\"topic\":\"t\" \"key\":1}", 14), ("[]", 0), ("{} {}", 4), ("nonsense", 2)]
        {
            let reason = why(text);
            assert!(
                reason.contains(&format!("(column {column})")) && !reason.contains("at line"),
                "{text}: {reason}"
            );
        }
    }

    #[test]
    fn the_default_topic_gives_way_to_a_lines_own() {
        let topic = |text| NewMessage::from_json(text, Some("default"), 1_000_000).unwrap().topic;
        assert_eq!(
            (topic(r#"{"payload":""}"#), topic(r#"{"payload":"","topic":"own"}"#)),
            ("default".into(), "own".into())
        );
        assert_eq!(line(r#"{"payload":""}"#), Err(NotAMessage::NoTopic));
    }
}
