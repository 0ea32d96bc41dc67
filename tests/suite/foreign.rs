//! Records that no outbox wrote, of every shape that Kafka has: each handler gets them to the byte.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::Value;

use crate::support::{Kafka, Outboxd, Postgres, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

/// What a handler has seen of a record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    key: Option<Vec<u8>>,
    payload: Option<Vec<u8>>,
    tenant: Option<String>,
}

/// By offset.
type AllSeen = BTreeMap<i64, Seen>;

type Headers = &'static [(&'static str, &'static [u8])];

/// Key, payload and headers.
type Written = (Option<Vec<u8>>, Option<Vec<u8>>, Headers);

/// Each is handled once, as it is here.
fn records() -> Vec<Written> {
    let every_byte: Vec<u8> = (0..=255).collect();
    let megabyte = every_byte.iter().copied().cycle().take(1_000_000).collect();
    vec![
        (None, None, &[]),
        (Some(b"k".to_vec()), None, &[]),
        (Some(Vec::new()), Some(Vec::new()), &[]),
        (Some(every_byte.clone()), Some(every_byte), &[("content-type", b"application/x-unheard-of")]),
        (Some(b"k".to_vec()), Some(megabyte), &[("content-type", b"\xff\xfe")]),
        (Some(b"k".to_vec()), Some(vec![b'x'; 1_000_000]), &[]),
        (
            Some("zürich %\"".into()),
            Some("{\"a\": \"ü\\n\"}\n\n".into()),
            &[("tenant", b"first"), ("image", &[0xff, 0x00]), ("tenant", b"z\xc3\xbcrich"), ("", b"")],
        ),
        (None, Some(b"null".to_vec()), &[("ce_id", b"event-1"), ("ce_type", b"Seen")]),
    ]
}

async fn write(kafka: &Kafka, topic: &str) -> AllSeen {
    let mut config = kafka.client_config();
    let producer: FutureProducer = config.set("message.max.bytes", "1048576").create().unwrap();
    let mut expected = AllSeen::new();
    for (key, payload, headers) in records() {
        let told = headers
            .iter()
            .fold(OwnedHeaders::new(), |told, (key, value)| told.insert(Header { key, value: Some(*value) }));
        let mut record: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(topic).headers(told);
        (record.key, record.payload) = (key.as_deref(), payload.as_deref());
        let written = producer.send(record, PATIENCE).await.map_err(|(error, _)| error).unwrap();
        let tenant = headers.iter().rev().find(|(name, _)| *name == "tenant");
        let tenant = tenant.map(|(_, value)| String::from_utf8(value.to_vec()).unwrap());
        expected.insert(written.offset, Seen { key, payload, tenant });
    }
    // The same event once more, as `dedup = "id"` has it.
    kafka.produce(topic, None, Some(b"again"), &[("ce_id", "event-1")]).await;
    expected
}

