//! What the tests stand on: real services of their own, faults, and the built program.

pub mod batch;
pub mod browser;
pub mod daemon;
pub mod database;
pub mod eventually;
pub mod http;
pub mod kafka;
pub mod ledger;
pub mod log;
pub mod outboxd;
pub mod pgbouncer;
pub mod port;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod records;
pub mod tls;
pub mod unprivileged;
pub mod watchdog;

pub use daemon::Daemon;
pub use database::{Database, PASSWORD};
pub use eventually::{eventually, eventually_some, until_none_is_left};
pub use kafka::Kafka;
pub use outboxd::Outboxd;
pub use pgbouncer::PgBouncer;
pub use postgres::Postgres;
pub use proxy::{Direction, Proxy};
pub use records::Record;
