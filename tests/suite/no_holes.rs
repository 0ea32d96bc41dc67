//! P2 and P3: no error of Kafka, at any moment, ends as B, A, B in a partition.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};

use crate::support::ledger::{Found, Ledger, Writers};
use crate::support::{Database, Direction, Kafka, Outboxd, Postgres, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

/// Sessions that write while something breaks.
const WRITERS: u64 = 3;

async fn let_pass(time: Duration) {
    let begun = Instant::now();
    eventually("time passes", time * 4, async || begun.elapsed() > time).await;
}

/// Ends the writing, and holds what was committed against the topic: nothing lost, inverted, or repeated out of order.
async fn settle(writers: Writers, ledger: &Ledger, database: &Database, kafka: &Kafka) -> Found {
    let committed = writers.stop().await;
    ledger.published(database).await;
    let found = ledger.check(database, kafka).await;
    assert!(committed.iter().all(|id| found.ids.contains(id)), "an acknowledged commit is not in the topic");
    assert_eq!(found.skips, 0, "{} messages, {} repeats", found.messages, found.repeats);
    assert!(found.messages > 100);
    found
}

#[tokio::test]
async fn a_broker_that_dies_freezes_and_is_cut_off_leaves_none() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::private().await);
    let proxy = kafka.proxy().await;
    let ledger = Ledger::new(&database, &kafka.topic(4).await);
    let producer = Outboxd::new(&database, &kafka).brokers(&kafka.proxied_brokers()).producer();
    let writers = ledger.keep_writing(WRITERS);
    ledger.flows(&database).await;
    kafka.kill();
    kafka.start().await;
    ledger.flows(&database).await;
    kafka.pause();
    let_pass(Duration::from_secs(1)).await;
    kafka.resume();
    ledger.flows(&database).await;
    for direction in [Direction::Requests, Direction::Answers] {
        proxy.swallow(direction);
        let_pass(Duration::from_millis(300)).await;
        proxy.cut();
        proxy.refuse();
        let_pass(Duration::from_millis(300)).await;
        proxy.heal();
        ledger.flows(&database).await;
    }
    for _ in 0..10 {
        proxy.cut();
        let_pass(Duration::from_millis(100)).await;
    }
    proxy.slow(Duration::from_millis(100));
    ledger.flows(&database).await;
    proxy.cut();
    proxy.heal();
    settle(writers, &ledger, &database, &kafka).await;
    assert!(producer.is_running());
}

#[tokio::test]
async fn a_topic_that_is_made_late_leaves_none() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let late = Ledger::new(&database, &format!("late-{:x}", fastrand::u64(..)));
    let other = Ledger::new(&database, &kafka.topic(2).await);
    let _producer = Outboxd::new(&database, kafka).producer();
    let (writers, others) = (late.keep_writing(WRITERS), other.keep_writing(1));
    other.flows(&database).await;
    let_pass(Duration::from_millis(500)).await;
    kafka.create_topic(&late.topic, 4, &[]).await;
    late.flows(&database).await;
    settle(writers, &late, &database, kafka).await;
    settle(others, &other, &database, kafka).await;
}

#[tokio::test]
async fn a_topic_that_is_forbidden_for_a_while_leaves_none() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let ledger = Ledger::new(&database, &kafka.topic(4).await);
    let _producer = Outboxd::new(&database, kafka).guarded(kafka).producer();
    let writers = ledger.keep_writing(WRITERS);
    ledger.flows(&database).await;
    kafka.forbid(&ledger.topic).await;
    let held = "select count(*) from outboxd.set_aside where state = 'held'";
    eventually("its messages are held", PATIENCE, async || database.count(held).await > 0).await;
    kafka.allow(&ledger.topic).await;
    ledger.flows(&database).await;
    settle(writers, &ledger, &database, kafka).await;
}

#[tokio::test]
async fn records_that_are_too_large_leave_none() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = format!("small-{:x}", fastrand::u64(..));
    kafka.create_topic(&topic, 2, &[("max.message.bytes", "20000")]).await;
    let ledger = Ledger::new(&database, &topic);
    let _producer = Outboxd::new(&database, kafka).producer();
    let writers = ledger.keep_writing(WRITERS);
    // For the broker: not compressible, and within librdkafka's limit. For the client: whatever it compresses to.
    let large = "insert into outboxd.messages (topic, key, payload)
        select $1, 'large', decode(string_agg(md5(random()::text), ''), 'hex') from generate_series(1, 5000)";
    let huge = "insert into outboxd.messages (topic, key, payload)
        values ($1, 'large', convert_to(repeat('x', 1100000), 'UTF8'))";
    for bad in [large, huge, large, huge] {
        database.execute(bad, &[&topic]).await;
        ledger.flows(&database).await;
    }
    settle(writers, &ledger, &database, kafka).await;
    assert_eq!(database.count("select count(*) from outboxd.set_aside where state = 'parked'").await, 4);
}

