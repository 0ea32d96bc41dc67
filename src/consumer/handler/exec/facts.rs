//! What a program is told about its message, in environment variables.

use std::ffi::OsString;

use serde_json::{Map, Value};

use crate::domain::delivery::{Delivery, Record};

/// Every variable; `None` if this message has no such fact, or one that an environment cannot hold.
pub fn of(delivery: &Delivery) -> Vec<(&'static str, Option<OsString>)> {
    let record = &delivery.record;
    let key = record.key.as_deref();
    [
        ("OUTBOXD_GROUP", Some(delivery.group.to_string())),
        ("OUTBOXD_ID", Some(delivery.message_id.to_string())),
        ("OUTBOXD_TYPE", delivery.event_type().map(str::to_owned)),
        ("OUTBOXD_KEY", key.and_then(|key| std::str::from_utf8(key).ok()).map(str::to_owned)),
        ("OUTBOXD_KEY_BASE64", key.map(openssl::base64::encode_block)),
        ("OUTBOXD_TOPIC", Some(record.topic.to_string())),
        ("OUTBOXD_PARTITION", Some(record.partition.to_string())),
        ("OUTBOXD_OFFSET", Some(record.offset.to_string())),
        ("OUTBOXD_ATTEMPT", Some(delivery.attempt.to_string())),
        ("OUTBOXD_IDEMPOTENCY_KEY", delivery.idempotency_key.clone()),
        ("OUTBOXD_TOMBSTONE", record.payload.is_none().then(|| "1".to_owned())),
        ("OUTBOXD_HEADERS", Some(headers(record))),
    ]
    .into_iter()
    .map(|(name, value)| (name, value.filter(|value| !value.contains('\0')).map(OsString::from)))
    .collect()
}

/// A JSON object of the headers that are text; of repeated ones the last, as everywhere.
fn headers(record: &Record) -> String {
    let headers: Map<String, Value> = record
        .headers
        .iter()
        .filter_map(|(name, _)| Some((name.clone(), record.text_header(name)?.into())))
        .collect();
    Value::Object(headers).to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;

    use super::super::super::example::delivery;
    use super::*;

    fn told(delivery: &Delivery) -> BTreeMap<&'static str, String> {
        of(delivery)
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?.into_string().unwrap())))
            .collect()
    }

    #[test]
    fn a_program_is_told_everything() {
        let expected = [
            ("OUTBOXD_ATTEMPT", "3"),
            ("OUTBOXD_GROUP", "orders"),
            (
                "OUTBOXD_HEADERS",
                r#"{"type":"OrderPlaced","content-type":"application/json","tenant":"zürich"}"#,
            ),
            ("OUTBOXD_ID", "01910000-0000-7000-8000-00000000002a"),
            ("OUTBOXD_IDEMPOTENCY_KEY", "order-42"),
            ("OUTBOXD_KEY", "customer 7"),
            ("OUTBOXD_KEY_BASE64", "Y3VzdG9tZXIgNw=="),
            ("OUTBOXD_OFFSET", "77"),
            ("OUTBOXD_PARTITION", "5"),
            ("OUTBOXD_TOPIC", "shop.orders"),
            ("OUTBOXD_TYPE", "OrderPlaced"),
        ];
        assert_eq!(told(&delivery()), expected.map(|(name, value)| (name, value.to_owned())).into());
    }

    #[test]
    fn what_an_environment_cannot_hold_is_left_out() {
        let mut delivery = delivery();
        delivery.record.key = Some(Bytes::from_static(b"a\0b"));
        delivery.record.headers = vec![("nul".into(), Some(Bytes::from_static(b"a\0b")))];
        delivery.record.payload = None;
        delivery.idempotency_key = None;
        let told = told(&delivery);
        assert_eq!(told.get("OUTBOXD_KEY"), None);
        assert_eq!(told["OUTBOXD_KEY_BASE64"], "YQBi");
        assert_eq!(told["OUTBOXD_HEADERS"], r#"{"nul":"a\u0000b"}"#);
        assert_eq!(told["OUTBOXD_TOMBSTONE"], "1");
        assert_eq!(told.get("OUTBOXD_IDEMPOTENCY_KEY"), None);
        delivery.record.key = Some(Bytes::from_static(&[0xff]));
        assert_eq!(self::told(&delivery).get("OUTBOXD_KEY"), None);
    }
}
