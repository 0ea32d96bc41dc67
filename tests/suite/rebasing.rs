//! A database that moved: nothing is published by a cursor that means something else there, and after `outboxd rebase`
//! nothing is lost, and nothing published twice but what the cursor did not know of.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::ledger::Ledger;
use crate::support::{Database, Kafka, Outboxd, Postgres, eventually};

const PATIENCE: Duration = Duration::from_secs(60);
/// Long enough that a busy machine loses none, and repeats nothing for it.
const LEASE: &str = "producer.lease = \"8s\"";
const ADVICE: &str = "outboxd rebase --after restore";

const INSERT: &str = "insert into outboxd.messages (topic, key, payload)
    select $1, 'key-' || i % 7, 'x' from generate_series(1, $2::integer) i";

async fn insert(database: &Database, topic: &str, count: i32) {
    database.execute(INSERT, &[&topic, &count]).await;
}

/// The state of each message.
async fn states(database: &Database) -> Vec<(i16, i64, String)> {
    let sql = "select priority, seq, state from outboxd.message_states order by priority, seq";
    database.query(sql, &[]).await.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

/// All that a rebase writes to.
async fn cursors(database: &Database) -> Vec<String> {
    let sql = "select l::text from outboxd.lanes l union all select o::text from outboxd.outbox o
        union all select coalesce(md5(string_agg(txid::text || ' ' || seq, ',' order by priority, seq)), '') from outboxd.messages
        union all select last_value::text from outboxd.messages_seq";
    database.query(sql, &[]).await.iter().map(|row| row.get(0)).collect()
}

async fn rebase(database: &Database) {
    let output =
        Outboxd::without_kafka(database).owner().run(&["rebase", "--after", "restore", "--yes"]).await;
    assert_eq!(output.code, 0, "{output:?}");
}

/// Nobody owns a lane any more, and no lease of a producer that died is left.
async fn free(database: &Database) {
    let owned =
        "select count(*) from outboxd.lanes where owner is not null and lease_expires_at > clock_timestamp()";
    eventually("no lane is owned", PATIENCE, async || database.count(owned).await == 0).await;
}

/// Publishes what is there and ends in good order.
async fn publish_all(outboxd: &Outboxd, database: &Database, ledger: &Ledger) {
    let producer = outboxd.producer();
    ledger.published(database).await;
    producer.terminate();
    assert_eq!(producer.wait_exit().await, Some(0));
}

/// A script of `pg_dump`, by way of `psql`.
fn copy(from: &Database, to: &Database, options: &[&str]) {
    let dump = Command::new("pg_dump").args(options).arg(&from.url).output().unwrap();
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let mut psql = Command::new("psql");
    psql.args(["--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1", "-d", &to.url, "-f", "-"]);
    let mut child = psql.stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&dump.stdout).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Uses up xids until this cluster is far ahead of the other: there its old ones lie in the future, and the cursors
/// call every new one visible.
async fn outrun(database: &Database, other: &Database) {
    let next = "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint";
    let ahead = other.count(next).await + 3_000 - database.count(next).await;
    let burn = format!(
        "do $$ begin for i in 1..{ahead} loop perform pg_current_xact_id(); commit; end loop; end $$"
    );
    database.batch(&burn).await;
}

#[tokio::test]
async fn a_dump_that_is_restored_elsewhere_publishes_what_its_cursor_had_not() {
    let kafka = Kafka::shared().await;
    let source = Postgres::shared().await.database().await;
    let target = Postgres::elsewhere().await.empty_database().await;
    let (topic, missing) = (kafka.topic(4).await, format!("later-{:x}", fastrand::u64(..)));
    let ledger = Ledger::new(&source, &topic);
    let limit = "kafka.producer.\"message.max.bytes\" = 20000";

    // Published, waiting for its topic, scheduled and parked.
    let producer = Outboxd::new(&source, kafka).set(LEASE).set(limit).producer();
    ledger.write(3, 20).await;
    insert(&source, &missing, 20).await;
    let later = "insert into outboxd.messages (topic, key, payload, deliver_after)
        select 'later', 'k', 'x', now() + '1 hour' from generate_series(1, 3)";
    source.execute(later, &[]).await;
    let parked = kafka.topic(1).await;
    let large = "insert into outboxd.messages (topic, key, payload) values ($1, 'k', convert_to(repeat('x', 30000), 'UTF8'))";
    source.execute(large, &[&parked]).await;
    source.reach(&missing, "held", 20).await;
    source.reach("later", "scheduled", 3).await;
    source.reach(&parked, "parked", 1).await;
    ledger.published(&source).await;
    producer.terminate();
    assert_eq!(producer.wait_exit().await, Some(0));
    outrun(&source, &target).await;

    // A window half published, one transaction that commits behind it, and one that is under way at the dump.
    let (mut straggler, mut lost) = (source.connect_app().await, source.connect_app().await);
    let (straggler, lost) = (straggler.transaction().await.unwrap(), lost.transaction().await.unwrap());
    let apart = "insert into outboxd.messages (topic, key, payload) select $1, 'apart', 'x' from generate_series(1, 5)";
    straggler.execute(apart, &[&topic]).await.unwrap();
    lost.execute(apart, &[&topic]).await.unwrap();
    insert(&source, &topic, 30_000).await;
    let doomed = Outboxd::new(&source, kafka).set(LEASE).failpoint("relay-after-progress").producer();
    assert_eq!(doomed.wait_exit().await, None);
    straggler.commit().await.unwrap();
    free(&source).await;
    let known = source.in_state(&topic, "published").await;
    let before = states(&source).await;
    let highest = source.count("select last_value from outboxd.messages_seq").await;
    copy(&source, &target, &[]);
    lost.commit().await.unwrap();

    // What the application inserts here has xids that the old cursor calls visible.
    insert(&target, &topic, 50).await;
    let outboxd = Outboxd::new(&target, kafka).set(LEASE).set(limit);
    let waiting = outboxd.producer();
    waiting.wait_for_line(ADVICE).await;
    let (status, body) = waiting.get("/readyz").await.unwrap();
    assert!(status == 503 && body.contains(ADVICE), "{status} {body}");
    waiting.terminate();
    assert_eq!(waiting.wait_exit().await, Some(0));

    let untouched = cursors(&target).await;
    let owner = Outboxd::without_kafka(&target).owner();
    let preview = owner.run(&["rebase", "--after", "restore", "--dry-run"]).await;
    let refused = owner.run(&["rebase", "--after", "restore"]).await;
    assert_eq!((preview.code, refused.code), (0, 5), "{preview:?} {refused:?}");
    assert_eq!(preview.stdout, refused.stdout, "what is asked about is shown");
    let pending: i64 =
        i64::try_from(before.iter().filter(|(.., state)| state == "pending").count()).unwrap() + 50;
    let line = preview.stdout.lines().find(|line| line.starts_with("normal")).unwrap();
    let figures: Vec<i64> = line.split_whitespace().skip(1).map(|figure| figure.parse().unwrap()).collect();
    assert_eq!(figures[0], pending, "{}", preview.stdout);
    let upgrade = owner.run(&["rebase", "--after", "upgrade", "--yes"]).await;
    assert!(upgrade.code == 1 && upgrade.stderr.contains(ADVICE), "it was not upgraded: {upgrade:?}");
    assert_eq!(cursors(&target).await, untouched);

    rebase(&target).await;
    let mut after = states(&target).await;
    let pending_now = after.iter().filter(|(.., state)| state == "pending").count();
    assert_eq!(i64::try_from(pending_now).unwrap(), pending);
    after.retain(|(_, seq, _)| *seq <= highest);
    assert_eq!(after, before, "the states are what they were");

    let _producer = outboxd.producer();
    kafka.create_topic(&missing, 2, &[]).await;
    let ledger = Ledger::new(&target, &topic);
    ledger.published(&target).await;
    target.reach(&missing, "published", 20).await;
    target
        .execute(
            "update outboxd.set_aside set due_at = now(), topic = $1 where state = 'scheduled'",
            &[&parked],
        )
        .await;
    target.reach("later", "published", 3).await;
    assert_eq!(target.in_state(&parked, "parked").await, 1);
    let found = ledger.check(&target, kafka).await;
    assert!(
        found.repeats <= found.messages - usize::try_from(known).unwrap(),
        "{found:?}, {known} were known"
    );
    assert_eq!((kafka.read_all(&missing).await.len(), kafka.read_all(&parked).await.len()), (20, 3));
}

/// Stands in for a move into a cluster whose xids are far below: all that the cursors and messages speak of so far lies
/// in its future. Nobody's transaction is under way.
async fn move_away(database: &Database) {
    let shift = "
        update outboxd.outbox set system_identifier = 1;
        update outboxd.messages set txid = (txid::text::bigint + 900000000)::text::xid8;
        update outboxd.lanes set owner = null, done = format('%1$s:%1$s:',
          pg_snapshot_xmax(done)::text::bigint + 900000000)::pg_snapshot";
    database.batch(shift).await;
}

/// So many messages published, so many not, and the database moved.
async fn moved(outboxd: &Outboxd, database: &Database, ledger: &Ledger, published: i32, pending: i32) {
    insert(database, &ledger.topic, published).await;
    publish_all(outboxd, database, ledger).await;
    insert(database, &ledger.topic, pending).await;
    move_away(database).await;
}

#[tokio::test]
async fn an_application_that_writes_while_the_cursors_are_rebased_loses_nothing() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let ledger = Ledger::new(&database, &kafka.topic(2).await);
    let topic = &ledger.topic;
    let outboxd = Outboxd::new(&database, kafka).set(LEASE);
    moved(&outboxd, &database, &ledger, 100, 50).await;

    insert(&database, topic, 10).await;
    let (mut early, mut late) = (database.connect_app().await, database.connect_app().await);
    let early = early.transaction().await.unwrap();
    early.execute(INSERT, &[topic, &10]).await.unwrap();
    // Halfway through the messages it meets one that is locked.
    let mut blocker = database.connect().await;
    let blocker = blocker.transaction().await.unwrap();
    blocker.execute("select from outboxd.messages where seq = 75 for update", &[]).await.unwrap();
    let during = async {
        let waits = "select count(*) from pg_stat_activity where application_name = 'outboxd/cli/rebase'
            and datname = current_database() and wait_event_type = 'Lock'";
        eventually("it waits for the message", PATIENCE, async || database.count(waits).await == 1).await;
        insert(&database, topic, 10).await;
        let late = late.transaction().await.unwrap();
        late.execute(INSERT, &[topic, &10]).await.unwrap();
        early.commit().await.unwrap();
        blocker.rollback().await.unwrap();
        late
    };
    let ((), late) = tokio::join!(rebase(&database), during);
    assert_eq!(
        (database.in_state(topic, "published").await, database.in_state(topic, "pending").await),
        (100, 80)
    );
    late.commit().await.unwrap();
    insert(&database, topic, 10).await;
    publish_all(&outboxd, &database, &ledger).await;
    let found = ledger.check(&database, kafka).await;
    assert_eq!((found.messages, found.repeats), (200, 0));
}

