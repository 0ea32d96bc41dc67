//! Every integration test, in one binary: they share one Postgres cluster and one Kafka broker, made for this run.
//! A file of `suite/` for each subject; what they stand on is in `support/`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics says so")]

mod support;

mod suite {
    mod agents;
    mod benching;
    mod cli;
    mod configuring;
    mod consuming;
    mod consuming_soak;
    mod contract;
    mod dashboard;
    mod developing;
    mod doctor;
    mod embedding;
    mod encrypting;
    mod enqueue;
    mod evidence;
    mod foreign;
    mod groups;
    mod guides;
    mod harness;
    mod health;
    mod http;
    mod job_faults;
    mod job_rules;
    mod jobs;
    mod languages;
    mod layers;
    mod leaves;
    mod lifecycle;
    mod metrics;
    mod migrating;
    mod no_holes;
    mod oversize;
    mod own_jobs;
    mod packaging;
    mod pgbouncer;
    mod plans;
    mod plans_consuming;
    mod poison;
    mod promoting;
    mod publications;
    mod readiness;
    mod rebasing;
    mod relay;
    mod relay_aside;
    mod relay_faults;
    mod relay_shares;
    mod relay_waits;
    mod reloading;
    mod resetting;
    mod retention;
    mod retry_parked;
    mod retrying;
    mod send;
    mod send_lines;
    mod soak;
    mod statements;
    mod systemd;
    mod topics;
    mod windows;
}
