//! What a message of the benchmark says: its number, so that what was published can be held against what was written.

/// The number.
pub const SMALLEST: usize = 8;

/// Half of the rest is the same in all of them, as names of fields are in JSON; the other half is noise.
const FIELDS: &[u8] = b"{\"field\":";

/// A payload of `size` bytes, at least `SMALLEST`.
pub fn write(number: u64, size: usize, noise: &mut fastrand::Rng) -> Vec<u8> {
    let mut payload = Vec::with_capacity(size + FIELDS.len() + 8);
    payload.extend(number.to_be_bytes());
    while payload.len() < size {
        payload.extend(FIELDS);
        payload.extend(noise.u64(..).to_le_bytes());
    }
    payload.truncate(size.max(SMALLEST));
    payload
}

/// The number of a payload, if it is one of ours.
pub fn read(payload: &[u8]) -> Option<u64> {
    payload.first_chunk().map(|number| u64::from_be_bytes(*number))
}

/// The key of a message: they take turns.
pub fn key(number: u64, keys: u64) -> String {
    format!("key-{}", number % keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_has_its_size_and_tells_its_number() {
        let mut noise = fastrand::Rng::with_seed(1);
        for size in [SMALLEST, 17, 300, 1000] {
            let payload = write(7, size, &mut noise);
            assert_eq!((payload.len(), read(&payload)), (size, Some(7)));
        }
        assert_eq!(read(b"short"), None);
    }
}
