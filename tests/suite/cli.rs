//! What the one-shot commands have in common: exit codes, JSON, and secrets that stay secret.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use chrono::DateTime;
use serde_json::Value;
use uuid::Uuid;

use crate::support::{Database, Outboxd, PASSWORD, Postgres, port};

async fn json(outboxd: &Outboxd, arguments: &[&str]) -> Value {
    let output = outboxd.run(&[arguments, &["--json"]].concat()).await;
    assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{arguments:?}");
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
}

fn fields(object: &Value) -> Vec<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

fn assert_time(value: &Value) {
    let text = value.as_str().unwrap_or_else(|| panic!("{value} is no time"));
    DateTime::parse_from_rfc3339(text).unwrap_or_else(|error| panic!("{text}: {error}"));
}

#[tokio::test]
async fn a_postgres_that_is_not_there_is_exit_3_with_its_address_and_without_its_password() {
    let database = Postgres::shared().await.database().await;
    let port = port::free();
    let nowhere = format!("postgres://agent:{PASSWORD}@127.0.0.1:{port}/app");
    let outboxd = Outboxd::without_kafka(&database).postgres_url(&nowhere);
    let commands: [&[&str]; 8] = [
        &["send", "--topic", "t", "x"],
        &["messages", "list"],
        &["messages", "show", "0199e0c4-35a1-7d27-9a7e-5be91bd1c5f2"],
        &["agents", "list"],
        &["lanes", "list", "--json"],
        &["migrate"],
        &["migrate", "--dry-run"],
        &["migrate", "status"],
    ];
    for command in commands {
        let output = outboxd.run(command).await;
        assert_eq!((output.code, output.stdout.as_str()), (3, ""), "{command:?}: {output:?}");
        assert!(output.stderr.contains(&format!("127.0.0.1:{port}")), "{command:?}: {}", output.stderr);
    }
    let lines = b"{\"topic\":\"t\",\"payload\":\"x\"}";
    assert_eq!(outboxd.run_with_input(&["send", "--lines"], lines).await.code, 3);
}

#[tokio::test]
async fn a_password_that_is_wrong_or_lies_in_a_bad_url_is_not_shown() {
    let database = Postgres::shared().await.database().await;
    let wrong = database.agent_url().replace(PASSWORD, &format!("{PASSWORD}-no"));
    let output = Outboxd::without_kafka(&database).postgres_url(&wrong).run(&["lanes", "list"]).await;
    assert_eq!(output.code, 3, "{output:?}");
    assert!(output.stderr.contains("password authentication failed"), "{}", output.stderr);
    for url in [format!("postgres://agent:{PASSWORD}@127.0.0.1:no/app"), format!("agent:{PASSWORD}@here")] {
        let output = Outboxd::without_kafka(&database).postgres_url(&url).run(&["lanes", "list"]).await;
        assert_eq!(output.code, 2, "{output:?}");
        assert!(output.stderr.contains("url"), "{}", output.stderr);
    }
    let options = "postgres.password_file = \"nowhere/password\"";
    let output = Outboxd::without_kafka(&database).set(options).run(&["lanes", "list"]).await;
    assert!(output.code != 0 && output.stderr.contains("nowhere/password"), "{output:?}");
}

#[tokio::test]
async fn a_schema_that_is_missing_or_closed_is_exit_1_with_what_to_do() {
    let postgres = Postgres::shared().await;
    let (database, empty) = (postgres.database().await, postgres.empty_database().await);
    for command in [&["messages", "list"][..], &["lanes", "list"], &["send", "--topic", "t", "x"]] {
        let output = Outboxd::without_kafka(&empty).owner().run(command).await;
        assert_eq!(output.code, 1, "{command:?}: {output:?}");
        assert!(output.stderr.contains("outboxd migrate"), "{command:?}: {}", output.stderr);
    }
    let app = Outboxd::without_kafka(&database).postgres_url(&database.app_url());
    let reader = Outboxd::without_kafka(&database).postgres_url(&database.reader_url());
    let forbidden = [app.run(&["messages", "list"]).await, reader.run(&["send", "--topic", "t", "x"]).await];
    for output in forbidden {
        assert_eq!(output.code, 1, "{output:?}");
        assert!(output.stderr.contains("outboxd_reader"), "{}", output.stderr);
    }
}

/// Enqueues with an id of its own and returns the derived one.
async fn enqueue(database: &Database, own: Uuid) -> Uuid {
    let sql = "select outboxd.message_id(created_at, seq) from outboxd.messages where id = $1";
    database.execute("select outboxd.enqueue('t', 'x', id => $1)", &[&own]).await;
    database.query_one(sql, &[&own]).await.get(0)
}

