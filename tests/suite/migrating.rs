//! The schema comes up once, whole, by whoever may; daemons work on what fits them and on nothing else.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use outboxd::pg::migrate::{MIGRATIONS, newest};
use serde_json::Value;

use crate::support::{Daemon, Database, Kafka, Outboxd, PASSWORD, Postgres, eventually};

fn migrator(database: &Database) -> Outboxd {
    Outboxd::without_kafka(database).owner()
}

/// Runs a script as an operator would; it must go through.
fn psql(database: &Database, script: &str) {
    let mut psql = Command::new("psql");
    psql.args(["--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1", "-d", &database.url, "-f", "-"]);
    let mut child = psql.stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The schema as SQL, rights included, without the outbox's tag and what `pg_dump` makes anew each time.
fn schema(database: &Database) -> String {
    let output = Command::new("pg_dump").args(["--schema-only", &database.url]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let dump = String::from_utf8(output.stdout).unwrap();
    let lines =
        dump.lines().filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"));
    let text: Vec<_> = lines
        .map(
            |line| {
                if line.contains("4095") || line.contains("4611686018427387903") { "the tag" } else { line }
            },
        )
        .collect();
    text.join("\n")
}

async fn applied(database: &Database) -> Vec<(i32, String, String, i32)> {
    let sql = "select version, name, checksum, oldest_compatible from outboxd.migrations order by version";
    let rows = database.query(sql, &[]).await;
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect()
}

#[tokio::test]
async fn of_several_at_once_one_does_the_work_and_the_others_wait() {
    let database = Postgres::shared().await.empty_database().await;
    let first = database.connect().await;
    // The first of them, seen from the others.
    first.batch_execute("select pg_advisory_lock(hashtextextended('outboxd.migrate', 0))").await.unwrap();
    let outboxd = migrator(&database);
    let waiting = async {
        let waiters = "select count(*) from pg_locks where locktype = 'advisory' and not granted
            and database = (select oid from pg_database where datname = current_database())";
        eventually("all wait", Duration::from_secs(30), async || {
            first.query_one(waiters, &[]).await.unwrap().get::<_, i64>(0) == 3
        })
        .await;
        assert!(database.query("select from pg_namespace where nspname = 'outboxd'", &[]).await.is_empty());
        first.batch_execute("select pg_advisory_unlock_all()").await.unwrap();
    };
    let run = || outboxd.run(&["migrate"]);
    let (one, two, three, ()) = tokio::join!(run(), run(), run(), waiting);
    let outputs = [one, two, three];
    for output in &outputs {
        assert_eq!(output.code, 0, "{output:?}");
        assert!(output.stderr.contains("another `outboxd migrate` is at work"), "{output:?}");
        assert!(output.stdout.contains(&format!("the schema is at version {}", newest())), "{output:?}");
    }
    let worked = outputs.iter().filter(|output| output.stdout.contains("applied")).count();
    assert_eq!((worked, applied(&database).await.len()), (1, MIGRATIONS.len()));
}

#[tokio::test]
async fn what_a_dry_run_prints_is_what_a_migration_does() {
    let postgres = Postgres::shared().await;
    let (migrated, by_hand) = (postgres.empty_database().await, postgres.empty_database().await);
    let plan = migrator(&by_hand).run(&["migrate", "--dry-run"]).await;
    assert_eq!((plan.code, plan.stderr.as_str()), (0, ""));
    let schemas = "select from pg_namespace where nspname = 'outboxd'";
    assert!(by_hand.query(schemas, &[]).await.is_empty(), "a dry run runs nothing");
    psql(&by_hand, &plan.stdout);
    assert_eq!(migrator(&migrated).run(&["migrate"]).await.code, 0);
    assert_eq!(applied(&by_hand).await, applied(&migrated).await);
    let (by_hand_schema, migrated_schema) = (schema(&by_hand), schema(&migrated));
    assert!(migrated_schema.contains("outboxd.enqueue") && migrated_schema.contains("GRANT"));
    assert_same(&by_hand_schema, &migrated_schema);

    let again = migrator(&by_hand).run(&["migrate", "--dry-run"]).await;
    assert!(again.stdout.contains("up to date") && !again.stdout.contains("create table"), "{again:?}");
    psql(&by_hand, &again.stdout);
    let again = migrator(&by_hand).run(&["migrate"]).await;
    assert_eq!((again.code, again.stdout.contains("applied")), (0, false), "{again:?}");
    assert_same(&schema(&by_hand), &migrated_schema);
}

/// The first line that differs, not two whole dumps.
fn assert_same(left: &str, right: &str) {
    for (left, right) in left.lines().zip(right.lines()) {
        assert_eq!(left, right);
    }
    assert_eq!(left.lines().count(), right.lines().count());
}

/// Names that no other test has: roles belong to the whole cluster.
fn roles_of_its_own(outboxd: Outboxd) -> (Outboxd, [String; 4]) {
    let suffix = fastrand::u32(..);
    let roles = ["app", "agent", "operator", "reader"];
    let outboxd = roles.iter().fold(outboxd, |outboxd, role| {
        outboxd.set(&format!("postgres.roles.{role} = \"shop {role} {suffix}\""))
    });
    (outboxd, roles.map(|role| format!("shop {role} {suffix}")))
}

async fn existing(database: &Database, roles: &[String]) -> i64 {
    let sql = "select count(*) from pg_roles where rolname = any($1)";
    database.query_one(sql, &[&roles]).await.get(0)
}

#[tokio::test]
async fn without_roles_the_grants_are_printed_for_someone_else() {
    let database = Postgres::shared().await.empty_database().await;
    let (outboxd, roles) = roles_of_its_own(migrator(&database));
    let output = outboxd.run(&["migrate", "--no-roles"]).await;
    assert_eq!((output.code, applied(&database).await.len()), (0, MIGRATIONS.len()), "{output:?}");
    assert_eq!(existing(&database, &roles).await, 0);
    psql(&database, &output.stdout);
    assert_eq!(existing(&database, &roles).await, 4);
    let can = "select has_table_privilege($1, 'outboxd.messages', 'insert') or
        has_any_column_privilege($1, 'outboxd.messages', 'insert')";
    assert!(database.query_one(can, &[&roles[0]]).await.get::<_, bool>(0));
    assert!(!database.query_one(can, &[&roles[3]]).await.get::<_, bool>(0));
    let again = outboxd.run(&["migrate", "--no-roles"]).await;
    assert!(!again.stdout.contains("create role"), "{}", again.stdout);
    psql(&database, &again.stdout);
}

#[tokio::test]
async fn an_owner_who_is_nobody_special_can_migrate() {
    let database = Postgres::shared().await.empty_database().await;
    let owner = format!("owner_{:08x}", fastrand::u32(..));
    let admin = database.connect().await;
    let made = format!(
        "create role {owner} login createrole password '{PASSWORD}'; grant create on database {} to {owner}",
        database.name
    );
    admin.batch_execute(&made).await.unwrap();
    let url = database.url.replace("postgres@", &format!("{owner}:{PASSWORD}@"));
    let (outboxd, roles) = roles_of_its_own(Outboxd::without_kafka(&database).postgres_url(&url));
    let output = outboxd.run(&["migrate"]).await;
    assert_eq!((output.code, existing(&database, &roles).await), (0, 4), "{output:?}");

    admin.batch_execute(&format!("alter role {owner} nocreaterole")).await.unwrap();
    let (outboxd, _) = roles_of_its_own(Outboxd::without_kafka(&database).postgres_url(&url));
    let refused = outboxd.run(&["migrate"]).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("--no-roles"), "{}", refused.stderr);
    assert_eq!(outboxd.run(&["migrate", "--no-roles"]).await.code, 0);
}

#[tokio::test]
async fn a_check_is_0_only_if_daemons_can_work() {
    let database = Postgres::shared().await.empty_database().await;
    let outboxd = migrator(&database);
    let check = async || outboxd.run(&["migrate", "status", "--check", "--json"]).await;
    let states = |stdout: &str| -> Vec<String> {
        let lines: Value = serde_json::from_str(stdout).unwrap();
        lines.as_array().unwrap().iter().map(|line| line["state"].as_str().unwrap().to_owned()).collect()
    };
    let before = check().await;
    assert_eq!((before.code, states(&before.stdout)), (1, vec!["pending".to_owned(); MIGRATIONS.len()]));
    assert!(before.stderr.contains("outboxd migrate"), "{}", before.stderr);
    assert_eq!(outboxd.run(&["migrate", "status"]).await.code, 0);
    outboxd.run(&["migrate"]).await;
    let after = check().await;
    assert_eq!((after.code, after.stderr.as_str()), (0, ""));
    assert_eq!(states(&after.stdout), vec!["applied".to_owned(); MIGRATIONS.len()]);
    a_newer_schema(&database, newest()).await;
    assert_eq!(check().await.code, 0, "newer, and compatible");
    a_newer_schema(&database, newest() + 1).await;
    let newer = check().await;
    assert_eq!((newer.code, states(&newer.stdout).last().map(String::as_str)), (1, Some("newer")));
}

const FUTURE: i32 = 900;

/// As a later outboxd would leave it.
async fn a_newer_schema(database: &Database, oldest_compatible: i32) {
    let sql = "insert into outboxd.migrations (version, name, checksum, oldest_compatible)
        values ($1, '0900_future', 'x', $2)
        on conflict (version) do update set oldest_compatible = excluded.oldest_compatible";
    database.execute(sql, &[&FUTURE, &oldest_compatible]).await;
}

#[tokio::test]
async fn a_schema_that_is_too_new_is_refused_with_its_versions() {
    let database = Postgres::shared().await.database().await;
    let outboxd = Outboxd::without_kafka(&database).group("orders", "orders", "kind = \"log\"");
    a_newer_schema(&database, 800).await;
    let names_versions = |words: &str| {
        let versions = [FUTURE, 800, newest()];
        assert!(versions.iter().all(|version| words.contains(&version.to_string())), "{words}");
    };
    for daemon in [outboxd.producer(), outboxd.consumer(&["orders"])] {
        assert_eq!(daemon.wait_exit().await, Some(1), "{}", daemon.log());
        names_versions(&daemon.log());
    }
    let migrated = migrator(&database).run(&["migrate"]).await;
    assert_eq!(migrated.code, 1, "{migrated:?}");
    names_versions(&migrated.stderr);
}

async fn published(daemon: &Daemon, kafka: &Kafka, topic: &str) -> String {
    let what = "the message is published";
    eventually(what, Duration::from_secs(60), async || {
        assert!(daemon.is_running());
        kafka.read_all(topic).await.len() == 1
    })
    .await;
    kafka.read_all(topic).await[0].payload_text()
}

#[tokio::test]
async fn a_daemon_works_on_a_newer_schema_that_is_compatible() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let (database, topic) = (postgres.database().await, kafka.topic(1).await);
    a_newer_schema(&database, newest()).await;
    let producer = Outboxd::new(&database, kafka).producer();
    database.execute("select outboxd.enqueue($1, 'x')", &[&topic]).await;
    assert_eq!(published(&producer, kafka, &topic).await, "x");
    let migrated = migrator(&database).run(&["migrate"]).await;
    assert_eq!(migrated.code, 0, "{migrated:?}");
}

