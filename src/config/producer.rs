//! `[producer]`: the relay.

use std::time::Duration;

use super::error::ConfigError;
use super::section::Section;
use super::setting::{Bytes, GIB, HOUR, KIB, MIB, SECOND, lasting, within};

pub const LEASE: Duration = Duration::from_secs(10);
pub const BATCH_BYTES: u64 = 8 << 20;
pub const BUFFER_BYTES: u64 = 64 << 20;

#[derive(Clone, Debug)]
pub struct Producer {
    /// How long a lane stays with a producer that has fallen silent.
    pub lease: Duration,
    /// How much one read of the outbox brings, in bytes.
    pub batch_bytes: u64,
    /// librdkafka's queue, in bytes.
    pub buffer_bytes: u64,
}

impl Producer {
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, ConfigError> {
        let bytes = |low, high| within(Bytes(low)..=Bytes(high));
        Ok(Self {
            lease: section.or("lease", LEASE, lasting(SECOND..=HOUR))?,
            batch_bytes: section.or("batch_bytes", Bytes(BATCH_BYTES), bytes(64 * KIB, GIB))?.0,
            // librdkafka wants room for one message of the largest size.
            buffer_bytes: section.or("buffer_bytes", Bytes(BUFFER_BYTES), bytes(MIB, 1024 * GIB))?.0,
        })
    }
}