#[tokio::test]
async fn a_message_is_shown_by_its_own_id_and_by_the_derived_one_and_not_by_another_outboxs() {
    let postgres = Postgres::shared().await;
    let (database, other) = (postgres.database().await, postgres.database().await);
    let another_tag = "
        update outboxd.outbox set tag_low = tag_low # 77;
        create or replace function outboxd.message_id(created_at timestamptz, seq bigint) returns uuid language sql
        as 'select ''0199e0c4-35a1-7d27-9a7e-5be91bd1c5f2''::uuid'";
    other.batch(another_tag).await;
    let own = Uuid::new_v4();
    let derived = enqueue(&database, own).await;
    let outboxd = Outboxd::without_kafka(&database);
    for id in [own, derived] {
        let shown = json(&outboxd, &["messages", "show", &id.to_string()]).await;
        assert_eq!(
            (&shown["id"], &shown["message_id"]),
            (&own.to_string().into(), &derived.to_string().into())
        );
    }
    let elsewhere = Outboxd::without_kafka(&other);
    enqueue(&other, Uuid::new_v4()).await;
    for id in [own, derived, Uuid::new_v4(), Uuid::nil(), Uuid::max()] {
        let output = elsewhere.run(&["messages", "show", &id.to_string()]).await;
        assert_eq!((output.code, output.stdout.as_str()), (4, ""), "{id}: {output:?}");
        assert!(output.stderr.contains(&id.to_string()));
    }
    assert_eq!(outboxd.run(&["messages", "show", "42"]).await.code, 2);
    for name in ["nobody", &own.to_string()] {
        assert_eq!(outboxd.run(&["agents", "show", name]).await.code, 4);
    }
}

#[tokio::test]
async fn who_may_only_look_is_shown_a_message_without_what_is_in_it() {
    let database = Postgres::shared().await.database().await;
    let own = Uuid::new_v4();
    database.execute("select outboxd.enqueue('t', 'the secret', key => 'k', id => $1)", &[&own]).await;
    let id = own.to_string();
    let reader = Outboxd::without_kafka(&database).postgres_url(&database.reader_url());
    let shown = json(&reader, &["messages", "show", &id]).await;
    assert_eq!(shown["key"], "k");
    assert!(["payload", "payload_base64", "headers"].iter().all(|field| shown.get(field).is_none()));
    let text = reader.run(&["messages", "show", &id]).await;
    assert_eq!(text.code, 0, "{text:?}");
    assert!(text.stdout.contains("may not read it") && !text.stdout.contains("the secret"));
    let agent = json(&Outboxd::without_kafka(&database), &["messages", "show", &id]).await;
    assert_eq!(agent["payload"], "the secret");
}

#[tokio::test]
async fn listings_of_nothing_are_done_and_empty() {
    let database = Postgres::shared().await.database().await;
    let outboxd = Outboxd::without_kafka(&database);
    assert_eq!(json(&outboxd, &["messages", "list"]).await, Value::Array(Vec::new()));
    assert_eq!(json(&outboxd, &["agents", "list"]).await, Value::Array(Vec::new()));
    assert_eq!(json(&outboxd, &["lanes", "list"]).await.as_array().unwrap().len(), 3);
    for listing in ["messages", "agents"] {
        let output = outboxd.run(&[listing, "list"]).await;
        assert_eq!((output.code, output.stdout.lines().count()), (0, 1), "{output:?}");
    }
}