#[tokio::test]
async fn a_topic_that_refuses_writes_for_a_while_leaves_none() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let ledger = Ledger::new(&database, &kafka.topic(4).await);
    let _producer = Outboxd::new(&database, kafka).producer();
    let writers = ledger.keep_writing(WRITERS);
    ledger.flows(&database).await;
    kafka.configure_topic(&ledger.topic, "min.insync.replicas", "2").await;
    let_pass(Duration::from_secs(1)).await;
    kafka.configure_topic(&ledger.topic, "min.insync.replicas", "1").await;
    ledger.flows(&database).await;
    settle(writers, &ledger, &database, kafka).await;
}

#[tokio::test]
async fn a_topic_that_is_made_anew_has_a_tail_without_holes() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let ledger = Ledger::new(&database, &kafka.topic(2).await);
    let _producer = Outboxd::new(&database, kafka).producer();
    let writers = ledger.keep_writing(WRITERS);
    ledger.flows(&database).await;
    kafka.delete_topic(&ledger.topic).await;
    kafka.create_topic(&ledger.topic, 2, &[]).await;
    let made_anew = database.count("select max(seq) from outboxd.messages").await;
    ledger.flows(&database).await;
    writers.stop().await;
    ledger.published(&database).await;
    ledger.check_since(made_anew, &database, kafka).await;
}

/// What became of each record, by its number.
#[derive(Default)]
struct Outcomes(std::sync::Mutex<Vec<(usize, Option<RDKafkaErrorCode>)>>);

#[derive(Clone, Default)]
struct Noted(std::sync::Arc<Outcomes>);

impl rdkafka::ClientContext for Noted {}

impl ProducerContext for Noted {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        let error = result.as_ref().err().and_then(|(error, _)| error.rdkafka_error_code());
        self.0.0.lock().unwrap().push((number, error));
    }
}

/// librdkafka calls its gapless guarantee experimental, and everything here stands on it: another version is read,
/// tried and entered here by hand.
#[tokio::test]
async fn the_gapless_guarantee_is_the_one_that_was_measured() {
    const REFUSED: usize = 10;
    assert_eq!(rdkafka::util::get_rdkafka_version().1, "2.12.1");
    let kafka = Kafka::shared().await;
    let topic = format!("gapless-{:x}", fastrand::u64(..));
    kafka.create_topic(&topic, 1, &[("max.message.bytes", "20000")]).await;
    let context = Noted::default();
    let producer: ThreadedProducer<Noted> = ClientConfig::new()
        .set("bootstrap.servers", kafka.brokers())
        .set("enable.idempotence", "true")
        .set("enable.gapless.guarantee", "true")
        .set("message.timeout.ms", "0")
        .set("linger.ms", "50")
        .set("batch.num.messages", "20")
        .create_with_context(context.clone())
        .unwrap();
    for number in 0..200 {
        let payload = vec![b'x'; if number == REFUSED { 50_000 } else { 10 }];
        let record: BaseRecord<'_, (), [u8], usize> = BaseRecord::with_opaque_to(&topic, number);
        if producer.send(record.payload(&payload)).is_err() {
            break;
        }
    }
    eventually("the client turns fatal", PATIENCE, async || producer.client().fatal_error().is_some()).await;
    let record: BaseRecord<'_, (), [u8], usize> = BaseRecord::with_opaque_to(&topic, 1_000);
    let refused = producer.send(record.payload(b"x")).err().and_then(|(error, _)| error.rdkafka_error_code());
    assert_eq!(refused, Some(RDKafkaErrorCode::Fatal));
    eventually("every record is answered", PATIENCE, async || producer.in_flight_count() == 0).await;
    let outcomes = context.0.0.lock().unwrap().clone();
    let delivered = outcomes.iter().filter(|(_, error)| error.is_none()).map(|(number, _)| *number).max();
    assert!(delivered < Some(REFUSED), "delivered behind a refused record: {outcomes:?}");
    let size = outcomes.iter().find(|(number, _)| *number == REFUSED).and_then(|(_, error)| *error);
    assert_eq!(size, Some(RDKafkaErrorCode::MessageSizeTooLarge));
    let records = kafka.read_all(&topic).await;
    assert!(records.len() <= REFUSED, "{} records lie in the topic", records.len());
}
