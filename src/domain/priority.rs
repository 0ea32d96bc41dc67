//! Lanes: one per priority.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// The priority of a message, and so its lane. Order is kept per key and priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    Low,
    Normal,
    High,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("priority `{0}` is none of low, normal, high")]
pub struct NotAPriority(String);

impl Priority {
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// As stored: -1, 0, 1.
    pub fn number(self) -> i16 {
        match self {
            Self::Low => -1,
            Self::Normal => 0,
            Self::High => 1,
        }
    }

    /// Among as many places as there are priorities, from 0.
    pub fn place(self) -> usize {
        match self {
            Self::Low => 0,
            Self::Normal => 1,
            Self::High => 2,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}

impl TryFrom<i16> for Priority {
    type Error = NotAPriority;

    fn try_from(number: i16) -> Result<Self, NotAPriority> {
        Self::ALL
            .into_iter()
            .find(|priority| priority.number() == number)
            .ok_or_else(|| NotAPriority(number.to_string()))
    }
}

impl FromStr for Priority {
    type Err = NotAPriority;

    fn from_str(text: &str) -> Result<Self, NotAPriority> {
        let wanted = text.to_ascii_lowercase();
        Self::ALL
            .into_iter()
            .find(|priority| priority.name() == wanted || priority.number().to_string() == wanted)
            .ok_or_else(|| NotAPriority(text.to_owned()))
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