#[tokio::test]
async fn every_listing_in_json_has_its_fields_with_times_in_rfc_3339() {
    let database = Postgres::shared().await.database().await;
    database
        .batch(
            "select outboxd.enqueue('t', 'x', key => 'k', type => 'T', deliver_after => now() + interval '1 day');
             insert into outboxd.agents (id, name, role, host, pid, version, heartbeat, health)
               values (gen_random_uuid(), 'relay-1', 'producer', 'h', 1, '0', '30s', '{\"lag\": 1}');
             insert into outboxd.handled (consumer_group, message_id, topic, partition, \"offset\", agent, attempt, took)
               select 'g', outboxd.message_id(created_at, seq), topic, 0, 7, 'c', 1, '1.5s' from outboxd.messages",
        )
        .await;
    let outboxd = Outboxd::without_kafka(&database);

    let messages = json(&outboxd, &["messages", "list"]).await;
    let message_fields = [
        "id",
        "seq",
        "priority",
        "topic",
        "key",
        "type",
        "idempotency_key",
        "created_at",
        "deliver_after",
        "state",
        "reason",
    ];
    assert_eq!(fields(&messages[0]), message_fields);
    assert_eq!((&messages[0]["priority"], &messages[0]["state"]), (&"normal".into(), &"pending".into()));
    assert_time(&messages[0]["created_at"]);
    assert_time(&messages[0]["deliver_after"]);

    let shown = json(&outboxd, &["messages", "show", messages[0]["id"].as_str().unwrap()]).await;
    assert_eq!(
        fields(&shown),
        [
            &message_fields[..],
            &["message_id", "headers", "payload", "publication", "handled", "failing", "failed_attempts"]
        ]
        .concat()
    );
    let handled = &shown["handled"][0];
    let handled_fields = [
        "group",
        "topic",
        "partition",
        "offset",
        "agent",
        "attempt",
        "duplicate_of",
        "handled_at",
        "took_seconds",
    ];
    assert_eq!(fields(handled), handled_fields);
    assert_eq!((handled["offset"].as_i64(), handled["took_seconds"].as_f64()), (Some(7), Some(1.5)));
    assert_time(&handled["handled_at"]);

    let agents = json(&outboxd, &["agents", "list"]).await;
    let agent_fields = [
        "id",
        "name",
        "role",
        "groups",
        "host",
        "pid",
        "version",
        "http",
        "started_at",
        "last_heartbeat_at",
        "state",
        "health",
        "silent_seconds",
        "config_mismatch",
        "drain_ordered_at",
    ];
    assert_eq!(fields(&agents[0]), agent_fields);
    assert_time(&agents[0]["last_heartbeat_at"]);
    let agent = json(&outboxd, &["agents", "show", "relay-1"]).await;
    assert_eq!((fields(&agent), &agent["id"]), (agent_fields.to_vec(), &agents[0]["id"]));

    let lanes = json(&outboxd, &["lanes", "list"]).await;
    let lane_fields = [
        "priority",
        "name",
        "state",
        "agent",
        "lease_expires_at",
        "epoch",
        "window",
        "moved_at",
        "pending",
        "oldest_pending_at",
        "oldest_pending_seconds",
        "scheduled",
        "held",
        "parked",
        "stopped_at_seq",
        "stopped_reason",
    ];
    assert_eq!(fields(&lanes[1]), lane_fields);
    assert_eq!((&lanes[1]["name"], &lanes[1]["state"]), (&"normal".into(), &"free".into()));
    assert_eq!(lanes[1]["pending"], 1);
    assert_time(&lanes[1]["oldest_pending_at"]);

    let versions = json(&outboxd, &["migrate", "status"]).await;
    assert_eq!(fields(&versions[0]), ["version", "name", "state", "applied_at"]);
    assert_time(&versions[0]["applied_at"]);
}

#[tokio::test]
async fn filters_and_pages_leave_nothing_out() {
    let database = Postgres::shared().await.database().await;
    database
        .batch(
            "insert into outboxd.messages (topic, key, priority)
             select 't' || n % 2, 'k' || n % 3, n % 3 - 1 from generate_series(1, 60) n",
        )
        .await;
    let outboxd = Outboxd::without_kafka(&database);
    let seqs = async |arguments: &[&str]| -> Vec<i64> {
        let listed = json(&outboxd, &[&["messages", "list"], arguments].concat()).await;
        listed.as_array().unwrap().iter().map(|message| message["seq"].as_i64().unwrap()).collect()
    };
    let mut paged = seqs(&["--limit", "25"]).await;
    while let Some(last) = paged.last().copied().filter(|last| *last > 1) {
        paged.extend(seqs(&["--limit", "25", "--before", &last.to_string()]).await);
    }
    assert_eq!(paged, (1..=60).rev().collect::<Vec<_>>());
    let some = seqs(&["--topic", "t1", "--key", "k2", "--state", "pending"]).await;
    assert_eq!(some, (1..=60).rev().filter(|n| n % 2 == 1 && n % 3 == 2).collect::<Vec<_>>());
    assert_eq!(seqs(&["--state", "parked"]).await, Vec::<i64>::new());
    assert_eq!(outboxd.run(&["messages", "list", "--state", "lost"]).await.code, 2);
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_is_no_failure() {
    let database = Postgres::shared().await.database().await;
    database.batch("insert into outboxd.messages (topic) select 't' from generate_series(1, 5000)").await;
    let outboxd = Outboxd::without_kafka(&database);
    for arguments in
        [&["messages", "list", "--limit", "5000"][..], &["messages", "list", "--limit", "5000", "--json"]]
    {
        let mut command = outboxd.command(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = String::new();
        BufReader::with_capacity(16, child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        assert!(!first.is_empty());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{arguments:?}");
    }
}