#[tokio::test]
async fn a_rebase_that_is_killed_has_done_nothing_and_can_be_repeated() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let ledger = Ledger::new(&database, &kafka.topic(2).await);
    let outboxd = Outboxd::new(&database, kafka).set(LEASE);
    moved(&outboxd, &database, &ledger, 100, 50).await;
    let before = cursors(&database).await;
    for point in ["rebase-after-messages", "rebase-before-commit"] {
        let doomed = Outboxd::without_kafka(&database).owner().failpoint(point);
        let mut command = doomed.command(&["rebase", "--after", "restore", "--yes"]);
        let output = command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert_eq!(output.code(), None, "it is killed");
        assert_eq!(cursors(&database).await, before);
    }
    rebase(&database).await;
    // Once more is once too many, and does no harm.
    rebase(&database).await;
    publish_all(&outboxd, &database, &ledger).await;
    let found = ledger.check(&database, kafka).await;
    assert_eq!((found.messages, found.repeats), (150, 0));
}

#[tokio::test]
async fn a_producer_that_is_alive_is_named_and_nothing_is_changed() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let producer = Outboxd::new(&database, kafka).set("agent.name = \"relay-7\"").producer();
    producer.wait_for_line("lane acquired").await;
    let outboxd = Outboxd::without_kafka(&database).owner();
    let refused = outboxd.run(&["rebase", "--after", "restore", "--yes"]).await;
    assert!(refused.code == 1 && refused.stderr.contains("`relay-7`"), "{refused:?}");
    let nothing = outboxd.run(&["rebase", "--after", "upgrade", "--yes"]).await;
    assert!(nothing.code == 0 && nothing.stdout.contains("nothing to do"), "{nothing:?}");
    assert!(producer.is_running());
}

