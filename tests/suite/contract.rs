//! The SQL contract: what each role may do, and what a constraint refuses by its name at either door.

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use crate::support::{Database, Postgres, database};

const FORBIDDEN: &SqlState = &SqlState::INSUFFICIENT_PRIVILEGE;

async fn refused(client: &Client, sql: &str) -> Error {
    client.batch_execute(sql).await.err().unwrap_or_else(|| panic!("{sql} went through"))
}

async fn assert_forbidden(client: &Client, sql: &str) {
    let error = refused(client, sql).await;
    assert_eq!(error.code(), Some(FORBIDDEN), "{sql}: {error:?}");
}

#[tokio::test]
async fn an_application_may_insert_and_read_back_the_id_and_nothing_else() {
    let database = Postgres::shared().await.database().await;
    let app = database.connect_app().await;
    let every_column = "insert into outboxd.messages
          (id, topic, key, payload, headers, type, idempotency_key, priority, deliver_after)
        values (gen_random_uuid(), 'orders', 'k', 'x', '{\"a\": \"b\"}', 'T', 'i', 1, now())
        returning seq, created_at, coalesce(id, outboxd.message_id(created_at, seq))";
    app.query_one(every_column, &[]).await.unwrap();
    app.query_one("select outboxd.enqueue('orders', 'x', key => 'k')", &[]).await.unwrap();
    for column in
        ["txid", "topic", "key", "payload", "headers", "type", "idempotency_key", "retry", "priority"]
    {
        assert_forbidden(&app, &format!("select {column} from outboxd.messages")).await;
    }
    let values = [("txid", "'5'"), ("seq", "5"), ("retry", "'{}'"), ("created_at", "now()")];
    for (column, value) in values {
        let sql = format!("insert into outboxd.messages (topic, {column}) values ('orders', {value})");
        assert_forbidden(&app, &sql).await;
    }
    let sequence = "outboxd.messages_seq";
    for sql in [
        "update outboxd.messages set key = 'other'",
        "update outboxd.messages set created_at = now()",
        "delete from outboxd.messages",
        "delete from outboxd.messages where seq = 1",
        "truncate outboxd.messages",
        "select * from outboxd.messages_default",
        "insert into outboxd.messages_default (topic) values ('orders')",
        "drop table outboxd.messages",
        "create table outboxd.mine (n int)",
        "create trigger mine before insert on outboxd.messages execute function suppress_redundant_updates_trigger()",
        &format!("select setval('{sequence}', 1)"),
        &format!("select last_value from {sequence}"),
        &format!("alter sequence {sequence} restart"),
    ] {
        assert_forbidden(&app, sql).await;
    }
    for relation in relations(&database).await {
        if relation != "messages" {
            assert_forbidden(&app, &format!("select * from outboxd.{relation}")).await;
        }
    }
}

/// Every table and view of the schema.
async fn relations(database: &Database) -> Vec<String> {
    let sql = "select relname from pg_class where relnamespace = 'outboxd'::regnamespace and relkind in ('r', 'p', 'v')";
    let names: Vec<String> = database.query(sql, &[]).await.iter().map(|row| row.get(0)).collect();
    assert!(names.len() > 8, "{names:?}");
    names
}

#[tokio::test]
async fn who_only_looks_sees_no_payload_and_changes_nothing() {
    let database = Postgres::shared().await.database().await;
    database.batch("select outboxd.enqueue('t', 'x')").await;
    let reader = database::connect(&database.reader_url()).await;
    for view in
        ["message_states", "lane_status", "agents", "handled", "idempotency_keys", "groups", "migrations"]
    {
        reader.query(&format!("select * from outboxd.{view}"), &[]).await.unwrap();
    }
    for column in ["payload", "headers"] {
        assert_forbidden(&reader, &format!("select {column} from outboxd.messages")).await;
        assert_forbidden(&reader, &format!("select {column} from outboxd.set_aside")).await;
    }
    for sql in ["select outboxd.enqueue('t', 'x')", "insert into outboxd.messages (topic) values ('t')"] {
        assert_forbidden(&reader, sql).await;
    }
    for relation in relations(&database).await {
        let sql = format!("delete from outboxd.{relation}");
        let error = refused(&reader, &sql).await;
        let is_view = error.code() == Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE);
        assert!(is_view || error.code() == Some(FORBIDDEN), "{sql}: {error:?}");
    }
    let telling = "select table_name || '.' || column_name from information_schema.columns
        join information_schema.views using (table_schema, table_name)
        where table_schema = 'outboxd' and (data_type in ('bytea', 'jsonb', 'json') or column_name ~ 'payload|headers')";
    assert_eq!(database.query(telling, &[]).await.len(), 0, "a view shows what is in a message");
}

