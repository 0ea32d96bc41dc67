//! Batches in the log of a broker, to be damaged and mended: it reads them again for every fetch.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::Kafka;

/// Where a batch has its checksum, and what that is of.
const CHECKSUM: usize = 17;
const ATTRIBUTES: usize = 21;

/// A batch of one record, as it lies in the log.
pub struct Batch {
    log: PathBuf,
    place: usize,
    was: Vec<u8>,
}

impl Batch {
    pub fn at(kafka: &Kafka, topic: &str, partition: i32, offset: i64) -> Self {
        let log = kafka.log(topic, partition);
        let bytes = std::fs::read(&log).unwrap();
        let number = |from: usize| bytes[from..from + 8].try_into().map(i64::from_be_bytes).unwrap();
        let length = |from: usize| bytes[from + 8..from + 12].try_into().map(u32::from_be_bytes).unwrap();
        let mut place = 0;
        while number(place) != offset {
            place += 12 + length(place) as usize;
        }
        let was = bytes[place..place + 12 + length(place) as usize].to_vec();
        Self { log, place, was }
    }

    fn write(&self, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(&self.log).unwrap();
        file.write_all_at(bytes, self.place as u64).unwrap();
    }

    /// One bit of that payload is another.
    pub fn rots(&self, payload: &[u8]) {
        let mut bytes = self.was.clone();
        let payload = bytes.windows(payload.len()).rposition(|found| found == payload).unwrap();
        bytes[payload] ^= 1;
        self.write(&bytes);
    }

    /// All of it is in order, and nobody knows how it is compressed.
    pub fn is_compressed_somehow(&self) {
        let mut bytes = self.was.clone();
        bytes[ATTRIBUTES + 1] |= 7;
        let checksum = crc32c(&bytes[ATTRIBUTES..]).to_be_bytes();
        bytes[CHECKSUM..ATTRIBUTES].copy_from_slice(&checksum);
        self.write(&bytes);
    }

    pub fn is_mended(&self) {
        self.write(&self.was);
    }
}

fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}
