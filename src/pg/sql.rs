//! Every statement of the daemon, for the test that prepares each against a migrated database.

use std::time::Duration;

/// As statements take a duration: `$1::bigint * interval '1 ms'`. Longer than any that Postgres can add is cut.
pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 2)
}

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
        super::agents::SQL,
        super::aside::SQL,
        super::census::SQL,
        super::claims::SQL,
        super::completing::SQL,
        super::consuming::SQL,
        super::control::SQL,
        super::dead_letters::SQL,
        super::dispatching::SQL,
        super::doctor::SQL,
        super::doctor::rights::SQL,
        super::evidence::SQL,
        super::failing::SQL,
        super::failures::SQL,
        super::groups::SQL,
        super::held::SQL,
        super::inspect::SQL,
        super::jobs::SQL,
        super::jobs::firing::SQL,
        super::jobs::history::SQL,
        super::jobs::orders::SQL,
        super::lanes::SQL,
        super::lanes::read::SQL,
        super::leaves::SQL,
        super::messages::SQL,
        super::operations::SQL,
        super::parked::SQL,
        super::reopening::SQL,
        super::retention::SQL,
        super::retry::SQL,
        super::retrying::SQL,
        super::starts::SQL,
    ]
    .concat()
}
