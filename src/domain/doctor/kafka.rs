//! Kafka: the brokers and the topics.

use std::collections::BTreeMap;

use super::Finding;

/// Kafka's own default: a group without members that long loses its offsets.
const OFFSETS_RETENTION_MINUTES: i64 = 7 * 24 * 60;

/// The first release whose groups hand partitions over cooperatively, as ours do.
const OLDEST_RELEASE: (u32, u32) = (2, 4);

/// What librdkafka takes if `message.max.bytes` is not set.
pub const CLIENT_LIMIT: i64 = 1_000_000;

/// The configuration of a broker or a topic, by Kafka's names.
pub type Properties = BTreeMap<String, String>;

fn number(properties: &Properties, name: &str) -> Option<i64> {
    properties.get(name)?.parse().ok()
}

/// The brokers' own settings, those of any of them.
pub fn brokers(brokers: usize, properties: &Properties) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Some(minutes) =
        number(properties, "offsets.retention.minutes").filter(|n| *n < OFFSETS_RETENTION_MINUTES)
    {
        found.push(Finding::new(
            format!(
                "offsets.retention.minutes is {minutes}: Kafka forgets where a group stands that is away for longer"
            ),
            format!("set it to {OFFSETS_RETENTION_MINUTES} (seven days) or more at the brokers"),
        ));
    }
    let copies = number(properties, "offsets.topic.replication.factor").unwrap_or(1);
    let possible = i64::try_from(brokers.min(3)).unwrap_or(3);
    if copies < possible {
        found.push(Finding::new(
            format!("the topic of the groups' offsets has {copies} of {possible} possible copies"),
            "set offsets.topic.replication.factor=3 before the topic is made, or add copies by kafka-reassign-partitions",
        ));
    }
    let release = properties.get("inter.broker.protocol.version").and_then(|text| release(text));
    if let Some((major, minor)) = release.filter(|release| *release < OLDEST_RELEASE) {
        let (oldest_major, oldest_minor) = OLDEST_RELEASE;
        found.push(Finding::new(
            format!("the brokers speak the protocol of Kafka {major}.{minor}"),
            format!(
                "upgrade them and inter.broker.protocol.version to {oldest_major}.{oldest_minor} or later: consumers hand \
                 partitions over cooperatively"
            ),
        ));
    }
    found
}

