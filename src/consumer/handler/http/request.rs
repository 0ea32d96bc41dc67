//! A delivery told in the headers of its request.

use bytes::Bytes;
use chrono::SecondsFormat;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};

use crate::domain::delivery::Delivery;

/// What the HTTP binding of CloudEvents wants encoded, besides all that is not ASCII.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// A CloudEvent must have a type; a record need not.
const DEFAULT_TYPE: &str = "outboxd.message";

const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// Record headers that a request has under a name of their own.
const TOLD_ELSEWHERE: &[&str] = &[
    "content-type",
    "idempotency-key",
    "id",
    "outboxd-id",
    "outboxd-sum",
    "traceparent",
    "tracestate",
    "type",
];

const HEADER: &str = "outboxd-header-";

/// Tells a delivery: CloudEvents in binary mode, then what is outboxd's.
pub fn describe(delivery: &Delivery, headers: &mut HeaderMap) {
    let record = &delivery.record;
    let key = record.key.as_deref();
    let id = delivery.message_id.to_string();
    let mut tell = |name: &'static str, value: &[u8]| {
        headers.insert(HeaderName::from_static(name), encoded(value));
    };
    tell("ce-specversion", b"1.0");
    tell("ce-id", id.as_bytes());
    tell("ce-type", delivery.event_type().filter(|kind| !kind.is_empty()).unwrap_or(DEFAULT_TYPE).as_bytes());
    tell("ce-source", format!("/outboxd/{}", record.topic).as_bytes());
    if let Some(time) = record.timestamp {
        tell("ce-time", time.to_rfc3339_opts(SecondsFormat::Millis, true).as_bytes());
    }
    if let Some(key) = key.filter(|key| !key.is_empty() && std::str::from_utf8(key).is_ok()) {
        tell("ce-subject", key);
    }
    tell("idempotency-key", delivery.idempotency_key.as_ref().unwrap_or(&id).as_bytes());
    tell("outboxd-group", delivery.group.as_bytes());
    tell("outboxd-topic", record.topic.as_bytes());
    tell("outboxd-partition", record.partition.to_string().as_bytes());
    tell("outboxd-offset", record.offset.to_string().as_bytes());
    tell("outboxd-attempt", delivery.attempt.to_string().as_bytes());
    if let Some(key) = key {
        tell("outboxd-key", key);
    }
    if record.payload.is_none() {
        tell("outboxd-tombstone", b"1");
    }
    for name in ["traceparent", "tracestate"] {
        if let Some(value) = record.header(name).and_then(as_it_is) {
            headers.insert(name, value);
        }
    }
    headers.insert(CONTENT_TYPE, record.header("content-type").and_then(as_it_is).unwrap_or(OCTETS));
    // Said of an empty body too, where hyper would not: many servers ask for it.
    headers.insert(CONTENT_LENGTH, record.payload.as_ref().map_or(0, Bytes::len).into());
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("outboxd/", env!("CARGO_PKG_VERSION"))));
    // Under a prefix: whoever may write to a topic must not choose the `cookie` or `host` of this request.
    for (name, _) in &record.headers {
        if !TOLD_ELSEWHERE.contains(&name.as_str())
            && let Some(value) = record.text_header(name)
            && let Ok(name) = HeaderName::try_from(format!("{HEADER}{name}"))
        {
            headers.insert(name, encoded(value.as_bytes()));
        }
    }
}

fn as_it_is(value: &[u8]) -> Option<HeaderValue> {
    HeaderValue::from_bytes(value).ok().filter(|value| !value.is_empty())
}

fn encoded(value: &[u8]) -> HeaderValue {
    let text = percent_encode(value, ENCODED).to_string();
    // What is encoded is printable ASCII, which every header can carry.
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}
