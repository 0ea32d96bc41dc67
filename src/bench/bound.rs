//! The upper bound of any relay: the same rows, read as one stream, become the same records, sent with the same
//! settings of the same client. No cursor, no lease, no window, no look at what the broker acknowledged but for errors.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use chrono::{DateTime, Utc};
use rdkafka::ClientContext;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, NoCustomPartitioner, Producer, ProducerContext, ThreadedProducer};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_postgres::Row;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::config::Config;
use crate::domain::identity::{self, ID_HEADER, SUM_HEADER, Tag};
use crate::kafka::client;
use crate::pg::connect::Connection;
use crate::pg::{Connector, benching};

/// For what is under way at the end.
const FLUSH: Duration = Duration::from_secs(60);

/// Records under way at the most, as the relay has it. A longer queue would be filled before the measured stretch
/// begins, and look like speed.
const MAX_IN_FLIGHT: &str = "50000";

/// Rows that one statement reads, and how many of these wait to be sent. A stream of single rows, or another thread to
/// send from, took more CPU and was no faster.
const BATCH_ROWS: i64 = 5_000;
const READ_AHEAD: usize = 1;

/// While the client's queue is full.
const REST: Duration = Duration::from_micros(200);

#[derive(Clone, Default)]
struct Errors(Arc<AtomicU64>);

impl ClientContext for Errors {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }
}

impl ProducerContext for Errors {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if result.is_err() {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

type Sender = ThreadedProducer<Errors, NoCustomPartitioner>;

/// Sends every row of the normal lane to that topic, then stays until SIGTERM, so that what it used can be looked at.
pub async fn run(config: &Config, topic: &str) -> anyhow::Result<()> {
    let mut end = signal(SignalKind::terminate())?;
    let connection = Connector::new(&config.postgres, "outboxd/bench/bound").connect().await?;
    let (high, low) = benching::tag(&connection).await?;
    let tag = Tag::new(high, low);
    let mut settings = client::producer_config(&config.kafka, "outboxd-bench", config.producer.buffer_bytes)?;
    settings.set("queue.buffering.max.messages", MAX_IN_FLIGHT);
    let errors = Errors::default();
    let sender = Sender::from_config_and_context(&settings, errors.clone())?;
    let (read, mut batches) = mpsc::channel(READ_AHEAD);
    let reading = AbortOnDropHandle::new(tokio::spawn(read_all(connection, read)));
    while let Some(batch) = batches.recv().await {
        for row in &batch {
            send(&sender, row, topic, tag).await?;
        }
    }
    reading.await??;
    tokio::task::spawn_blocking(move || sender.flush(FLUSH)).await??;
    let failed = errors.0.load(Ordering::Relaxed);
    if failed > 0 {
        bail!("{failed} records were not taken by the broker");
    }
    end.recv().await;
    Ok(())
}

async fn read_all(connection: Connection, read: mpsc::Sender<Vec<Row>>) -> anyhow::Result<()> {
    let statement = benching::prepare_read(&connection).await?;
    let mut after = 0;
    loop {
        let batch = benching::read(&connection, &statement, after, BATCH_ROWS).await?;
        let Some(last) = batch.last() else { return Ok(()) };
        after = last.get(0);
        read.send(batch).await?;
    }
}

async fn send(sender: &Sender, row: &Row, topic: &str, tag: Tag) -> anyhow::Result<()> {
    let seq: i64 = row.get(0);
    let own_id: Option<Uuid> = row.get(1);
    let key: Option<&str> = row.get(3);
    let payload: Option<&[u8]> = row.get(4);
    let created_at: DateTime<Utc> = row.get(9);
    let message_id = tag.message_id(created_at, seq);
    let (mut id, mut derived) = (Uuid::encode_buffer(), Uuid::encode_buffer());
    let id = own_id.unwrap_or(message_id).hyphenated().encode_lower(&mut id);
    let derived = message_id.hyphenated().encode_lower(&mut derived);
    let sum = identity::sum(message_id, topic, key.map(str::as_bytes), payload);
    let headers = OwnedHeaders::new_with_capacity(3)
        .insert(Header { key: "id", value: Some(&*id) })
        .insert(Header { key: ID_HEADER, value: Some(&*derived) })
        .insert(Header { key: SUM_HEADER, value: Some(sum.as_str()) });
    let mut record: BaseRecord<'_, str, [u8], ()> = BaseRecord::to(topic).headers(headers);
    record.key = key;
    record.payload = payload;
    loop {
        let Err((error, refused)) = sender.send(record) else { return Ok(()) };
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
            return Err(error).context("a record was refused");
        }
        record = refused;
        tokio::time::sleep(REST).await;
    }
}
