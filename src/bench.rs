//! `outboxd bench`: measures this machine, this database and this broker, against ground truth at the sink.
//!
//! It works in a database and in topics of its own, and takes them away at the end. What it measures runs as it does in
//! production: the built program, as a process of its own. What was published is read back, record by record; a rate is
//! one of the broker's own clock. Machines drift: what counts is a ratio of two things measured in turn in one run.

mod alone;
pub mod bound;
mod child;
pub mod consume;
mod drain;
pub mod fill;
pub mod idle;
pub mod insert;
pub mod latency;
mod load;
mod payload;
mod producing;
mod progress;
mod reading;
pub mod relay;
mod scenario;
pub mod sink;
pub mod statistics;
pub mod takeover;
pub mod usage;
mod workbench;

pub use consume::{Before, Beside, ConsumeOptions, ConsumeReport};
pub use drain::Drains;
pub use fill::Shape;
pub use idle::IdleReport;
pub use insert::{InsertOptions, InsertReport, Inserts};
pub use latency::{LatencyOptions, LatencyReport};
pub use progress::Progress;
pub use relay::{RelayOptions, RelayReport};
pub use scenario::Scenario;
pub use statistics::Spread;
pub use takeover::{TakeoverOptions, TakeoverReport};
pub use workbench::{Workbench, on_a_workbench};
