//! `[groups.NAME]`: what a consumer reads, and what it does with a message.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

pub const BATCH: usize = 500;
pub const TIMEOUT: Duration = Duration::from_secs(10);
pub const BACKOFF: Duration = Duration::from_secs(1);
pub const MAX_BACKOFF: Duration = Duration::from_secs(3600);

#[derive(Clone, Debug)]
pub struct Group {
    pub topics: Vec<String>,
    /// Messages looked up and completed at once.
    pub batch: usize,
    pub start: Start,
    /// Kafka's name of the group; the group's own by default.
    pub kafka_group: Option<String>,
    pub dedup: Dedup,
    pub handler: Handler,
    pub retry: Retry,
}

/// Where a group that is new begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    #[default]
    Earliest,
    Latest,
}

/// What makes two records one message, besides outboxd's own id and idempotency key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dedup {
    #[default]
    Outboxd,
    /// Foreign messages by header `id` or `ce_id` too.
    Id,
}

/// `[groups.NAME.handler]`.
#[derive(Clone, Debug)]
pub enum Handler {
    /// Writes a line to the log.
    Log,
    /// A program per message.
    Exec { command: Vec<String>, timeout: Duration },
    /// A POST per message.
    Http(HttpHandler),
    /// A function in the transaction of the evidence: exactly once.
    Sql { function: String, timeout: Duration },
}

#[derive(Clone, Debug)]
pub struct HttpHandler {
    /// `http` or `https`.
    pub url: String,
    pub timeout: Duration,
    pub headers: BTreeMap<String, String>,
    /// Holds a token for `Authorization: Bearer`; read again for each message.
    pub bearer_file: Option<PathBuf>,
    /// Trusted instead of the system's authorities.
    pub ca_file: Option<PathBuf>,
    pub client_cert: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
}

/// `[groups.NAME.retry]`: how long to wait between tries.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// The first delay; it doubles, with full jitter.
    pub backoff: Duration,
    pub max_backoff: Duration,
}
