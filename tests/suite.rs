//! Every integration test, in one binary: they share one Postgres cluster and one Kafka broker, made for this run.
//! A file of `suite/` for each subject; what they stand on is in `support/`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics says so")]

mod support;

mod suite {
    mod agents;
    mod harness;
    mod layers;
    mod lifecycle;
    mod systemd;
}
