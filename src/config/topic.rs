//! `[topics.NAME]`: what the relay may do about a topic; `[topics."*"]` for those without a table of their own.

use std::collections::BTreeMap;

use super::error::ConfigError;
use super::section::Section;
use super::setting::{Choice, Problem, any, within};
use crate::domain::message::is_topic_name;

/// Stands for every topic without a table of its own.
const REST: &str = "*";

/// Kafka's own default for either, as its brokers have it.
const BROKERS_DEFAULT: i32 = -1;

/// By name; that of the rest is `*`.
#[derive(Clone, Debug, Default)]
pub struct Topics(pub(super) BTreeMap<String, Topic>);

#[derive(Clone, Debug, Default)]
pub struct Topic {
    /// How to make it if it is missing; `None`: its messages are held until somebody else has.
    pub create: Option<Create>,
    pub on_poison: OnPoison,
}

/// What follows when Kafka refuses a message for good. It is parked, until an operator decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnPoison {
    /// The others go on.
    #[default]
    Park,
    /// Later messages of its key wait behind it.
    HoldKey,
    /// Nothing of its lane is sent behind it.
    Stop,
}

/// A topic to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Create {
    /// -1: the broker's default.
    pub partitions: i32,
    /// Copies of each partition; -1: the broker's default.
    pub replication: i32,
    /// Properties of the topic, by Kafka's names.
    pub config: BTreeMap<String, String>,
}

impl Topics {
    /// What is said of that topic, by its own table alone or by that of the rest.
    fn of(&self, topic: &str) -> Option<&Topic> {
        self.0.get(topic).or_else(|| self.0.get(REST))
    }

    pub fn create(&self, topic: &str) -> Option<&Create> {
        self.of(topic).and_then(|topic| topic.create.as_ref())
    }

    pub fn on_poison(&self, topic: &str) -> OnPoison {
        self.of(topic).map(|topic| topic.on_poison).unwrap_or_default()
    }
}

impl Topic {
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, ConfigError> {
        Ok(Self {
            create: section.optional_table("create", Create::read)?,
            on_poison: section.or("on_poison", OnPoison::default(), any)?,
        })
    }
}

impl Choice for OnPoison {
    const WORDS: &'static [(&'static str, Self)] =
        &[("park", Self::Park), ("hold-key", Self::HoldKey), ("stop", Self::Stop)];
}

impl Create {
    fn read(section: &mut Section<'_>) -> Result<Self, ConfigError> {
        Ok(Self {
            partitions: section.or("partitions", BROKERS_DEFAULT, default_or_within(100_000))?,
            replication: section.or("replication", BROKERS_DEFAULT, default_or_within(1_000))?,
            config: section.strings("config", |_, _| Ok(()))?,
        })
    }
}

fn default_or_within(most: i32) -> impl Fn(&i32) -> Result<(), Problem> {
    move |value| {
        if *value == BROKERS_DEFAULT {
            return Ok(());
        }
        within(1..=most)(value).map_err(|problem| format!("{problem}; -1 is the broker's default"))
    }
}

pub(super) fn check_name(name: &str) -> Result<(), Problem> {
    if name == REST || is_topic_name(name) {
        return Ok(());
    }
    Err(format!(
        "`{name}` is not a name that Kafka allows for a topic: 1 to 249 letters, digits, dots, dashes and underscores, not `.` or `..`; `\"*\"` stands for the rest"
    ))
}
