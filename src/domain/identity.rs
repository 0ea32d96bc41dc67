//! Message ids: derived from a row of the outbox, or made from a foreign record.

use chrono::{DateTime, Utc};
use uuid::Uuid;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::delivery::Record;

pub const ID_HEADER: &str = "outboxd-id";
pub const SUM_HEADER: &str = "outboxd-sum";

/// The bits of an id that are not its time, its version or its variant.
const RANDOM_BITS: u32 = 74;
const LOW_BITS: u32 = 62;

/// The last millisecond that an id has room for, in the year 10889.
const LATEST: i64 = (1 << 48) - 1;

/// The random tag of one outbox: what makes its ids unlike those of any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(u128);

impl Tag {
    /// As stored: the upper 12 and the lower 62 of its 74 bits.
    #[allow(clippy::cast_sign_loss, reason = "both halves are stored as non-negative numbers")]
    pub fn new(high: i32, low: i64) -> Self {
        Self((u128::from(high as u32) << LOW_BITS) | u128::from(low as u64))
    }

    /// The derived id of a row: stable, unique across outboxes, and it leads back to `seq`.
    #[allow(clippy::cast_sign_loss, reason = "a seq is positive")]
    pub fn message_id(self, created_at: DateTime<Utc>, seq: i64) -> Uuid {
        uuid_v7(created_at, self.0 ^ u128::from(seq as u64))
    }

    /// The `seq` that an id of this outbox was derived from; of another's, a number that no row has.
    pub fn seq_of(self, id: Uuid) -> Option<i64> {
        if id.get_version_num() != 7 {
            return None;
        }
        let bits = id.as_u128();
        let random = (((bits >> 64) & 0xfff) << LOW_BITS) | (bits & ((1 << LOW_BITS) - 1));
        i64::try_from(random ^ self.0).ok().filter(|seq| *seq > 0)
    }
}

/// When the message of this derived id was inserted, in milliseconds since 1970.
pub fn millis_of(id: Uuid) -> u64 {
    u64::try_from(id.as_u128() >> 80).unwrap_or(0)
}

/// A UUIDv7 of that time, in whole milliseconds, and of those 74 bits.
fn uuid_v7(time: DateTime<Utc>, random: u128) -> Uuid {
    // Floored, as in SQL: div_euclid also below the epoch.
    let millis = time.timestamp_micros().div_euclid(1000);
    #[allow(clippy::cast_sign_loss, reason = "cut to its 48 bits")]
    let time = u128::from(millis as u64 & 0xffff_ffff_ffff);
    let high = (random >> LOW_BITS) & 0xfff;
    let low = random & ((1 << LOW_BITS) - 1);
    Uuid::from_u128((time << 80) | (0x7 << 76) | (high << 64) | (0b10 << 62) | low)
}

/// Binds an id to the record it was made for. Forwarders and splitters copy headers: a copied id must not hide
/// another record.
pub fn sum(id: Uuid, topic: &str, key: Option<&[u8]>, payload: Option<&[u8]>) -> String {
    let mut hash = Xxh3::new();
    hash.update(id.as_bytes());
    update(&mut hash, Some(topic.as_bytes()));
    update(&mut hash, key);
    update(&mut hash, payload);
    format!("{:016x}", hash.digest())
}