async fn listen(seen: Arc<Mutex<AllSeen>>) -> String {
    async fn take(State(seen): State<Arc<Mutex<AllSeen>>>, headers: HeaderMap, body: Bytes) -> StatusCode {
        let decoded = |name: &str| {
            headers
                .get(name)
                .map(|value| percent_encoding::percent_decode(value.as_bytes()).collect::<Vec<u8>>())
        };
        let offset = headers["outboxd-offset"].to_str().unwrap().parse().unwrap();
        let payload = decoded("outboxd-tombstone").is_none().then(|| body.to_vec());
        let tenant = decoded("outboxd-header-tenant").map(|text| String::from_utf8(text).unwrap());
        seen.lock().unwrap().insert(offset, Seen { key: decoded("outboxd-key"), payload, tenant });
        StatusCode::OK
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let router = Router::new().route("/", post(take)).with_state(seen);
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

fn decode(text: &str) -> Vec<u8> {
    openssl::base64::decode_block(text).unwrap()
}

/// What the program of `exec` has left.
fn of_programs(folder: &Path) -> AllSeen {
    let read = |offset: i64, name: &str| fs::read(folder.join(format!("{offset}.{name}"))).ok();
    let text = |offset, name| read(offset, name).map(|bytes| String::from_utf8(bytes).unwrap());
    let offsets = fs::read_dir(folder).unwrap().filter_map(|entry| {
        entry.unwrap().file_name().to_str().unwrap().strip_suffix(".payload")?.parse().ok()
    });
    offsets
        .map(|offset| {
            let headers: Value = serde_json::from_str(&text(offset, "headers").unwrap()).unwrap();
            let seen = Seen {
                key: text(offset, "key").map(|key| decode(&key)),
                payload: read(offset, "tombstone").is_none().then(|| read(offset, "payload").unwrap()),
                tenant: headers["tenant"].as_str().map(str::to_owned),
            };
            (offset, seen)
        })
        .collect()
}

/// What the worker has written down, line by line.
fn of_worker(path: &Path) -> AllSeen {
    let text = fs::read_to_string(path).unwrap_or_default();
    let messages = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    messages
        .map(|message| {
            let bytes = |name: &str| {
                let text = message[name].as_str().map(|text| text.as_bytes().to_vec());
                text.or_else(|| message[format!("{name}_base64")].as_str().map(decode))
            };
            let tenant = message["headers"]["tenant"].as_str().map(str::to_owned);
            let seen = Seen { key: bytes("key"), payload: bytes("payload"), tenant };
            (message["offset"].as_i64().unwrap(), seen)
        })
        .collect()
}

#[tokio::test]
async fn every_record_reaches_every_kind_of_handler_to_the_byte() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let folder = tempfile::tempdir().unwrap();
    let topic = kafka.topic(1).await;
    database
        .batch(
            "create table seen (o bigint, key bytea, payload bytea, tenant text);
             create function on_record(d outboxd.delivery) returns void language sql as
               $$ insert into seen values (d.\"offset\", d.key_bytes, d.payload, d.headers ->> 'tenant') $$;
             grant insert on seen to outboxd_agent",
        )
        .await;
    let expected = write(kafka, &topic).await;
    let posted = Arc::default();
    let url = listen(Arc::clone(&posted)).await;
    let each = folder.path().join("each");
    fs::create_dir(&each).unwrap();
    let program = r#"cd "$1" && o=$OUTBOXD_OFFSET
        [ -z "${OUTBOXD_KEY_BASE64+set}" ] || printf %s "$OUTBOXD_KEY_BASE64" > $o.key
        [ -z "${OUTBOXD_TOMBSTONE+set}" ] || : > $o.tombstone
        printf %s "$OUTBOXD_HEADERS" > $o.headers && cat > $o.part && mv $o.part $o.payload"#;
    let worker = r#"while IFS= read -r line; do
        printf '%s\n' "$line" >> "$1"; id=${line#'{"id":"'}; echo "{\"id\":\"${id%%\"*}\",\"outcome\":\"done\"}"
        done"#;
    let lines = folder.path().join("lines");
    let exec = |mode: &str, program: &str, place: &Path| {
        let command = serde_json::json!(["sh", "-c", program, "sh", place]);
        format!("kind = \"exec\"\nmode = \"{mode}\"\ncommand = {command}")
    };
    let unique = format!("{:08x}", fastrand::u32(..));
    let handlers = [
        ("http", format!("kind = \"http\"\nurl = \"{url}\"")),
        ("each", exec("each", program, &each)),
        ("worker", exec("worker", worker, &lines)),
        ("sql", "kind = \"sql\"\nfunction = \"on_record\"".to_owned()),
    ];
    let mut outboxd = Outboxd::new(&database, kafka);
    let mut groups = Vec::new();
    for (name, handler) in handlers {
        let group = format!("{name}-{unique}");
        outboxd = outboxd.group(&group, &topic, &handler).set(&format!("groups.{group}.dedup = \"id\""));
        groups.push(group);
    }
    let consumer = outboxd.consumer(&groups.iter().map(String::as_str).collect::<Vec<_>>());
    let handled = "select count(*) from outboxd.handled";
    let all = i64::try_from(4 * (expected.len() + 1)).unwrap();
    eventually("all is handled", PATIENCE, async || database.count(handled).await == all).await;
    consumer.terminate();
    assert_eq!(consumer.wait_exit().await, Some(0), "{}", consumer.log());
    assert_eq!(*posted.lock().unwrap(), expected, "http");
    assert_eq!(of_programs(&each), expected, "exec");
    assert_eq!(of_worker(&lines), expected, "exec worker");
    let rows = database.query("select o, key, payload, tenant from seen", &[]).await;
    let in_sql: AllSeen = rows
        .iter()
        .map(|row| (row.get(0), Seen { key: row.get(1), payload: row.get(2), tenant: row.get(3) }))
        .collect();
    assert_eq!(in_sql, expected, "sql");
    assert_eq!(rows.len(), expected.len());
}
