//! What cannot be handled leaves the line: kept whole, with what waits behind it.

use std::time::Duration;

use axum::http::StatusCode;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};

use super::{Consumer, PATIENCE, Receiver, evidence, unique};
use crate::support::{Database, Kafka, Postgres, eventually};

fn settings(topic: &str, url: &str, retry: &str) -> String {
    format!(
        "topics = [\"{topic}\"]\nhandler = {{ kind = \"http\", url = \"{url}\", timeout = \"5s\" }}\nretry = {{ {retry} }}"
    )
}

async fn failures(database: &Database, state: &str) -> i64 {
    database.count(&format!("select count(*) from outboxd.failures where state = '{state}'")).await
}

#[tokio::test]
async fn a_message_that_failed_is_kept_byte_for_byte() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let topic = kafka.topic(1).await;
    let receiver = Receiver::default();
    let url = receiver.clone().listen().await;
    receiver.tell("bad", StatusCode::SERVICE_UNAVAILABLE);
    let producer: FutureProducer = kafka.client_config().create().unwrap();
    let headers = OwnedHeaders::new()
        .insert(Header { key: "tenant", value: Some(b"first".as_slice()) })
        .insert(Header { key: "empty", value: Some(b"".as_slice()) })
        .insert(Header { key: "tenant", value: Some(&[0xff, 0, 0xfe]) })
        .insert(Header::<&[u8]> { key: "none", value: None })
        .insert(Header { key: "type", value: Some(b"OrderPlaced".as_slice()) })
        .insert(Header { key: "idempotency-key", value: Some(b"order-1".as_slice()) });
    let key = [0_u8, 0xff, b'k'];
    let record = FutureRecord::to(&topic)
        .key(&key[..])
        .payload(b"bad".as_slice())
        .headers(headers)
        .timestamp(1_790_000_000_123);
    producer.send(record, PATIENCE).await.unwrap();
    let retry = "inline_attempts = 2, backoff = \"10ms\", max_backoff = \"1m\"";
    let consumer =
        Consumer::start(&database.agent_url(), kafka, &unique("orders"), &settings(&topic, &url, retry));
    eventually("it is kept", PATIENCE, async || failures(&database, "due").await == 1).await;
    let row = database
        .query_one(
            "select topic, partition, \"offset\", extract(epoch from recorded_at)::float8, key, payload, header_names,
               header_values, type, idempotency_key, attempts, error, reason, next_attempt_at > now() - interval '1 min'
             from outboxd.failures",
            &[],
        )
        .await;
    assert_eq!((row.get::<_, String>(0), row.get::<_, i32>(1), row.get::<_, i64>(2)), (topic, 0, 0));
    assert!((row.get::<_, f64>(3) - 1_790_000_000.123).abs() < 1e-6);
    assert_eq!((row.get::<_, &[u8]>(4), row.get::<_, &[u8]>(5)), (&key[..], b"bad".as_slice()));
    let names: Vec<&str> = row.get(6);
    assert_eq!(names, ["tenant", "empty", "tenant", "none", "type", "idempotency-key"]);
    let values: Vec<Option<&[u8]>> = row.get(7);
    assert_eq!(values[..4], [Some(b"first".as_slice()), Some(b""), Some(&[0xff, 0, 0xfe]), None]);
    assert_eq!((row.get::<_, &str>(8), row.get::<_, &str>(9)), ("OrderPlaced", "order-1"));
    assert_eq!(row.get::<_, i32>(10), 2);
    assert!(row.get::<_, &str>(11).contains("503"), "{}", row.get::<_, &str>(11));
    assert_eq!(row.get::<_, Option<&str>>(12), None);
    assert!(row.get::<_, bool>(13));
    assert_eq!(database.count("select count(*) from outboxd.attempts where error like '%503%'").await, 2);
    assert_eq!(database.count("select count(*) from outboxd.idempotency_keys").await, 0, "its claim is free");
    eventually("it is passed", PATIENCE, async || {
        database.count("select next_offset from outboxd.group_positions").await == 1
    })
    .await;
    assert_eq!(evidence(&database).await, 0);
    assert_eq!(consumer.number("failed"), 2);
    consumer.drained().await;
}

