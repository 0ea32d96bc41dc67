//! `[producer]`: the relay.

use std::time::Duration;

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
