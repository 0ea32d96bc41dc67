//! Which partition of a topic a message goes to.

use uuid::Uuid;

/// Of a message: by its key, or without one by its id, so that its repeat meets the agent that has it.
pub fn of(key: Option<&str>, id: Uuid, partitions: i32) -> i32 {
    match key {
        Some(key) => of_key(key.as_bytes(), partitions),
        None => of_id(id, partitions),
    }
}

/// As Java's producers have it.
fn of_key(key: &[u8], partitions: i32) -> i32 {
    let partitions = u32::try_from(partitions.max(1)).unwrap_or(1);
    i32::try_from((murmur2(key) & 0x7fff_ffff) % partitions).unwrap_or(0)
}

/// A hash of it.
fn of_id(id: Uuid, partitions: i32) -> i32 {
    let partitions = u128::try_from(partitions.max(1)).unwrap_or(1);
    let hash = u128::from(xxhash_rust::xxh3::xxh3_64(id.as_bytes()));
    i32::try_from(hash % partitions).unwrap_or(0)
}

/// MurmurHash2 of 32 bits, with Kafka's seed.
#[allow(clippy::cast_possible_truncation, reason = "a length is mixed in by its lower 32 bits")]
fn murmur2(bytes: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const MIX: u32 = 0x5bd1_e995;
    let mut hash = SEED ^ bytes.len() as u32;
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        let mut word = word.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
        word = word.wrapping_mul(MIX);
        word ^= word >> 24;
        hash = hash.wrapping_mul(MIX) ^ word.wrapping_mul(MIX);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        hash ^= rest.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
        hash = hash.wrapping_mul(MIX);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(MIX);
    hash ^ hash >> 15
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_hashes_as_it_does_for_javas_producers() {
        // From the tests of Kafka's own clients.
        for (key, hash) in [
            ("21", -973_932_308_i32),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
        }
    }

    #[test]
    fn a_partition_is_one_of_those_there_are() {
        assert_eq!((of_key(b"21", 1), of_key(b"a", 0), of_key(b"a", -1)), (0, 0, 0));
        assert!((0..8).contains(&of_key(b"foobar", 8)));
        assert!((0..8).contains(&of_id(Uuid::from_u128(7), 8)));
    }
}
