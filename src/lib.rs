//! The transactional outbox as one daemon for PostgreSQL and Kafka.
//!
//! Each module is a room with one job; `docs/architecture.md` says what may import what, and a test holds it to that.

pub use app::embed;

pub mod agents;
pub mod app;
pub mod bench;
pub mod cli;
pub mod config;
pub mod consumer;
pub mod domain;
pub mod failpoint;
pub mod failure;
pub mod http;
pub mod jobs;
pub mod kafka;
pub mod lifecycle;
pub mod outside;
pub mod pg;
pub mod producer;
pub mod telemetry;
