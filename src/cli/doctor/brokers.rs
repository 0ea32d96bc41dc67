//! What can be seen of Kafka.

use std::collections::BTreeMap;

use crate::config::Config;
use crate::domain::doctor::kafka::{self, Standing, Topic};
use crate::domain::doctor::{Check, Finding};
use crate::failure::Kind;
use crate::kafka::doctor::Doctor;

/// `known`: topics that the database knows of, with who wants each.
pub async fn examine(config: &Config, known: BTreeMap<String, String>) -> Vec<Check> {
    let doctor = match Doctor::new(config) {
        Ok(doctor) => doctor,
        Err(error) => {
            return vec![Check::of(
                "kafka",
                vec![Finding::new(error.to_string(), "see `outboxd config dump`")],
            )];
        }
    };
    let brokers = match doctor.brokers().await {
        Ok(brokers) => brokers,
        Err(error) => {
            let fix = Kind::KafkaUnreachable.advice().unwrap_or_default();
            return vec![Check::of("kafka", vec![Finding::new(error.to_string(), fix)])];
        }
    };
    let topics = look_at(&doctor, config, wanted(config, known)).await;
    vec![
        Check::of("kafka", Vec::new()),
        broker_settings(&doctor, &brokers).await,
        Check::of("topics", kafka::topics(&topics)),
        topic_settings(&doctor, brokers.len(), &topics).await,
    ]
}

/// Those that the file names as well.
fn wanted(config: &Config, mut known: BTreeMap<String, String>) -> BTreeMap<String, String> {
    for (name, group) in &config.groups {
        for topic in &group.topics {
            known.entry(topic.clone()).or_insert_with(|| format!("of group {name}"));
        }
    }
    known
}

async fn look_at(doctor: &Doctor, config: &Config, wanted: BTreeMap<String, String>) -> Vec<Topic> {
    let mut topics = Vec::new();
    for (name, wanted_by) in wanted {
        let (standing, is_made_by_us) = (doctor.standing(&name).await, config.topics.create(&name).is_some());
        topics.push(Topic { name, wanted_by, standing, is_made_by_us });
    }
    topics
}

async fn broker_settings(doctor: &Doctor, brokers: &[i32]) -> Check {
    let name = "brokers";
    let mut found: Vec<Finding> = Vec::new();
    for id in brokers {
        match doctor.of_broker(*id).await {
            Ok(properties) => found.extend(kafka::brokers(brokers.len(), &properties)),
            Err(why) => {
                return Check::skipped(name, format!("broker {id} does not tell its settings: {why}"));
            }
        }
    }
    // What all of them say is said once.
    found.dedup();
    Check::of(name, found)
}

async fn topic_settings(doctor: &Doctor, brokers: usize, topics: &[Topic]) -> Check {
    let name = "topic-settings";
    let there: BTreeMap<&str, usize> = topics
        .iter()
        .filter_map(|topic| match topic.standing {
            Standing::There { copies, .. } => Some((topic.name.as_str(), copies)),
            Standing::Missing | Standing::Forbidden | Standing::NotNow(_) => None,
        })
        .collect();
    let told = match doctor.of_topics(&there.keys().copied().collect::<Vec<_>>()).await {
        Ok(told) => told,
        Err(why) => return Check::skipped(name, why),
    };
    let mut found = Vec::new();
    for (topic, properties) in &told {
        let copies = there.get(topic.as_str()).copied().unwrap_or_default();
        match properties {
            Ok(properties) => {
                found.extend(kafka::properties(topic, brokers, copies, properties, doctor.client_limit));
            }
            Err(why) => {
                return Check::skipped(name, format!("topic {topic} does not tell its settings: {why}"));
            }
        }
    }
    Check::of(name, found)
}
