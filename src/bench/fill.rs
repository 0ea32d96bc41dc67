//! Backlogs: messages that wait in the outbox.

use std::ops::Range;

use super::payload;
use crate::pg::{PgError, benching};

/// Rows of one transaction.
const TRANSACTION: u64 = 1_000;

/// What the messages of a run look like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub payload_bytes: usize,
    pub keys: u64,
    /// Of the topic.
    pub partitions: i32,
}

/// Inserts the messages of these numbers, in order, in transactions of a thousand.
pub async fn fill(
    client: &tokio_postgres::Client,
    topic: &str,
    numbers: Range<u64>,
    shape: Shape,
) -> Result<(), PgError> {
    let mut noise = fastrand::Rng::with_seed(numbers.start);
    let mut first = numbers.start;
    while first < numbers.end {
        let next = (first + TRANSACTION).min(numbers.end);
        benching::fill(client, topic, messages(first..next, shape, &mut noise)).await?;
        first = next;
    }
    Ok(())
}

/// The keys and payloads of these numbers.
pub fn messages(
    numbers: Range<u64>,
    shape: Shape,
    noise: &mut fastrand::Rng,
) -> impl Iterator<Item = (String, Vec<u8>)> {
    numbers.map(move |number| {
        (payload::key(number, shape.keys), payload::write(number, shape.payload_bytes, noise))
    })
}
