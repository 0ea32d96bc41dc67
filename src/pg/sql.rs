//! Every statement of the daemon, for the test that prepares each against a migrated database.

use super::lanes::read;
use super::{
    agents, aside, consuming, dispatching, evidence, groups, held, inspect, lanes, leaves, messages, retention, retrying,
};

/// Declares statements as constants, and lists them as `SQL` with their names.
macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident = $sql:expr;)*) => {
        $($(#[$doc])* const $name: &str = $sql;)*
        /// Every statement of this file, by name.
        pub const SQL: &[(&str, &str)] = &[$((stringify!($name), $name)),*];
    };
}
pub(crate) use statements;

/// Name and text of each.
pub fn all() -> Vec<(&'static str, &'static str)> {
    [
        agents::SQL,
        aside::SQL,
        consuming::SQL,
        dispatching::SQL,
        evidence::SQL,
        groups::SQL,
        held::SQL,
        inspect::SQL,
        lanes::SQL,
        leaves::SQL,
        messages::SQL,
        read::SQL,
        retention::SQL,
        retrying::SQL,
    ]
    .concat()
}
