//! `outboxd.enqueue`: its forms, and the id that it returns, which is the message's everywhere.

use serde_json::{Value, json};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::support::{Database, Kafka, Outboxd, Postgres, eventually_some};

/// Calls it as an application and returns what lies in the outbox under the id that it returned.
async fn enqueued(database: &Database, call: &str) -> Row {
    let app = database.connect_app().await;
    let id: Uuid = match app.query_one(&format!("select {call}"), &[]).await {
        Ok(row) => row.get(0),
        Err(error) => panic!("{call}: {error:?}"),
    };
    let sql = "select * from outboxd.messages where coalesce(id, outboxd.message_id(created_at, seq)) = $1";
    database.query_one(sql, &[&id]).await
}

fn payload(row: &Row) -> Option<Vec<u8>> {
    row.get("payload")
}

#[tokio::test]
async fn each_kind_of_payload_is_kept_as_it_is_and_json_says_so() {
    let database = Postgres::shared().await.database().await;
    let none = json!({});
    let is_json = json!({"content-type": "application/json"});
    let kinds: [(&str, Option<&[u8]>, &Value); 12] = [
        ("'plain'", Some(b"plain"), &none),
        ("'{\"a\": 1}'", Some(b"{\"a\": 1}"), &none),
        ("'grüße'::text", Some("grüße".as_bytes()), &none),
        ("'\\x00ff0a'::bytea", Some(b"\x00\xff\x0a"), &none),
        ("'{\"b\":  2,\"a\": 1.10}'::json", Some(b"{\"b\":  2,\"a\": 1.10}"), &is_json),
        ("'{\"b\":  2,\"a\": 1.10}'::jsonb", Some(b"{\"a\": 1.10, \"b\": 2}"), &is_json),
        ("'null'::jsonb", Some(b"null"), &is_json),
        ("jsonb_build_object('a', 1)", Some(b"{\"a\": 1}"), &is_json),
        ("''", Some(b""), &none),
        ("null", None, &none),
        ("null::bytea", None, &none),
        ("null::jsonb", None, &is_json),
    ];
    for (written, bytes, headers) in kinds {
        let row = enqueued(&database, &format!("outboxd.enqueue('t', {written})")).await;
        assert_eq!(payload(&row).as_deref(), bytes, "{written}");
        assert_eq!(&row.get::<_, Value>("headers"), headers, "{written}");
    }
    let own = "outboxd.enqueue('t', '1'::jsonb, headers => '{\"content-type\": \"application/vnd.x+json\", \"a\": \"b\"}')";
    let headers = enqueued(&database, own).await.get::<_, Value>("headers");
    assert_eq!(headers, json!({"content-type": "application/vnd.x+json", "a": "b"}));
}

#[tokio::test]
async fn arguments_go_by_name_and_by_place() {
    let database = Postgres::shared().await.database().await;
    let id = "0199e0c4-35a1-7d27-9a7e-5be91bd1c5f2";
    let calls = [
        format!(
            "outboxd.enqueue('t', 'p', 'k', 'T', '{{\"a\": \"b\"}}', 'i', 'high', '2031-01-01T00:00:00Z', '{id}')"
        ),
        format!(
            "outboxd.enqueue(id => '{id}', deliver_after => '2031-01-01T00:00:00Z', priority => 'high',
               idempotency_key => 'i', headers => '{{\"a\": \"b\"}}', type => 'T', key => 'k', payload => 'p', topic => 't')"
        ),
        format!(
            "outboxd.enqueue('t', convert_to('p', 'UTF8'), key => 'k', type => 'T', headers => '{{\"a\": \"b\"}}',
               idempotency_key => 'i', priority => 1::smallint, deliver_after => '2031-01-01T00:00:00Z', id => '{id}')"
        ),
    ];
    for call in calls {
        let row = enqueued(&database, &call).await;
        let texts = ["topic", "key", "type", "idempotency_key"].map(|column| row.get::<_, String>(column));
        assert_eq!(texts, ["t", "k", "T", "i"], "{call}");
        assert_eq!((payload(&row), row.get("priority")), (Some(b"p".to_vec()), 1_i16), "{call}");
        assert_eq!(row.get::<_, Value>("headers"), json!({"a": "b"}), "{call}");
        let due: chrono::DateTime<chrono::Utc> = row.get("deliver_after");
        assert_eq!(due, "2031-01-01T00:00:00Z".parse::<chrono::DateTime<chrono::Utc>>().unwrap(), "{call}");
        database.batch("delete from outboxd.messages").await;
    }
}

