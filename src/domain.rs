//! Pure logic and the vocabulary: no clock, no randomness, no I/O of its own.

pub mod delivery;
