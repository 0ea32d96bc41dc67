//! `send`, one message: what was asked for is what lies in the outbox, or nothing does.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::support::{Database, Outboxd, Postgres};

const OWN_ID: &str = "0199e0c4-35a1-7d27-9a7e-5be91bd1c5f2";

/// With the rights of an application, and no more.
fn outboxd(database: &Database) -> Outboxd {
    Outboxd::without_kafka(database).postgres_url(&database.app_url())
}

async fn sent(database: &Database) -> Vec<Row> {
    let all = "select *, outboxd.message_id(created_at, seq) as derived from outboxd.messages order by seq";
    database.query(all, &[]).await
}

fn text(row: &Row, column: &str) -> Option<String> {
    row.get(column)
}

#[tokio::test]
async fn each_fact_arrives_as_it_was_given() {
    let database = Postgres::shared().await.database().await;
    let arguments = [
        &["send", "--topic", "orders.v1", "--key", "customer 7", "--type", "OrderPlaced"][..],
        &["--header", "a=b=c", "--header", "traceparent=00-1", "--header", "empty="],
        &["--idempotency-key", "order-42", "--priority", "HIGH", "--id", OWN_ID, "grüße"],
    ];
    let output = outboxd(&database).run(&arguments.concat()).await;
    assert_eq!((output.code, output.stdout.trim(), output.stderr.as_str()), (0, OWN_ID, ""));
    let rows = sent(&database).await;
    let [row] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!(text(row, "topic").as_deref(), Some("orders.v1"));
    assert_eq!(text(row, "key").as_deref(), Some("customer 7"));
    assert_eq!(text(row, "type").as_deref(), Some("OrderPlaced"));
    assert_eq!(text(row, "idempotency_key").as_deref(), Some("order-42"));
    let headers = json!({"a": "b=c", "traceparent": "00-1", "empty": ""});
    assert_eq!(row.get::<_, Value>("headers"), headers);
    assert_eq!(row.get::<_, i16>("priority"), 1);
    assert_eq!(row.get::<_, Uuid>("id").to_string(), OWN_ID);
    assert_eq!(row.get::<_, Vec<u8>>("payload"), "grüße".as_bytes());
    assert_eq!(row.get::<_, Option<DateTime<Utc>>>("deliver_after"), None);
    assert_eq!(row.get::<_, Option<Value>>("retry"), None);
}

#[tokio::test]
async fn what_is_not_given_is_absent_and_the_derived_id_is_printed() {
    let database = Postgres::shared().await.database().await;
    let plain = outboxd(&database).run(&["send", "--topic", "t", "x"]).await;
    let as_json = outboxd(&database).run(&["send", "--topic", "t", "x", "--json"]).await;
    assert_eq!((plain.code, as_json.code), (0, 0), "{plain:?} {as_json:?}");
    let rows = sent(&database).await;
    for column in ["key", "type", "idempotency_key"] {
        assert_eq!(text(&rows[0], column), None, "{column}");
    }
    assert_eq!(rows[0].get::<_, Value>("headers"), json!({}));
    assert_eq!((rows[0].get::<_, i16>("priority"), rows[0].get::<_, Option<Uuid>>("id")), (0, None));
    assert_eq!(plain.stdout.trim(), rows[0].get::<_, Uuid>("derived").to_string());
    let as_json: Value = serde_json::from_str(&as_json.stdout).unwrap();
    assert_eq!(as_json, json!({ "id": rows[1].get::<_, Uuid>("derived") }));
}