/// Absent and empty differ, and no field runs into the next.
fn update(hash: &mut Xxh3, field: Option<&[u8]>) {
    match field {
        Some(bytes) => {
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
        None => hash.update(&u64::MAX.to_le_bytes()),
    }
}

/// The id by which a group knows a record: the header's if its sum fits, else one made from the record itself, and
/// from nothing else: it must be the same whenever and wherever the record is read.
pub fn identify(record: &Record, cluster_id: &str) -> Uuid {
    own_id(record).unwrap_or_else(|| foreign_id(record, cluster_id))
}

fn own_id(record: &Record) -> Option<Uuid> {
    let id = Uuid::parse_str(record.text_header(ID_HEADER)?).ok()?;
    let expected = sum(id, &record.topic, record.key.as_deref(), record.payload.as_deref());
    (record.text_header(SUM_HEADER)? == expected).then_some(id)
}

fn foreign_id(record: &Record, cluster_id: &str) -> Uuid {
    let mut hash = Xxh3::new();
    update(&mut hash, Some(cluster_id.as_bytes()));
    update(&mut hash, Some(record.topic.as_bytes()));
    hash.update(&record.partition.to_le_bytes());
    hash.update(&record.offset.to_le_bytes());
    update(&mut hash, record.key.as_deref());
    update(&mut hash, record.payload.as_deref());
    // What an id cannot hold (microseconds taken for milliseconds, say) is no time, rather than a part of one.
    let time =
        record.timestamp.filter(|time| (0..=LATEST).contains(&time.timestamp_millis())).unwrap_or_default();
    uuid_v7(time, hash.digest128() >> (128 - RANDOM_BITS))
}

/// Tells one payload from another under the same idempotency key.
#[allow(clippy::cast_possible_wrap, reason = "a hash is stored as the bigint of the same bits")]
pub fn payload_hash(payload: Option<&[u8]>) -> i64 {
    payload.map_or(0, |payload| xxh3_64(payload) as i64)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn record(headers: Vec<(&str, String)>) -> Record {
        Record {
            topic: "orders".into(),
            partition: 3,
            offset: 77,
            timestamp: DateTime::from_timestamp_millis(1_790_000_000_000),
            key: Some(Bytes::from_static(b"k")),
            payload: Some(Bytes::from_static(b"p")),
            headers: headers
                .into_iter()
                .map(|(name, value)| (name.to_owned(), Some(Bytes::from(value))))
                .collect(),
        }
    }

    #[test]
    fn an_id_leads_back_to_its_seq() {
        let tag = Tag::new(0xabc, 0x3fff_1234_5678_9abc);
        let time = DateTime::from_timestamp_micros(1_790_000_000_123_999).unwrap();
        for seq in [1, 2, 4_611_686_018_427_387_904, i64::MAX] {
            let id = tag.message_id(time, seq);
            assert_eq!((id.get_version_num(), tag.seq_of(id)), (7, Some(seq)));
            assert_eq!(id.as_u128() >> 80, 1_790_000_000_123);
        }
        assert_eq!(tag.seq_of(Uuid::from_u128(1)), None);
    }

    #[test]
    fn a_copied_id_does_not_hide_another_record() {
        let id = Uuid::from_u128(7);
        let fits = sum(id, "orders", Some(b"k"), Some(b"p"));
        let headers = |sum: String| vec![(ID_HEADER, id.to_string()), (SUM_HEADER, sum)];
        assert_eq!(identify(&record(headers(fits.clone())), "c"), id);
        let mut copied = record(headers(fits));
        copied.payload = Some(Bytes::from_static(b"other"));
        assert_ne!(identify(&copied, "c"), id);
        assert_ne!(identify(&record(headers(String::new())), "c"), id);
    }

    #[test]
    fn a_foreign_record_keeps_its_id_and_its_neighbour_has_another() {
        let id = identify(&record(vec![]), "c");
        assert_eq!(id, identify(&record(vec![("x", "y".into())]), "c"));
        assert_eq!(id.as_u128() >> 80, 1_790_000_000_000);
        let neighbour = Record { offset: 78, ..record(vec![]) };
        assert_ne!(id, identify(&neighbour, "c"));
        assert_ne!(id, identify(&record(vec![]), "another cluster"));
        let time_of = |millis| {
            let at = Record { timestamp: DateTime::from_timestamp_millis(millis), ..record(vec![]) };
            identify(&at, "c").as_u128() >> 80
        };
        // Years ahead of every clock, and still the same id when that time has come.
        assert_eq!(time_of(4_000_000_000_000), 4_000_000_000_000);
        assert_eq!(time_of(LATEST), (1 << 48) - 1);
        assert_eq!([LATEST + 1, 1_790_000_000_000_000, -1].map(time_of), [0, 0, 0]);
        assert_eq!(identify(&Record { timestamp: None, ..record(vec![]) }, "c").as_u128() >> 80, 0);
    }

    #[test]
    fn absent_and_empty_fields_differ() {
        let id = Uuid::nil();
        assert_ne!(sum(id, "t", None, Some(b"")), sum(id, "t", Some(b""), None));
        assert_ne!(sum(id, "t", Some(b"ab"), Some(b"c")), sum(id, "t", Some(b"a"), Some(b"bc")));
    }
}