#[tokio::test]
async fn later_messages_of_a_held_key_wait_in_order_and_no_others() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let topic = kafka.topic(1).await;
    let receiver = Receiver { takes: Duration::from_millis(20), ..Receiver::default() };
    let url = receiver.clone().listen().await;
    receiver.tell("k:0", StatusCode::SERVICE_UNAVAILABLE);
    for n in 0..4 {
        kafka.produce(&topic, Some("k"), Some(format!("k:{n}").as_bytes()), &[]).await;
        kafka.produce(&topic, Some("other"), Some(format!("other:{n}").as_bytes()), &[]).await;
        kafka.produce(&topic, None, Some(format!("none:{n}").as_bytes()), &[]).await;
    }
    let group = unique("orders");
    let settings = settings(&topic, &url, "backoff = \"1h\"");
    let consumer = Consumer::start(&database.agent_url(), kafka, &group, &settings);
    eventually("the others are handled", PATIENCE, async || evidence(&database).await == 8).await;
    eventually("three wait", PATIENCE, async || failures(&database, "held").await == 3).await;
    consumer.drained().await;
    // Another engine, which knows of the hold by looking only.
    let consumer = Consumer::start(&database.agent_url(), kafka, &group, &settings);
    kafka.produce(&topic, Some("k"), Some(b"k:4"), &[]).await;
    eventually("four wait", PATIENCE, async || failures(&database, "held").await == 4).await;
    assert_eq!((1..=4).map(|n| receiver.tried(&format!("k:{n}"))).sum::<usize>(), 0);
    let held = database
        .query(
            "select convert_from(payload, 'UTF8') from outboxd.failures where state = 'held' order by place",
            &[],
        )
        .await;
    let held: Vec<String> = held.iter().map(|row| row.get(0)).collect();
    assert_eq!(held, ["k:1", "k:2", "k:3", "k:4"]);
    // Who frees a key removes the row.
    database.batch("delete from outboxd.held_keys").await;
    for n in 5..9 {
        kafka.produce(&topic, Some("k"), Some(format!("k:{n}").as_bytes()), &[]).await;
    }
    eventually("its key is free", PATIENCE, async || evidence(&database).await == 12).await;
    let answered = receiver.answered();
    let of_key: Vec<&String> = answered.iter().filter(|payload| payload.starts_with("k:")).collect();
    assert_eq!(of_key, ["k:0", "k:5", "k:6", "k:7", "k:8"]);
    consumer.drained().await;
}

#[tokio::test]
async fn what_no_try_can_mend_is_given_up_at_once_and_lets_its_key_go_unless_told_otherwise() {
    for (on_dead, held) in [("release", 0), ("hold", 1)] {
        let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
        let topic = kafka.topic(1).await;
        let receiver = Receiver::default();
        let url = receiver.clone().listen().await;
        receiver.tell("k:0", StatusCode::BAD_REQUEST);
        for n in 0..2 {
            kafka.produce(&topic, Some("k"), Some(format!("k:{n}").as_bytes()), &[]).await;
        }
        let retry = format!("inline_attempts = 5, on_dead = \"{on_dead}\"");
        let consumer =
            Consumer::start(&database.agent_url(), kafka, &unique("orders"), &settings(&topic, &url, &retry));
        eventually("it is given up", PATIENCE, async || failures(&database, "dead").await == 1).await;
        let row = database.query_one("select reason, attempts, error from outboxd.dead_letters", &[]).await;
        assert_eq!((row.get::<_, &str>(0), row.get::<_, i32>(1)), ("permanent", 1));
        eventually("the next of its key goes its way", PATIENCE, async || {
            evidence(&database).await == 1 - held && failures(&database, "held").await == held
        })
        .await;
        assert_eq!(receiver.tried("k:0"), 1);
        consumer.drained().await;
    }
}

#[tokio::test]
async fn after_the_last_attempt_a_message_is_given_up() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let topic = kafka.topic(1).await;
    let receiver = Receiver::default();
    let url = receiver.clone().listen().await;
    receiver.tell("bad", StatusCode::SERVICE_UNAVAILABLE);
    kafka.produce(&topic, None, Some(b"bad"), &[]).await;
    let retry = "inline_attempts = 10, max_attempts = 3, backoff = \"10ms\"";
    let consumer =
        Consumer::start(&database.agent_url(), kafka, &unique("orders"), &settings(&topic, &url, retry));
    eventually("it is given up", PATIENCE, async || failures(&database, "dead").await == 1).await;
    assert_eq!(receiver.tried("bad"), 3);
    let row = database.query_one("select reason, attempts from outboxd.dead_letters", &[]).await;
    assert_eq!((row.get::<_, &str>(0), row.get::<_, i32>(1)), ("attempts", 3));
    assert_eq!(database.count("select count(*) from outboxd.attempts").await, 3);
    consumer.drained().await;
}

#[tokio::test]
async fn a_server_that_names_a_time_is_not_asked_before_it() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let topic = kafka.topic(1).await;
    let later =
        |status: StatusCode, after: &'static str| move || async move { (status, [("retry-after", after)]) };
    let router = axum::Router::new()
        .route("/busy", axum::routing::post(later(StatusCode::SERVICE_UNAVAILABLE, "40")))
        .route(
            "/many",
            axum::routing::post(later(StatusCode::TOO_MANY_REQUESTS, "Fri, 31 Dec 2100 23:59:59 GMT")),
        );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    kafka.produce(&topic, None, Some(b"m"), &[]).await;
    let retry = "backoff = \"10ms\", max_backoff = \"1m\"";
    for (path, at_least) in [("busy", 40), ("many", 60)] {
        let group = unique("orders");
        let settings = settings(&topic, &format!("http://{address}/{path}"), retry);
        let consumer = Consumer::start(&database.agent_url(), kafka, &group, &settings);
        let after = async || {
            let query =
                "select extract(epoch from next_attempt_at - changed_at)::float8 from outboxd.failures
                where consumer_group = $1";
            database.query(query, &[&group]).await.first().map(|row| row.get::<_, f64>(0))
        };
        let after = crate::support::eventually_some("it has failed", PATIENCE, after).await;
        assert!((after - f64::from(at_least)).abs() < 5.0, "{path}: {after}: obeyed, up to `max_backoff`");
        consumer.drained().await;
    }
}