/// Arguments, what is on standard input, and the payload that it makes.
type Way<'a> = (&'a [&'a str], &'a [u8], Option<&'a [u8]>);

#[tokio::test]
async fn a_payload_comes_byte_by_byte_from_argument_file_or_standard_input() {
    let database = Postgres::shared().await.database().await;
    let outboxd = outboxd(&database);
    let bytes: Vec<u8> = (0..=255).chain(*b"\n\n").collect();
    let file = outboxd.config().with_file_name("payload");
    std::fs::write(&file, &bytes).unwrap();
    let file = file.to_str().unwrap();
    let ways: [Way; 6] = [
        (&["an argument"], b"not this", Some(b"an argument")),
        (&["--file", file], b"not this", Some(&bytes)),
        (&["--file", "-"], &bytes, Some(&bytes)),
        (&[], &bytes, Some(&bytes)),
        (&[], b"", Some(b"")),
        (&["--tombstone"], b"not this", None),
    ];
    for (number, (way, input, expected)) in ways.into_iter().enumerate() {
        let output = outboxd.run_with_input(&[&["send", "--topic", "t"], way].concat(), input).await;
        assert_eq!(output.code, 0, "{way:?}: {output:?}");
        let rows = sent(&database).await;
        assert_eq!(rows.len(), number + 1);
        assert_eq!(rows[number].get::<_, Option<Vec<u8>>>("payload").as_deref(), expected, "{way:?}");
    }
}

#[tokio::test]
async fn a_delay_runs_by_the_clock_of_the_database_and_a_time_is_taken_as_it_is() {
    let database = Postgres::shared().await.database().await;
    let after = outboxd(&database).run(&["send", "--topic", "t", "--after", "1h 30s", "x"]).await;
    let at = ["send", "--topic", "t", "--at", "2031-12-24T18:00:00.123456+01:00", "x"];
    let at = outboxd(&database).run(&at).await;
    assert_eq!((after.code, at.code), (0, 0), "{after:?} {at:?}");
    let rows = sent(&database).await;
    let due = |row: &Row| row.get::<_, DateTime<Utc>>("deliver_after");
    let delay = due(&rows[0]) - rows[0].get::<_, DateTime<Utc>>("created_at");
    let wanted = TimeDelta::seconds(3630);
    assert!((delay - wanted).abs() < TimeDelta::seconds(1), "{delay}");
    assert_eq!(due(&rows[1]), "2031-12-24T17:00:00.123456Z".parse::<DateTime<Utc>>().unwrap());
}

#[tokio::test]
async fn what_is_wrong_is_said_and_nothing_is_inserted() {
    let database = Postgres::shared().await.database().await;
    let long = "k".repeat(1025);
    let wrong: [(&[&str], &str); 18] = [
        (&["--topic", "a b", "x"], "`a b`"),
        (&["--topic", "..", "x"], "`..`"),
        (&["x"], "--topic"),
        (&["--topic", "t", "--header", "id=1", "x"], "`id`"),
        (&["--topic", "t", "--header", "outboxd-retry-target=me", "x"], "`outboxd-retry-target`"),
        (&["--topic", "t", "--header", "a=1", "--header", "a=2", "x"], "twice"),
        (&["--topic", "t", "--header", "a", "x"], "NAME=VALUE"),
        (&["--topic", "t", "--priority", "2", "x"], "low, normal, high"),
        (&["--topic", "t", "--priority", "urgent", "x"], "low, normal, high"),
        (&["--topic", "t", "--after", "soon", "x"], "--after"),
        (&["--topic", "t", "--at", "2026-12-24T18:00:00", "x"], "RFC 3339"),
        (&["--topic", "t", "--at", "2026-12-24T18:00:00Z", "--after", "1s", "x"], "--after"),
        (&["--topic", "t", "--id", "42", "x"], "--id"),
        (&["--topic", "t", "--idempotency-key", "", "x"], "1 to 1024"),
        (&["--topic", "t", "--idempotency-key", &long, "x"], "1025"),
        (&["--topic", "t", "--tombstone", "x"], "--tombstone"),
        (&["--topic", "t", "--file", "nowhere/payload"], "nowhere/payload"),
        (&["--topic", "t", "--file", "payload", "x"], "--file"),
    ];
    for (arguments, word) in wrong {
        let output = outboxd(&database).run(&[&["send"], arguments].concat()).await;
        assert_eq!((output.code, output.stdout.as_str()), (2, ""), "{arguments:?}: {output:?}");
        assert!(output.stderr.contains(word), "{arguments:?}: {}", output.stderr);
    }
    assert_eq!(sent(&database).await.len(), 0);
}