#[tokio::test]
async fn a_daemon_waits_for_its_schema_and_names_the_command_and_goes_on_by_itself() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let (database, topic) = (postgres.empty_database().await, kafka.topic(1).await);
    let producer = Outboxd::new(&database, kafka).producer();
    producer.wait_for_line("run `outboxd migrate`").await;
    assert_eq!(producer.get("/healthz").await.map(|(status, _)| status), Some(200));
    let (status, body) = producer.get("/readyz").await.unwrap();
    assert!(status == 503 && body.contains("outboxd migrate"), "{status} {body}");
    assert_eq!(migrator(&database).run(&["migrate"]).await.code, 0);
    producer.ready().await;
    database.execute("select outboxd.enqueue($1, 'x')", &[&topic]).await;
    assert_eq!(published(&producer, kafka, &topic).await, "x");
    producer.terminate();
    assert_eq!(producer.wait_exit().await, Some(0));
    assert!(!producer.log().contains(PASSWORD));
}

#[tokio::test]
async fn a_file_that_was_changed_after_it_was_applied_is_refused() {
    let database = Postgres::shared().await.database().await;
    let forget = "delete from outboxd.migrations where version = $1";
    database.execute(forget, &[&newest()]).await;
    database.execute("update outboxd.migrations set checksum = 'other' where version = 2", &[]).await;
    let before = applied(&database).await;
    for command in [&["migrate"][..], &["migrate", "--dry-run"], &["migrate", "--no-roles"]] {
        let output = migrator(&database).run(command).await;
        assert_eq!((output.code, output.stdout.as_str()), (1, ""), "{command:?}: {output:?}");
        assert!(output.stderr.contains("0002_enqueue"), "{}", output.stderr);
    }
    assert_eq!(applied(&database).await, before, "nothing is applied on top of it");
}

#[tokio::test]
async fn a_migration_that_fails_leaves_the_version_before_it() {
    let database = Postgres::shared().await.empty_database().await;
    let session = database.connect().await;
    session.batch_execute("create schema outboxd; create table outboxd.agents (n int)").await.unwrap();
    let failed = migrator(&database).run(&["migrate"]).await;
    assert_eq!(failed.code, 1, "{failed:?}");
    assert!(failed.stderr.contains("0004_agents"), "{}", failed.stderr);
    assert_eq!(applied(&database).await.last().map(|last| last.0), Some(3));
    session.batch_execute("drop table outboxd.agents").await.unwrap();
    let output = migrator(&database).run(&["migrate"]).await;
    assert_eq!((output.code, applied(&database).await.len()), (0, MIGRATIONS.len()), "{output:?}");
}
