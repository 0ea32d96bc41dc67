//! The request: where it goes, and a delivery told in headers.

use std::collections::BTreeMap;

use bytes::Bytes;
use chrono::SecondsFormat;
use hyper::Uri;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING,
    USER_AGENT,
};
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};

use super::super::HandlerError;
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

pub fn url(text: &str) -> Result<Uri, HandlerError> {
    let refuse = |problem: &str| HandlerError::Setting { key: "url", problem: problem.to_owned() };
    let url: Uri = text.parse().map_err(|error| refuse(&format!("is not a URL: {error}")))?;
    if !matches!(url.scheme_str(), Some("http" | "https")) || url.host().is_none_or(str::is_empty) {
        return Err(refuse("must name scheme and host, as in http://localhost:8080/orders"));
    }
    let authority = url.authority().map_or("", |authority| authority.as_str());
    if authority.contains('@') {
        return Err(refuse(
            "must not hold a user or password: use `bearer_file`, or an `authorization` in `headers`",
        ));
    }
    if url.port().is_none() && authority.rsplit(']').next().is_some_and(|end| end.contains(':')) {
        return Err(refuse("has a port that is not a number"));
    }
    Ok(url)
}

/// The operator's headers, which replace those of the same name.
pub fn own_headers(settings: &BTreeMap<String, String>) -> Result<HeaderMap, HandlerError> {
    let mut headers = HeaderMap::new();
    for (name, value) in settings {
        let refuse =
            |problem: &str| HandlerError::Setting { key: "headers", problem: format!("`{name}` {problem}") };
        let header: HeaderName = name.parse().map_err(|_| refuse("is not a header's name"))?;
        if [CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING].contains(&header) {
            return Err(refuse("belongs to the connection: leave it out"));
        }
        if header == "idempotency-key" || header.as_str().starts_with("outboxd-") {
            return Err(refuse("is outboxd's own, and differs by message: leave it out"));
        }
        let mut value: HeaderValue =
            value.parse().map_err(|_| refuse("has a value that no header can carry"))?;
        value.set_sensitive(true);
        headers.insert(header, value);
    }
    Ok(headers)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_that_cannot_be_posted_to_is_refused() {
        for good in ["http://localhost:8080/orders?x=1", "https://[::1]:8443", "http://h"] {
            assert!(url(good).is_ok(), "{good}");
        }
        for (bad, why) in [
            ("", "is not a URL"),
            ("/orders", "must name scheme"),
            ("localhost:8080", "must name scheme"),
            ("ftp://h/", "must name scheme"),
            ("http://", "is not a URL"),
            ("http://h:port/", "has a port"),
            ("http://[::1]:99999/", "has a port"),
            ("http://h:/", "has a port"),
            ("http://user:secret@h/", "must not hold a user"),
        ] {
            let error = url(bad).unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("secret"), "{bad}: {error}");
        }
    }

    #[test]
    fn an_operators_header_cannot_break_the_request() {
        let own =
            |name: &str, value: &str| own_headers(&BTreeMap::from([(name.to_owned(), value.to_owned())]));
        assert_eq!(own("X-Shop", "a").unwrap()["x-shop"], "a");
        for (name, value) in [
            ("bad name", "a"),
            ("x", "a\r\nb: c"),
            ("Content-Length", "3"),
            ("Host", "h"),
            ("Idempotency-Key", "k"),
            ("outboxd-group", "g"),
        ] {
            let error = own(name, value).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