#[tokio::test]
async fn a_question_on_a_terminal_is_taken_for_an_answer_only_if_it_is_yes() {
    let database = Postgres::shared().await.database().await;
    move_away(&database).await;
    let before = cursors(&database).await;
    let outboxd = Outboxd::without_kafka(&database).owner();
    let ask = |answer: &str| {
        let program = outboxd.command(&["rebase", "--after", "restore"]);
        let words: Vec<_> = std::iter::once(program.get_program()).chain(program.get_args()).collect();
        let line = words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ");
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        let child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        writeln!(child.stdin.as_ref().unwrap(), "{answer}").unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, said) = ask("n");
    assert!(code == Some(5) && said.contains("TO PUBLISH") && said.contains("[y/N]"), "{code:?} {said}");
    assert_eq!(cursors(&database).await, before);
    let (code, said) = ask("y");
    assert!(code == Some(0) && said.contains("producers may start"), "{code:?} {said}");
    assert_ne!(cursors(&database).await, before);
}

#[tokio::test]
async fn numbers_that_are_handed_out_again_hide_no_message() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let ledger = Ledger::new(&database, &kafka.topic(2).await);
    let topic = &ledger.topic;
    let outboxd = Outboxd::new(&database, kafka).set(LEASE);
    let producer = outboxd.producer();
    insert(&database, topic, 200).await;
    ledger.published(&database).await;
    let floor = "select count(*) from outboxd.lanes where floor >= 200";
    eventually("the floor is raised", PATIENCE, async || database.count(floor).await == 3).await;
    // Retention takes what is published, one message is parked, and then somebody sets the sequence back.
    let back = "
        insert into outboxd.set_aside (priority, seq, state, reason, topic, headers, created_at)
          select priority, seq, 'parked', 'by hand', 'elsewhere', headers, created_at from outboxd.messages where seq = 15;
        delete from outboxd.messages;
        select setval('outboxd.messages_seq', 10)";
    database.batch(back).await;
    producer.wait_for_line("was set back").await;
    producer.terminate();
    assert_eq!(producer.wait_exit().await, Some(0));
    insert(&database, topic, 30).await;
    free(&database).await;
    rebase(&database).await;
    assert_eq!(database.in_state(topic, "pending").await, 30);
    insert(&database, topic, 1).await;
    assert_eq!(database.count("select max(seq) from outboxd.messages").await, 202);
    publish_all(&outboxd, &database, &ledger).await;
    let ids: std::collections::HashSet<_> =
        kafka.read_all(topic).await.iter().map(|record| record.header("outboxd-id")).collect();
    assert_eq!(ids.len(), 231);
}