#[tokio::test]
async fn nobody_who_was_granted_nothing_gets_in() {
    let database = Postgres::shared().await.database().await;
    let outsider = database.connect().await;
    let name = format!("outsider_{:08x}", fastrand::u32(..));
    outsider.batch_execute(&format!("create role {name}; set role {name}")).await.unwrap();
    for relation in relations(&database).await {
        assert_forbidden(&outsider, &format!("select from outboxd.{relation}")).await;
    }
    assert_forbidden(&outsider, "select outboxd.enqueue('t', 'x')").await;
    outsider.batch_execute(&format!("reset role; drop role {name}")).await.unwrap();
}

const TOPIC: &str = "messages_topic_is_a_name_that_kafka_allows";
const FLAT: &str = "messages_headers_are_a_flat_object_of_strings";
const NAMES: &str = "messages_headers_are_not_named_id_or_outboxd";
const PRIORITY: &str = "messages_priority_is_minus_1_0_or_1";
const KEY: &str = "messages_idempotency_key_has_1_to_1024_bytes";

/// A column, an SQL value for it, and the constraint that refuses it.
const WRONG: &[(&str, &str, &str)] = &[
    ("topic", "''", TOPIC),
    ("topic", "'.'", TOPIC),
    ("topic", "'..'", TOPIC),
    ("topic", "'a b'", TOPIC),
    ("topic", "'a/b'", TOPIC),
    ("topic", "'ä'", TOPIC),
    ("topic", "E'a\\n'", TOPIC),
    ("topic", "repeat('x', 250)", TOPIC),
    ("headers", "'[]'", FLAT),
    ("headers", "'\"text\"'", FLAT),
    ("headers", "'1'", FLAT),
    ("headers", "'null'", FLAT),
    ("headers", "'[{\"a\": \"b\"}]'", FLAT),
    ("headers", "'{\"a\": 1}'", FLAT),
    ("headers", "'{\"a\": null}'", FLAT),
    ("headers", "'{\"a\": \"b\", \"c\": true}'", FLAT),
    ("headers", "'{\"a\": {}}'", FLAT),
    ("headers", "'{\"a\": [\"b\"]}'", FLAT),
    ("headers", "'{\"id\": \"1\"}'", NAMES),
    ("headers", "'{\"outboxd-id\": \"1\"}'", NAMES),
    ("headers", "'{\"outboxd-retry-target\": \"1\", \"a\": \"b\"}'", NAMES),
    ("headers", "'{\"outboxd-\": \"1\"}'", NAMES),
    ("priority", "2::smallint", PRIORITY),
    ("priority", "(-2)::smallint", PRIORITY),
    ("idempotency_key", "''", KEY),
    ("idempotency_key", "repeat('x', 1025)", KEY),
    ("idempotency_key", "repeat('ä', 513)", KEY),
];

/// What comes close to those.
const RIGHT: &[(&str, &str)] = &[
    ("topic", "'a.b_c-D9'"),
    ("topic", "'...'"),
    ("topic", "repeat('x', 249)"),
    ("headers", "'{}'"),
    (
        "headers",
        "'{\"ID\": \"1\", \"outboxd\": \"\", \"x-outboxd-id\": \"1\", \"traceparent\": \"00\", \"\": \"\"}'",
    ),
    ("priority", "(-1)::smallint"),
    ("priority", "1::smallint"),
    ("idempotency_key", "'i'"),
    ("idempotency_key", "repeat('ä', 512)"),
    ("idempotency_key", "null"),
    ("key", "''"),
    ("key", "repeat('x', 5000)"),
];

/// The statement at each door.
fn doors(column: &str, value: &str) -> [String; 2] {
    if column == "topic" {
        return [
            format!("insert into outboxd.messages (topic) values ({value})"),
            format!("select outboxd.enqueue({value}, 'x')"),
        ];
    }
    [
        format!("insert into outboxd.messages (topic, {column}) values ('t', {value})"),
        format!("select outboxd.enqueue('t', 'x', {column} => {value})"),
    ]
}

#[tokio::test]
async fn what_kafka_or_outboxd_could_not_keep_is_refused_by_a_constraint_whose_name_says_why() {
    let database = Postgres::shared().await.database().await;
    let app = database.connect_app().await;
    for (column, value, constraint) in WRONG {
        for sql in doors(column, value) {
            let error = refused(&app, &sql).await;
            let error = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error:?}"));
            assert_eq!(error.constraint(), Some(*constraint), "{sql}: {error:?}");
            assert_eq!(error.code(), &SqlState::CHECK_VIOLATION, "{sql}");
        }
    }
    assert_eq!(database.count("select count(*) from outboxd.messages").await, 0);
    for (column, value) in RIGHT {
        for sql in doors(column, value) {
            app.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        }
    }
    let no_topic = refused(&app, "insert into outboxd.messages (payload) values ('x')").await;
    assert_eq!(no_topic.code(), Some(&SqlState::NOT_NULL_VIOLATION));
}
