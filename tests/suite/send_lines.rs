//! `send --lines`: batches in order; what is in and what is not is always said.

use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Database, Outboxd, Postgres};

const OWN_ID: &str = "0199e0c4-35a1-7d27-9a7e-5be91bd1c5f2";

fn outboxd(database: &Database) -> Outboxd {
    Outboxd::without_kafka(database).postgres_url(&database.app_url())
}

fn numbered(count: usize) -> String {
    let line = |n| json!({"topic": "orders", "key": "k", "payload": n}).to_string() + "\n";
    (1..=count).map(|n| line(n.to_string())).collect()
}

async fn payloads(database: &Database) -> Vec<String> {
    let rows = database.query("select convert_from(payload, 'UTF8') from outboxd.messages order by seq", &[]);
    rows.await.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn many_lines_are_inserted_in_their_order() {
    let database = Postgres::shared().await.database().await;
    let output = outboxd(&database).run_with_input(&["send", "--lines"], numbered(2500).as_bytes()).await;
    assert_eq!((output.code, output.stdout.trim()), (0, "2500 messages inserted"), "{}", output.stderr);
    assert_eq!(payloads(&database).await, (1..=2500).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_line_says_everything_that_a_message_has() {
    let database = Postgres::shared().await.database().await;
    let full = json!({
        "topic": "orders", "key": "k", "payload_base64": STANDARD.encode([0xff, 0, 0x0a]), "type": "T",
        "headers": {"a": "b"}, "idempotency_key": "i", "priority": "low",
        "deliver_after": "2031-12-24T18:00:00+01:00", "id": OWN_ID,
    });
    let number = "{\"payload\": {\"n\": 10000000000000000000001.10}}";
    let lines =
        format!("{full}\n\n{number}\r\n{{\"payload\": null}}\n{{\"payload\": \"text\", \"topic\": \"t\"}}");
    let arguments = ["send", "--lines", "--json", "--topic", "rest"];
    let output = outboxd(&database).run_with_input(&arguments, lines.as_bytes()).await;
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    let all = "select topic, key, payload, type, headers, idempotency_key, priority::int,
        to_char(deliver_after at time zone 'utc', 'YYYY-MM-DD HH24:MI:SS') as due,
        coalesce(id, outboxd.message_id(created_at, seq)) as id from outboxd.messages order by seq";
    let rows = database.query(all, &[]).await;
    let text = |row: usize, column: &str| rows[row].get::<_, Option<String>>(column);
    let payload = |row: usize| rows[row].get::<_, Option<Vec<u8>>>("payload");
    let found = ["topic", "key", "type", "idempotency_key", "due"].map(|column| text(0, column).unwrap());
    assert_eq!(found, ["orders", "k", "T", "i", "2031-12-24 17:00:00"]);
    assert_eq!(rows[0].get::<_, Value>("headers"), json!({"a": "b"}));
    assert_eq!((rows[0].get::<_, i32>("priority"), payload(0)), (-1, Some(vec![0xff, 0, 0x0a])));
    assert_eq!(payload(1).as_deref(), Some(&b"{\"n\": 10000000000000000000001.10}"[..]), "as it was written");
    assert_eq!(rows[1].get::<_, Value>("headers"), json!({"content-type": "application/json"}));
    assert_eq!((payload(2), text(2, "topic").as_deref()), (None, Some("rest")));
    assert_eq!((payload(3), text(3, "topic").as_deref()), (Some(b"text".to_vec()), Some("t")));
    let printed: Vec<Value> = output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids = rows.iter().map(|row| row.get::<_, Uuid>("id"));
    let expected: Vec<Value> =
        [1, 3, 4, 5].into_iter().zip(ids).map(|(line, id)| json!({"line": line, "id": id})).collect();
    assert_eq!(printed, expected, "a blank line is counted and skipped");
}

#[tokio::test]
async fn a_bad_line_stops_before_its_batch_and_what_went_before_stays_and_is_said() {
    let database = Postgres::shared().await.database().await;
    let lines = numbered(2500) + "{\"topic\":\"orders\",\"payloat\":1}\n" + &numbered(500);
    let output = outboxd(&database).run_with_input(&["send", "--lines"], lines.as_bytes()).await;
    assert_eq!((output.code, output.stdout.as_str()), (1, ""));
    for words in ["line 2501", "`payload`", "lines 1-2000 are inserted", "2000 messages"] {
        assert!(output.stderr.contains(words), "{words}: {}", output.stderr);
    }
    assert_eq!(payloads(&database).await, (1..=2000).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_bad_first_line_is_wrong_usage_and_nothing_is_inserted() {
    let database = Postgres::shared().await.database().await;
    let bad = [
        "nonsense",
        "[]",
        "{\"payload\":\"no topic\"}",
        "{\"topic\":\"t\"}",
        "{\"topic\":\"a b\",\"payload\":\"x\"}",
        "{\"topic\":\"t\",\"payload\":\"x\",\"payload_base64\":\"eA==\"}",
        "{\"topic\":\"t\",\"payload\":\"x\",\"headers\":{\"a\":1}}",
        "{\"topic\":\"t\",\"payload\":\"x\",\"headers\":{\"outboxd-id\":\"1\"}}",
        "{\"topic\":\"t\",\"payload\":\"x\",\"priority\":\"urgent\"}",
        "{\"topic\":\"t\",\"payload\":\"x\",\"id\":\"42\"}",
        "{\"topic\":\"t\",\"payload\":\"x\",\"key\":\"a\\u0000b\"}",
    ];
    for line in bad {
        let lines = format!("{line}\n{}", numbered(10));
        let output = outboxd(&database).run_with_input(&["send", "--lines"], lines.as_bytes()).await;
        assert_eq!((output.code, output.stdout.as_str()), (2, ""), "{line}: {output:?}");
        for words in ["line 1:", "nothing is inserted"] {
            assert!(output.stderr.contains(words), "{line}: {}", output.stderr);
        }
    }
    assert_eq!(payloads(&database).await, Vec::<String>::new());
}

#[tokio::test]
async fn the_messages_go_in_also_if_nobody_reads_their_ids() {
    let database = Postgres::shared().await.database().await;
    let outboxd = outboxd(&database);
    let file = outboxd.config().with_file_name("lines");
    std::fs::write(&file, numbered(5000)).unwrap();
    let command = outboxd.command(&["send", "--lines", "--json", "--file", file.to_str().unwrap()]);
    let mut command = tokio::process::Command::from(command);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().await.unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap()), (Some(0), String::new()));
    assert_eq!(payloads(&database).await.len(), 5000);
}
