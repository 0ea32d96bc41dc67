//! The transactional outbox as one daemon for PostgreSQL and Kafka.
//!
//! Each module is a room with one job; `docs/architecture.md` says what may import what, and a test holds it to that.

pub mod config;
pub mod consumer;
pub mod domain;
pub mod kafka;
pub mod pg;