#[tokio::test]
async fn a_logical_copy_does_not_carry_the_sequence_and_loses_nothing() {
    let kafka = Kafka::shared().await;
    // A cluster without long transactions, for which a slot would wait.
    let elsewhere = Postgres::elsewhere().await;
    let source = elsewhere.database().await;
    let target = Postgres::shared().await.empty_database().await;
    let ledger = Ledger::new(&source, &kafka.topic(4).await);
    let topic = &ledger.topic;
    let publisher = Outboxd::new(&source, kafka).set(LEASE);
    insert(&source, topic, 300).await;
    publish_all(&publisher, &source, &ledger).await;
    copy(&source, &target, &["--schema-only"]);
    source.batch("create publication moving for tables in schema outboxd").await;
    target
        .batch(&format!(
            "create subscription {name} connection 'host=127.0.0.1 port={port} user=postgres dbname={name}' publication moving",
            name = source.name,
            port = elsewhere.port()
        ))
        .await;
    insert(&source, topic, 300).await;
    publish_all(&publisher, &source, &ledger).await;
    insert(&source, topic, 100).await;
    let rows = "select count(*) from outboxd.messages";
    eventually("all is copied", PATIENCE, async || {
        target.count("select count(*) from pg_subscription_rel where srsubstate <> 'r'").await == 0
            && target.count(rows).await == 700
            && cursor(&target).await == cursor(&source).await
    })
    .await;
    let still = Outboxd::without_kafka(&target).owner().run(&["rebase", "--after", "restore", "--yes"]).await;
    assert!(still.code == 1 && still.stderr.contains(&source.name), "{still:?}");
    target.batch(&format!("drop subscription {}", source.name)).await;
    free(&target).await;
    rebase(&target).await;
    insert(&target, topic, 50).await;
    assert_eq!(target.count("select max(seq) from outboxd.messages").await, 750);
    let ledger = Ledger::new(&target, topic);
    publish_all(&Outboxd::new(&target, kafka).set(LEASE), &target, &ledger).await;
    let found = ledger.check(&target, kafka).await;
    assert_eq!((found.messages, found.repeats), (750, 0));
}

async fn cursor(database: &Database) -> Vec<String> {
    let sql = "select l::text from outboxd.lanes l order by priority";
    database.query(sql, &[]).await.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn an_upgraded_cluster_goes_on_where_it_was() {
    let (postgres, kafka) = (Postgres::private().await, Kafka::shared().await);
    let database = postgres.database().await;
    let ledger = Ledger::new(&database, &kafka.topic(4).await);
    ledger.write(3, 30).await;
    publish_all(&Outboxd::new(&database, kafka).set(LEASE), &database, &ledger).await;
    ledger.write(3, 30).await;
    let before = states(&database).await;
    let postgres = postgres.upgraded().await;
    let database = postgres.moved(&database);
    let outboxd = Outboxd::new(&database, kafka).set(LEASE);
    let producer = outboxd.producer();
    producer.wait_for_line("--after upgrade").await;
    let output =
        Outboxd::without_kafka(&database).owner().run(&["rebase", "--after", "upgrade", "--yes"]).await;
    assert_eq!(output.code, 0, "{output:?}");
    let ledger = Ledger::new(&database, &ledger.topic);
    ledger.published(&database).await;
    assert!(before.len() > 100 && states(&database).await.len() == before.len());
    assert_eq!(ledger.check(&database, kafka).await.repeats, 0);
    assert!(producer.is_running());
}