#[tokio::test]
async fn a_priority_is_a_number_or_a_word() {
    let database = Postgres::shared().await.database().await;
    let forms = [
        ("'low'", -1),
        ("'NORMAL'", 0),
        ("'high'::text", 1),
        ("'-1'", -1),
        ("1", 1),
        ("0::smallint", 0),
        ("(-1)::bigint", -1),
        ("'high'::varchar", 1),
    ];
    for payload in ["'x'", "'x'::text", "'x'::bytea", "'1'::json", "'1'::jsonb"] {
        for (written, number) in forms {
            let call = format!("outboxd.enqueue('t', {payload}, priority => {written})");
            assert_eq!(enqueued(&database, &call).await.get::<_, i16>("priority"), number, "{call}");
        }
    }
    let app = database.connect_app().await;
    for written in ["'urgent'", "''", "2", "(-2)::smallint", "null", "70000", "null::smallint"] {
        let call = format!("select outboxd.enqueue('t', 'x', priority => {written})");
        let error = app.batch_execute(&call).await.err().unwrap_or_else(|| panic!("{call} went through"));
        let constraint = error.as_db_error().and_then(|error| error.constraint().map(str::to_owned));
        assert_eq!(constraint.as_deref(), Some("messages_priority_is_minus_1_0_or_1"), "{call}: {error:?}");
    }
}

#[tokio::test]
async fn drivers_that_say_no_type_and_ones_that_do_both_get_through() {
    let database = Postgres::shared().await.database().await;
    let app = database.connect_app().await;
    // The types are left to the server, as most drivers do with text.
    let untyped = app.prepare("select outboxd.enqueue($1, $2, key => $3)").await.unwrap();
    app.query_one(&untyped, &[&"t", &"x", &"k"]).await.unwrap();
    let value = json!({"a": 1});
    app.query_one(
        "select outboxd.enqueue($1, $2::jsonb, headers => $3)",
        &[&"t", &value, &json!({"h": "v"})],
    )
    .await
    .unwrap();
    app.query_one(
        "select outboxd.enqueue($1, $2::bytea, priority => $3::smallint)",
        &[&"t", &&b"\xff"[..], &1_i16],
    )
    .await
    .unwrap();
    assert_eq!(database.count("select count(*) from outboxd.messages").await, 3);
}

#[tokio::test]
async fn what_is_rolled_back_was_never_there() {
    let database = Postgres::shared().await.database().await;
    let mut app = database.connect_app().await;
    let transaction = app.transaction().await.unwrap();
    transaction.query_one("select outboxd.enqueue('t', 'x')", &[]).await.unwrap();
    transaction.rollback().await.unwrap();
    assert_eq!(database.count("select count(*) from outboxd.messages").await, 0);
}

#[tokio::test]
async fn the_id_that_it_returns_is_the_one_in_the_record_and_the_one_shown() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let (database, topic) = (postgres.database().await, kafka.topic(1).await);
    let app = database.connect_app().await;
    let derived: Uuid =
        app.query_one("select outboxd.enqueue($1, 'x', key => 'a')", &[&topic]).await.unwrap().get(0);
    let own = Uuid::new_v4();
    let call = "select outboxd.enqueue($1, 'x', key => 'b', id => $2)";
    assert_eq!(app.query_one(call, &[&topic, &own]).await.unwrap().get::<_, Uuid>(0), own);
    let sql = "select outboxd.message_id(created_at, seq) from outboxd.messages order by seq";
    let ids: Vec<Uuid> = database.query(sql, &[]).await.iter().map(|row| row.get(0)).collect();
    assert_eq!(ids[0], derived);

    let outboxd = Outboxd::new(&database, kafka);
    let _producer = outboxd.producer();
    let records = eventually_some("both are published", std::time::Duration::from_secs(60), async || {
        Some(kafka.read_all(&topic).await).filter(|records| records.len() == 2)
    })
    .await;
    let header = |record: usize, name: &str| records[record].header(name).unwrap();
    assert_eq!([header(0, "id"), header(0, "outboxd-id")], [derived, derived].map(|id| id.to_string()));
    assert_eq!([header(1, "id"), header(1, "outboxd-id")], [own, ids[1]].map(|id| id.to_string()));
    let shown = outboxd.run(&["messages", "show", &derived.to_string(), "--json"]).await;
    assert_eq!(shown.code, 0, "{shown:?}");
}
