//! PostgreSQL: connections, the schema, and every statement, one file per family of tables.

pub mod agents;
pub mod aside;
pub mod benching;
pub mod census;
pub mod claims;
pub mod completing;
pub mod connect;
pub mod consuming;
pub mod control;
pub mod dead_letters;
pub mod dispatching;
pub mod doctor;
pub mod effect;
pub mod evidence;
pub mod failing;
pub mod failures;
pub mod group_orders;
pub mod groups;
pub mod held;
pub mod inspect;
pub mod jobs;
pub mod lanes;
pub mod leaves;
pub mod messages;
pub mod migrate;
pub mod operations;
pub mod parked;
pub mod pool;
pub mod rebase;
pub mod retention;
pub mod retry;
pub mod retrying;
pub mod sql;
pub mod starts;

pub use connect::{Connector, PgError};
pub use pool::Pool;
