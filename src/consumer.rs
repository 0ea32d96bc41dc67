//! Consumes topics for named groups: every message of a group is handled once, on evidence.

pub mod handler;
