//! The lines of a worker: a delivery as one JSON object, its answer as another.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::super::reason;
use crate::domain::delivery::{Delivery, Outcome, Record};

/// Bytes of an answer, which says little: what is longer is something else.
pub const LONGEST_ANSWER: usize = 64 * 1024;

/// The request, with its line end. Text stays text, so that every byte arrives; what is no text has `_base64` behind its name.
pub fn request(delivery: &Delivery, timeout: Duration) -> Vec<u8> {
    let record = &delivery.record;
    let mut line = json!({
        "id": delivery.message_id,
        "group": &*delivery.group,
        "type": delivery.event_type(),
        "topic": &*record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "attempt": delivery.attempt,
        "idempotency_key": delivery.idempotency_key,
        "timeout": timeout.as_secs_f64(),
    });
    if let Value::Object(line) = &mut line {
        put(line, "key", record.key.as_deref());
        headers(line, record);
        put(line, "payload", record.payload.as_deref());
    }
    let mut line = line.to_string().into_bytes();
    line.push(b'\n');
    line
}

fn put(object: &mut Map<String, Value>, name: &str, bytes: Option<&[u8]>) {
    match bytes.map(|bytes| std::str::from_utf8(bytes).map_err(|_| bytes)) {
        None => object.insert(name.to_owned(), Value::Null),
        Some(Ok(text)) => object.insert(name.to_owned(), text.into()),
        Some(Err(bytes)) => {
            object.insert(format!("{name}_base64"), openssl::base64::encode_block(bytes).into())
        }
    };
}

/// Of repeated headers the last, as everywhere; those that are not text apart.
fn headers(line: &mut Map<String, Value>, record: &Record) {
    let (mut text, mut binary) = (Map::new(), Map::new());
    for (name, _) in &record.headers {
        match record.header(name).map(|value| std::str::from_utf8(value).map_err(|_| value)) {
            None => text.insert(name.clone(), Value::Null),
            Some(Ok(value)) => text.insert(name.clone(), value.into()),
            Some(Err(value)) => binary.insert(name.clone(), openssl::base64::encode_block(value).into()),
        };
    }
    line.insert("headers".into(), text.into());
    if !binary.is_empty() {
        line.insert("headers_base64".into(), binary.into());
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    id: String,
    outcome: Word,
    reason: Option<String>,
    /// Seconds.
    after: Option<f64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Done,
    Retry,
    Permanent,
}

/// What a line says of this delivery; else what is wrong with it.
pub fn answer(line: &[u8], delivery: &Delivery) -> Result<Outcome, String> {
    let answer: Answer = serde_json::from_slice(line).map_err(|error| {
        let beginning = &line[..line.len().min(200)];
        reason::with_words(&format!("its answer is none ({error})"), beginning)
    })?;
    if answer.id != delivery.message_id.to_string() {
        let id = reason::legible(&answer.id.as_bytes()[..answer.id.len().min(200)]);
        return Err(format!("it answered for another message: {id}"));
    }
    let after = match answer.after {
        None => None,
        Some(seconds) => Some(
            Duration::try_from_secs_f64(seconds)
                .map_err(|_| format!("its answer has an `after` that is no time: {seconds}"))?,
        ),
    };
    let words = answer.reason.as_deref().unwrap_or_default().as_bytes();
    let reason = reason::legible(&words[..words.len().min(reason::LIMIT)]);
    let reason = if reason.is_empty() { "the worker gave no reason".to_owned() } else { reason };
    Ok(match answer.outcome {
        Word::Done => Outcome::Done,
        Word::Retry => Outcome::Retry { reason, after },
        Word::Permanent => Outcome::Permanent { reason },
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::super::super::super::example::delivery;
    use super::*;

    fn told(delivery: &Delivery) -> Value {
        let line = request(delivery, Duration::from_millis(1500));
        let (end, line) = line.split_last().unwrap();
        assert!(*end == b'\n' && !line.contains(&b'\n'), "one line");
        serde_json::from_slice(line).unwrap()
    }

    /// What the receiving side makes of a field.
    fn bytes(object: &Value, name: &str) -> Option<Vec<u8>> {
        match (&object[name], &object[format!("{name}_base64")]) {
            (Value::String(text), Value::Null) => Some(text.clone().into_bytes()),
            (Value::Null, Value::String(text)) => Some(openssl::base64::decode_block(text).unwrap()),
            (Value::Null, Value::Null) => None,
            both => panic!("{both:?}"),
        }
    }

    #[test]
    fn a_worker_is_told_everything() {
        let expected = json!({
            "id": "01910000-0000-7000-8000-00000000002a", "group": "orders", "type": "OrderPlaced",
            "topic": "shop.orders", "partition": 5, "offset": 77, "attempt": 3, "idempotency_key": "order-42",
            "timeout": 1.5, "key": "customer 7", "payload": "{\"id\":42}",
            "headers": { "type": "OrderPlaced", "content-type": "application/json", "tenant": "zürich" },
            "headers_base64": { "image": "//4=" },
        });
        assert_eq!(told(&delivery()), expected);
    }

    fn said(line: &str) -> Result<Outcome, String> {
        answer(line.replace("ID", "01910000-0000-7000-8000-00000000002a").as_bytes(), &delivery())
    }

    #[test]
    fn an_answer_has_one_meaning() {
        assert_eq!(said(r#"{"id":"ID","outcome":"done"}"#), Ok(Outcome::Done));
        assert_eq!(
            said(r#"{"id":"ID","outcome":"retry","reason":"busy\u0000","after":2.5}"#),
            Ok(Outcome::Retry { reason: "busy".into(), after: Some(Duration::from_millis(2500)) })
        );
        assert_eq!(
            said(r#" {"outcome":"permanent","reason":null,"id":"ID"} "#),
            Ok(Outcome::Permanent { reason: "the worker gave no reason".into() })
        );
    }

    #[test]
    fn what_is_no_answer_is_not_taken_for_one() {
        for line in [
            "",
            "done",
            "{}",
            "null",
            r#"{"outcome":"done"}"#,
            r#"{"id":"ID"}"#,
            r#"{"id":"ID","outcome":"Done"}"#,
            r#"{"id":"ID","outcome":"done","retry_after":3}"#,
            r#"{"id":"ID","outcome":"done"} {"id":"ID","outcome":"done"}"#,
            r#"{"id":"other","outcome":"done"}"#,
            r#"{"id":"ID","outcome":"retry","after":-1}"#,
            r#"{"id":"ID","outcome":"retry","after":1e300}"#,
        ] {
            assert!(said(line).is_err(), "{line}");
        }
    }

    proptest! {
        #[test]
        fn every_byte_arrives(key: Option<Vec<u8>>, payload: Option<Vec<u8>>, value: Option<Vec<u8>>, name: String) {
            let mut delivery = delivery();
            delivery.record.key = key.clone().map(Bytes::from);
            delivery.record.payload = payload.clone().map(Bytes::from);
            delivery.record.headers = vec![(name.clone(), value.clone().map(Bytes::from))];
            let told = told(&delivery);
            prop_assert_eq!(bytes(&told, "key"), key);
            prop_assert_eq!(bytes(&told, "payload"), payload);
            let text = told["headers"][&name].as_str().map(|text| text.as_bytes().to_vec());
            let binary = told["headers_base64"][&name].as_str().map(|text| openssl::base64::decode_block(text).unwrap());
            prop_assert_eq!(text.or(binary), value);
        }

        #[test]
        fn no_line_breaks_the_reader(line: Vec<u8>) {
            prop_assert!(answer(&line, &delivery()).is_err());
        }
    }
}
