//! The labels that metrics have, and the values that are known before the first event.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};

/// Their names, for the table.
pub trait Labels {
    const NAMES: &'static [&'static str];
}

macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident { $($label:ident: $type:ty),+ })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
        pub struct $name { $(pub $label: $type),+ }

        impl Labels for $name {
            const NAMES: &'static [&'static str] = &[$(stringify!($label)),+];
        }
    )*};
}

labels! {
    Topic { topic: String }
    TopicReason { topic: String, reason: &'static str }
    Lane { lane: &'static str }
    Group { group: String }
    GroupResult { group: String, result: &'static str }
    GroupReason { group: String, reason: &'static str }
    Partition { group: String, topic: String, partition: i32 }
    RoleStatus { role: String, status: String }
    Job { job: String }
    JobResult { job: String, result: &'static str }
    JobPolicy { job: String, policy: &'static str }
    Outcome { result: &'static str }
    Version { version: &'static str }
}

/// No label.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub struct Alone;

impl EncodeLabelSet for Alone {
    fn encode(&self, _: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        Ok(())
    }
}

impl Labels for Alone {
    const NAMES: &'static [&'static str] = &[];
}

/// What an error of delivery proves.
pub(super) const PUBLISH_FAILURES: [&str; 4] = ["transport", "forbidden", "missing", "record"];

/// Why a message is given up.
pub const GIVEN_UP: [&str; 4] = ["attempts", "starts", "permanent", "undeliverable"];
