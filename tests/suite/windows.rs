//! P1 and P2 for windows of any shape: large, late, held open, or put together in unusual ways.

use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::{Client, IsolationLevel};

use crate::support::ledger::{Found, Ledger};
use crate::support::{Database, Kafka, Outboxd, Postgres, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

const INSERT: &str = "insert into outboxd.messages (topic, key, payload) values ($1, $2, 'x')";

/// A lane that is behind no running transaction has published everything up to its floor.
async fn floor(database: &Database) -> i64 {
    database.count("select floor from outboxd.lanes where priority = 0").await
}

async fn last_seq(database: &Database) -> i64 {
    database.count("select coalesce(pg_sequence_last_value('outboxd.messages_seq'), 0)").await
}

/// Everything is published; nothing is lost, inverted or repeated.
async fn published_once(ledger: &Ledger, database: &Database, kafka: &Kafka) -> Found {
    ledger.published(database).await;
    let found = ledger.check(database, kafka).await;
    assert_eq!(found.repeats, 0);
    found
}

#[tokio::test]
async fn a_bulk_whose_seqs_are_old_when_it_commits() {
    const BULK: i64 = 100_000;
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let ledger = Ledger::new(&database, &kafka.topic(4).await);
    let _producer = Outboxd::new(&database, kafka).producer();
    let mut client = database.connect_app().await;
    let bulk = client.transaction().await.unwrap();
    let insert = "insert into outboxd.messages (topic, key, payload)
        select $1, 'bulk-' || i % 500, 'x' from generate_series(1, $2::bigint) i";
    let inserted = bulk.execute(insert, &[&ledger.topic, &BULK]).await.unwrap();
    assert_eq!(i64::try_from(inserted).unwrap(), BULK);
    ledger.write(2, 20).await;
    ledger.flows(&database).await;
    assert!(floor(&database).await >= BULK, "the floor is beyond rows that nobody can see yet");
    let writing = tokio::spawn({
        let ledger = ledger.clone();
        async move { ledger.write(2, 100).await }
    });
    bulk.commit().await.unwrap();
    writing.await.unwrap();
    assert!(published_once(&ledger, &database, kafka).await.messages > 100_000);
}

#[tokio::test]
async fn traffic_beside_transactions_that_never_end() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let ledger = Ledger::new(&database, &kafka.topic(4).await);
    let _producer = Outboxd::new(&database, kafka).producer();
    let (mut writer, mut reader) = (database.connect_app().await, database.connect().await);
    let held = writer.transaction().await.unwrap();
    held.execute(INSERT, &[&ledger.topic, &"held"]).await.unwrap();
    // Vacuum may remove nothing that this one might look at.
    let snapshot = reader.build_transaction().isolation_level(IsolationLevel::RepeatableRead);
    let snapshot = snapshot.start().await.unwrap();
    let seen = "select count(*) from outboxd.messages";
    assert_eq!(snapshot.query_one(seen, &[]).await.unwrap().get::<_, i64>(0), 0);
    for _ in 0..5 {
        ledger.write(2, 20).await;
        ledger.flows(&database).await;
        database.batch("vacuum outboxd.lanes").await;
        // What is published is behind the floor, however long the others stay open: a poll looks at new rows only.
        let published = last_seq(&database).await;
        eventually("the floor follows", PATIENCE, async || floor(&database).await >= published).await;
    }
    assert_eq!(snapshot.query_one(seen, &[]).await.unwrap().get::<_, i64>(0), 0);
    held.execute(INSERT, &[&ledger.topic, &"held"]).await.unwrap();
    held.commit().await.unwrap();
    snapshot.commit().await.unwrap();
    published_once(&ledger, &database, kafka).await;
}

#[tokio::test]
async fn hundreds_of_idle_transactions_that_commit_in_any_order() {
    const SESSIONS: usize = 200;
    let (postgres, kafka) = (Postgres::private().await, Kafka::shared().await);
    let database = postgres.database().await;
    let ledger = Ledger::new(&database, &kafka.topic(4).await);
    let _producer = Outboxd::new(&database, kafka).producer();
    let mut idle = Vec::new();
    for session in 0..SESSIONS {
        let client = database.connect_app().await;
        client.batch_execute("begin").await.unwrap();
        client.execute(INSERT, &[&ledger.topic, &format!("idle-{session}")]).await.unwrap();
        idle.push((session, client));
        if session % 50 == 0 {
            ledger.write(1, 5).await;
        }
    }
    ledger.flows(&database).await;
    fastrand::Rng::with_seed(4).shuffle(&mut idle);
    for (place, (session, client)) in idle.iter().enumerate() {
        // Some see the others' commits between their two inserts, some give up.
        let end = if place % 10 == 9 { "rollback" } else { "commit" };
        client.execute(INSERT, &[&ledger.topic, &format!("idle-{session}")]).await.unwrap();
        client.batch_execute(end).await.unwrap();
        if place % 50 == 0 {
            ledger.write(1, 5).await;
        }
    }
    assert!(published_once(&ledger, &database, kafka).await.messages > SESSIONS);
}

