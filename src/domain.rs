//! Pure logic and the vocabulary: no clock, no randomness, no I/O of its own.

pub mod acks;
pub mod backoff;
pub mod breaker;
pub mod chains;
pub mod cursor;
pub mod delivery;
pub mod doctor;
pub mod evidence;
pub mod health;
pub mod identity;
pub mod key_lines;
pub mod lane_shares;
pub mod leaves;
pub mod message;
pub mod new_message;
pub mod offsets;
pub mod partition;
pub mod payload;
pub mod priority;
pub mod rate;
pub mod rebase;
pub mod schedule;
pub mod snapshot;
pub mod start_offset;
pub mod watermark;
