//! The operations that a record stands for, besides being itself.

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

use crate::config::Dedup;
use crate::domain::delivery::Record;
use crate::domain::identity::ID_HEADER;
use crate::pg::claims::OperationKey;

const IDEMPOTENCY_KEY_HEADER: &str = "idempotency-key";

/// Longer keys are stored by their hash: an index entry is limited.
const LONGEST: usize = 512;

/// What a handler is told of the key.
pub(super) fn idempotency_key(record: &Record) -> Option<String> {
    let key = record.header(IDEMPOTENCY_KEY_HEADER).filter(|key| !key.is_empty())?;
    Some(String::from_utf8_lossy(key).into_owned())
}

/// The keys to claim before this message is handled, sorted. `message_id` tells whether the record is an outbox's
/// own, unchanged: only then its header `id` is believed without `dedup = "id"`.
pub(super) fn operation_keys(record: &Record, message_id: Uuid, dedup: Dedup) -> Vec<OperationKey> {
    let outboxd_id = record.text_header(ID_HEADER).and_then(|id| Uuid::parse_str(id).ok());
    let is_ours = outboxd_id == Some(message_id);
    let mut keys = Vec::new();
    let own_id = match (is_ours, dedup) {
        (true, _) => record.header("id").filter(|id| {
            std::str::from_utf8(id).ok().and_then(|id| Uuid::parse_str(id).ok()) != Some(message_id)
        }),
        (false, Dedup::Id) => record.header("id").or_else(|| record.header("ce_id")),
        (false, Dedup::Outboxd) => None,
    };
    keys.extend(own_id.and_then(|id| operation("id", id)));
    keys.extend(record.header(IDEMPOTENCY_KEY_HEADER).and_then(|key| operation("key", key)));
    keys
}

/// An empty value is no key.
fn operation(namespace: &'static str, value: &[u8]) -> Option<OperationKey> {
    if value.is_empty() {
        return None;
    }
    let key = match std::str::from_utf8(value) {
        Ok(text) if text.len() <= LONGEST && !text.contains('\0') => text.to_owned(),
        _ => format!("xxh3:{:032x}", xxh3_128(value)),
    };
    Some(OperationKey { namespace, key })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn record(headers: &[(&str, &str)]) -> Record {
        Record {
            topic: "orders".into(),
            partition: 0,
            offset: 0,
            timestamp: None,
            key: None,
            payload: None,
            headers: headers
                .iter()
                .map(|(name, value)| ((*name).to_owned(), Some(Bytes::copy_from_slice(value.as_bytes()))))
                .collect(),
        }
    }

    fn names(record: &Record, message_id: Uuid, dedup: Dedup) -> Vec<String> {
        let keys = operation_keys(record, message_id, dedup);
        assert!(keys.is_sorted(), "two agents that claim in different orders lock each other out");
        keys.into_iter().map(|key| format!("{}:{}", key.namespace, key.key)).collect()
    }

    const ID: Uuid = Uuid::from_u128(7);

    #[test]
    fn an_id_of_the_application_is_an_operation_and_the_derived_one_is_not() {
        let (id, own) = (ID.to_string(), Uuid::from_u128(8).to_string());
        let derived = record(&[("outboxd-id", &id), ("id", &id), ("idempotency-key", "order-1")]);
        assert_eq!(names(&derived, ID, Dedup::Outboxd), ["key:order-1"]);
        let brought = record(&[("outboxd-id", &id), ("id", &own)]);
        assert_eq!(names(&brought, ID, Dedup::Outboxd), [format!("id:{own}")]);
    }

    #[test]
    fn a_foreign_id_counts_only_if_the_group_says_so() {
        let id = ID.to_string();
        let copied = record(&[("outboxd-id", &id), ("id", "a"), ("ce_id", "b")]);
        let made = Uuid::from_u128(9);
        assert_eq!(names(&copied, made, Dedup::Outboxd), Vec::<String>::new());
        assert_eq!(names(&copied, made, Dedup::Id), ["id:a"]);
        assert_eq!(names(&record(&[("ce_id", "b")]), made, Dedup::Id), ["id:b"]);
    }

    #[test]
    fn no_key_is_one_that_the_database_refuses() {
        for key in ["a\0b", &"x".repeat(LONGEST + 1)] {
            let keys = operation_keys(&record(&[("idempotency-key", key)]), ID, Dedup::Outboxd);
            assert!(keys[0].key.starts_with("xxh3:"), "{key}");
        }
        assert!(operation_keys(&record(&[("idempotency-key", "")]), ID, Dedup::Outboxd).is_empty());
    }
}
