//! Kafka: clients as the guarantees need them, publishing, subscribing, and what an error means.

pub mod client;
pub mod dead_letters;
pub mod doctor;
pub mod error;
pub mod legible;
pub mod publish;
pub mod subscribe;
mod topic_ids;
pub mod topics;
pub mod whole_topic;

pub use error::KafkaFailure;
