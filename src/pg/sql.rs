//! Every statement of the daemon, for the test that prepares each against a migrated database.

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
        super::claims::SQL,
        super::completing::SQL,
        super::consuming::SQL,
        super::control::SQL,
        super::doctor::SQL,
        super::doctor::rights::SQL,
        super::evidence::SQL,
        super::failing::SQL,
        super::groups::SQL,
        super::inspect::SQL,
        super::lanes::SQL,
        super::lanes::read::SQL,
        super::leaves::SQL,
        super::messages::SQL,
        super::operations::SQL,
        super::parked::SQL,
        super::retention::SQL,
        super::starts::SQL,
    ]
    .concat()
}