/// A transaction with savepoints: some are kept, some rolled back, some inside a block of PL/pgSQL.
async fn subtransactions(client: &mut Client, topic: &str, key: &str) {
    let transaction = client.transaction().await.unwrap();
    // Its first xid belongs to a subtransaction, which is then rolled back.
    transaction.batch_execute("savepoint first").await.unwrap();
    transaction.execute(INSERT, &[&topic, &"ghost"]).await.unwrap();
    transaction.batch_execute("rollback to first").await.unwrap();
    for number in 0..100 {
        transaction.batch_execute("savepoint deep").await.unwrap();
        let lost = number % 3 == 0;
        transaction.execute(INSERT, &[&topic, &if lost { "ghost" } else { key }]).await.unwrap();
        let end = if lost { "rollback to deep" } else { "release deep" };
        // More than 64 of them: the snapshots of others cannot list them all.
        transaction.batch_execute(if number % 5 == 0 { "select" } else { end }).await.unwrap();
        if lost && number % 5 == 0 {
            transaction.batch_execute("rollback to deep").await.unwrap();
        }
    }
    transaction
        .batch_execute(&format!(
            "do $$ begin
               begin
                 insert into outboxd.messages (topic, key) values ('{topic}', 'ghost');
                 raise exception 'no';
               exception when others then
                 insert into outboxd.messages (topic, key) values ('{topic}', '{key}');
               end;
             end $$"
        ))
        .await
        .unwrap();
    let kept = transaction.query_one("select pg_current_xact_id()::text", &[]).await.unwrap();
    let xid: String = kept.get(0);
    let strange = format!(
        "select count(*) from outboxd.messages where topic = '{topic}' and key = '{key}' and txid <> '{xid}'"
    );
    let strange = transaction.query_one(&strange, &[]).await.unwrap().get::<_, i64>(0);
    assert_eq!(strange, 0, "a row has the xid of its top-level transaction, which is what snapshots show");
    transaction.commit().await.unwrap();
}

#[tokio::test]
async fn subtransactions_that_are_kept_and_rolled_back() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let ledger = Ledger::new(&database, &kafka.topic(2).await);
    let _producer = Outboxd::new(&database, kafka).producer();
    let mut running = tokio::task::JoinSet::new();
    for number in 0..4 {
        let (mut client, topic) = (database.connect().await, ledger.topic.clone());
        running.spawn(async move { subtransactions(&mut client, &topic, &format!("sub-{number}")).await });
    }
    ledger.write(2, 20).await;
    running.join_all().await;
    published_once(&ledger, &database, kafka).await;
    let ghosts =
        kafka.read_all(&ledger.topic).await.iter().filter(|record| record.key_text() == "ghost").count();
    assert_eq!(ghosts, 0);
}

#[tokio::test]
async fn prepared_transactions_that_end_much_later() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let ledger = Ledger::new(&database, &kafka.topic(2).await);
    let _producer = Outboxd::new(&database, kafka).producer();
    let client = database.connect_app().await;
    let gid = |number: i32| format!("{}-{number}", database.name);
    for number in 0..4 {
        client.batch_execute("begin").await.unwrap();
        client.execute(INSERT, &[&ledger.topic, &format!("prepared-{number}")]).await.unwrap();
        client.batch_execute(&format!("prepare transaction '{}'", gid(number))).await.unwrap();
        ledger.write(1, 10).await;
    }
    ledger.flows(&database).await;
    for (number, end) in [(2, "commit"), (0, "rollback"), (3, "commit"), (1, "commit")] {
        client.batch_execute(&format!("{end} prepared '{}'", gid(number))).await.unwrap();
        ledger.flows(&database).await;
    }
    published_once(&ledger, &database, kafka).await;
    let records = kafka.read_all(&ledger.topic).await;
    assert!(records.iter().all(|record| record.key_text() != "prepared-0"), "it was rolled back");
}

#[tokio::test]
async fn every_way_to_insert_many_rows_at_once() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let ledger = Ledger::new(&database, &kafka.topic(2).await);
    let _producer = Outboxd::new(&database, kafka).producer();
    let topic = &ledger.topic;
    let mut client = database.connect_app().await;
    let transaction = client.transaction().await.unwrap();
    let copy = transaction.copy_in("copy outboxd.messages (topic, key, payload, priority) from stdin");
    let mut copy = Box::pin(copy.await.unwrap());
    for row in 0..2_000 {
        let line = format!("{topic}\tcopy-{}\t\\\\x01\t{}\n", row % 7, row % 3 - 1);
        copy.send(Bytes::from(line)).await.unwrap();
    }
    assert_eq!(copy.as_mut().finish().await.unwrap(), 2_000);
    // Two priorities in one transaction, and rows that are left out by a conflict.
    let many = "insert into outboxd.messages (topic, key, payload, priority)
        select $1, 'many-' || i % 5, 'x', (i % 2)::smallint from generate_series(1, 1000) i on conflict do nothing";
    assert_eq!(transaction.execute(many, &[topic]).await.unwrap(), 1_000);
    let enqueued = "select outboxd.enqueue($1, 'x'::text, key => 'door', priority => p) from unnest('{low,high,normal}'::text[]) p,
        generate_series(1, 100)";
    assert_eq!(transaction.execute(enqueued, &[topic]).await.unwrap(), 300);
    transaction.commit().await.unwrap();
    // Numbers of their own leave gaps, and rows that conflict with those that are there are not inserted.
    let owner = database.connect().await;
    owner.batch_execute("select setval('outboxd.messages_seq', 1000000)").await.unwrap();
    let conflict =
        "insert into outboxd.messages (seq, topic, key) select seq, topic, key from outboxd.messages
        where priority = 0 on conflict (priority, seq) do nothing";
    assert_eq!(owner.execute(conflict, &[]).await.unwrap(), 0);
    ledger.write(1, 20).await;
    assert!(published_once(&ledger, &database, kafka).await.messages > 3_300);
}