fn release(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(['.', '-', 'I']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Why a topic of the outbox or of a group is wanted, and how it was found.
#[derive(Clone, Debug)]
pub struct Topic {
    pub name: String,
    /// Of a message that was published or held, or of a file.
    pub wanted_by: String,
    pub standing: Standing,
    /// The relay makes it when it is missing.
    pub is_made_by_us: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    There {
        /// Without a leader they take nothing.
        without_leader: Vec<i32>,
        /// With fewer copies in step than there are.
        behind: Vec<i32>,
        copies: usize,
    },
    Missing,
    Forbidden,
    /// The broker's words.
    NotNow(String),
}

pub fn topics(topics: &[Topic]) -> Vec<Finding> {
    topics.iter().flat_map(standing).collect()
}

fn standing(topic: &Topic) -> Vec<Finding> {
    let Topic { name, wanted_by, standing, is_made_by_us } = topic;
    match standing {
        Standing::Missing if *is_made_by_us => Vec::new(),
        Standing::Missing => vec![Finding::new(
            format!("topic {name} ({wanted_by}) does not exist: its messages are held"),
            format!(
                "kafka-topics --create --topic {name} --partitions N, or `[topics.{name}] create = {{ ... }}`"
            ),
        )],
        Standing::Forbidden => vec![Finding::new(
            format!("topic {name} ({wanted_by}) is forbidden to us"),
            format!(
                "kafka-acls --add --allow-principal User:... --topic {name} --operation Write --operation Describe"
            ),
        )],
        Standing::NotNow(reason) => vec![Finding::new(
            format!("topic {name} ({wanted_by}) cannot be used now: {reason}"),
            "see the brokers' logs",
        )],
        Standing::There { without_leader, behind, .. } => {
            let of =
                |partitions: &[i32]| partitions.iter().map(i32::to_string).collect::<Vec<_>>().join(", ");
            let mut found = Vec::new();
            if !without_leader.is_empty() {
                found.push(Finding::new(
                    format!(
                        "topic {name} has no leader for {}: nothing is written there",
                        of(without_leader)
                    ),
                    "bring back a broker that has a copy",
                ));
            }
            if !behind.is_empty() {
                found.push(Finding::new(
                    format!("topic {name} has copies that are out of step at {}", of(behind)),
                    "bring back the brokers that have them; kafka-topics --describe names them",
                ));
            }
            found
        }
    }
}

/// `copies`: of its partitions. `client_limit`: the largest message that the relay sends.
pub fn properties(
    name: &str,
    brokers: usize,
    copies: usize,
    properties: &Properties,
    client_limit: i64,
) -> Vec<Finding> {
    let mut found = Vec::new();
    let set = |property: &str| {
        format!("kafka-configs --alter --entity-type topics --entity-name {name} --add-config {property}")
    };
    if let Some(limit) = number(properties, "max.message.bytes").filter(|limit| *limit < client_limit) {
        found.push(Finding::new(
            format!(
                "topic {name} takes {limit} bytes at most and the relay sends up to {client_limit}: larger ones are refused and \
                 parked"
            ),
            format!(
                "{}, or `[kafka.producer] \"message.max.bytes\" = {limit}`, so that they are known before they are sent",
                set(&format!("max.message.bytes={client_limit}"))
            ),
        ));
    }
    if copies < brokers.min(2) {
        found.push(Finding::new(
            format!(
                "topic {name} has one copy, on one of {brokers} brokers: that broker's disk is all there is"
            ),
            "add copies by kafka-reassign-partitions, three where there are three brokers",
        ));
    }
    let copies = i64::try_from(copies).unwrap_or(i64::MAX);
    let in_step = number(properties, "min.insync.replicas").unwrap_or(1);
    if copies > 1 && in_step == 1 {
        found.push(Finding::new(
            format!("topic {name} has {copies} copies and min.insync.replicas=1: one broker alone can acknowledge, and then be lost"),
            set("min.insync.replicas=2"),
        ));
    }
    if in_step > copies {
        found.push(Finding::new(
            format!("topic {name} has {copies} copies and min.insync.replicas={in_step}: it takes nothing"),
            set(&format!("min.insync.replicas={}", (copies - 1).max(1))),
        ));
    } else if copies > 1 && in_step == copies {
        found.push(Finding::new(
            format!("topic {name} has {copies} copies and min.insync.replicas={in_step}: it takes nothing while one broker is away"),
            format!("add a copy, or {}", set(&format!("min.insync.replicas={}", copies - 1))),
        ));
    }
    if properties.get("unclean.leader.election.enable").is_some_and(|value| value == "true") {
        found.push(Finding::new(
            format!(
                "topic {name} allows unclean leaders (unclean.leader.election.enable): acknowledged messages can be lost"
            ),
            set("unclean.leader.election.enable=false"),
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(properties: &[(&str, &str)]) -> Properties {
        properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_topic_is_judged_by_what_its_cluster_can_give() {
        let found = |brokers, copies, settings: &[(&str, &str)]| {
            properties("t", brokers, copies, &of(settings), CLIENT_LIMIT).len()
        };
        assert_eq!(found(1, 1, &[("max.message.bytes", "1048588"), ("min.insync.replicas", "1")]), 0);
        assert_eq!(
            found(3, 3, &[("min.insync.replicas", "2"), ("unclean.leader.election.enable", "false")]),
            0
        );
        assert_eq!(found(3, 1, &[]), 1, "one copy of three possible");
        assert_eq!(found(3, 3, &[("min.insync.replicas", "1")]), 1);
        assert_eq!(found(3, 3, &[("min.insync.replicas", "3")]), 1);
        assert_eq!(found(3, 2, &[("min.insync.replicas", "3")]), 1);
        assert_eq!(found(1, 1, &[("unclean.leader.election.enable", "true")]), 1);
        assert_eq!(found(1, 1, &[("max.message.bytes", "999999")]), 1);
    }

    #[test]
    fn brokers_are_judged_by_what_they_say() {
        let found = |brokers: usize, settings: &[(&str, &str)]| super::brokers(brokers, &of(settings)).len();
        assert_eq!(
            found(1, &[("offsets.topic.replication.factor", "1"), ("offsets.retention.minutes", "10080")]),
            0
        );
        assert_eq!(found(3, &[("offsets.topic.replication.factor", "1")]), 1);
        assert_eq!(found(5, &[("offsets.topic.replication.factor", "3")]), 0);
        assert_eq!(found(1, &[("offsets.retention.minutes", "1440")]), 1);
        assert_eq!(found(1, &[("inter.broker.protocol.version", "2.3-IV1")]), 1);
        assert_eq!(found(1, &[("inter.broker.protocol.version", "3.9-IV0")]), 0);
    }

    #[test]
    fn a_missing_topic_is_found_unless_the_relay_makes_it() {
        let topic = |standing, is_made_by_us| Topic {
            name: "t".into(),
            wanted_by: "group g".into(),
            standing,
            is_made_by_us,
        };
        assert_eq!(topics(&[topic(Standing::Missing, true)]), []);
        assert_eq!(topics(&[topic(Standing::Missing, false), topic(Standing::Forbidden, true)]).len(), 2);
        let there = |without_leader, behind| Standing::There { without_leader, behind, copies: 2 };
        assert_eq!(topics(&[topic(there(Vec::new(), Vec::new()), false)]), []);
        assert!(topics(&[topic(there(vec![1, 4], Vec::new()), false)])[0].what.contains("1, 4"));
        assert_eq!(topics(&[topic(there(vec![1], vec![1, 2]), false)]).len(), 2);
    }
}
