//! Effects of `sql` handlers that take batches: each happens once, with its evidence, whatever becomes of its neighbours.

use super::{Consumer, PATIENCE, evidence, unique, without_tls};
use crate::support::{Database, Kafka, Postgres, Proxy, eventually};

/// Keeps each effect, with its place, and how often it was called. `bad` fails, `late` when it is checked at last.
const ON_ORDERS: &str = "
    create sequence calls;
    create sequence place;
    create table customers (name text primary key);
    create table effects (place bigint default nextval('place'), payload text, id uuid,
      customer text references customers deferrable initially deferred);
    create function on_orders(all_of_them outboxd.delivery[]) returns void language plpgsql security definer as $$
    declare d outboxd.delivery;
    begin
      perform nextval('public.calls');
      -- Until the test lets it go on.
      perform pg_advisory_xact_lock_shared(1);
      foreach d in array all_of_them loop
        insert into public.effects (payload, id, customer)
        values (convert_from(d.payload, 'UTF8'), d.id, case convert_from(d.payload, 'UTF8') when 'late' then 'nobody' end);
        if convert_from(d.payload, 'UTF8') like 'child %' then
          update public.effects set customer = payload where id = d.id;
          insert into public.customers values (convert_from(d.payload, 'UTF8'));
        end if;
        if convert_from(d.payload, 'UTF8') = 'bad' then raise exception 'no' using errcode = 'P0042'; end if;
        if convert_from(d.payload, 'UTF8') = 'deadly' then
          perform pg_terminate_backend(pg_backend_pid());
          -- Not a wait: where it is when it is ended.
          perform pg_sleep(5);
        end if;
      end loop;
    end $$;
    create function on_order(d outboxd.delivery) returns void language sql security definer as
      'select public.on_orders(array[d])';";

const BATCH: &str =
    "handler = { kind = \"sql\", function = \"on_orders\", mode = \"batch\", timeout = \"60s\" }";
const EACH: &str = "handler = { kind = \"sql\", function = \"on_order\" }";

async fn database() -> Database {
    let database = Postgres::shared().await.database().await;
    database.batch(ON_ORDERS).await;
    database
}

async fn payloads(database: &Database) -> Vec<String> {
    let effects = database.query("select payload from effects order by place", &[]).await;
    effects.iter().map(|row| row.get(0)).collect()
}

/// What is kept as a failure: state, reason if it is dead, and payload.
async fn failures(database: &Database) -> Vec<(String, Option<String>, String)> {
    let query =
        "select state, reason, convert_from(payload, 'UTF8') from outboxd.failures order by \"offset\"";
    let rows = database.query(query, &[]).await;
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

/// Starts a consumer whose first call lasts until it has taken all of so many messages in: what is called then does not
/// hang on how they came.
async fn start_with_all(
    database: &Database,
    kafka: &Kafka,
    group: &str,
    settings: &str,
    all: i64,
) -> Consumer {
    let client = database.connect().await;
    client.execute("select pg_advisory_lock(1)", &[]).await.unwrap();
    let consumer = Consumer::start(&database.agent_url(), kafka, group, settings);
    eventually("all are taken in", PATIENCE, async || {
        database.count("select count(*) from outboxd.starts").await == all
    })
    .await;
    client.execute("select pg_advisory_unlock(1)", &[]).await.unwrap();
    consumer
}

async fn calls(database: &Database) -> i64 {
    database.count("select last_value from calls").await
}

#[tokio::test]
async fn a_batch_is_one_call_and_one_transaction_with_its_evidence_in_the_order_of_each_key() {
    let (kafka, database) = (Kafka::shared().await, database().await);
    let topic = kafka.topic(1).await;
    for n in 0..200 {
        let (key, payload) = (format!("k{}", n % 3), format!("{n}"));
        kafka.produce(&topic, Some(&key), Some(payload.as_bytes()), &[]).await;
    }
    let settings = format!("topics = [\"{topic}\"]\nconcurrency = 1\n{BATCH}");
    let consumer = start_with_all(&database, kafka, &unique("orders"), &settings, 200).await;
    eventually("all are handled", PATIENCE, async || evidence(&database).await == 200).await;
    eventually("all are counted", PATIENCE, async || consumer.number("processed") == 200).await;
    consumer.drained().await;
    let together =
        "select count(*) from effects e join outboxd.handled h on h.message_id = e.id and h.xmin = e.xmin";
    assert_eq!(database.count(together).await, 200, "effect and evidence are of one transaction");
    let calls = calls(&database).await;
    assert!(calls <= 3, "the first, and all others: three keys do not make batches of three: {calls} calls");
    let done: Vec<u32> = payloads(&database).await.iter().map(|payload| payload.parse().unwrap()).collect();
    for key in 0..3 {
        let of_key: Vec<u32> = done.iter().copied().filter(|n| n % 3 == key).collect();
        assert!(of_key.is_sorted() && of_key.len() >= 66, "{of_key:?}");
    }
}

/// Tables that were empty when somebody had them analyzed.
#[tokio::test]
async fn evidence_is_looked_up_by_its_key_while_a_function_is_planned_as_its_database_says() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let topic = kafka.topic(1).await;
    database
        .batch(
            "create table public.seen (setting text);
             create function on_order(d outboxd.delivery) returns void language sql security definer as
               'insert into public.seen values (current_setting(''enable_seqscan''))';
             analyze",
        )
        .await;
    let settings = format!("topics = [\"{topic}\"]\n{EACH}");
    let consumer = Consumer::start(&database.agent_url(), kafka, &unique("orders"), &settings);
    for handled in 1..=10 {
        kafka.produce(&topic, None, Some(b"m"), &[]).await;
        let seen = "select count(*) from public.seen";
        eventually("it is handled", PATIENCE, async || database.count(seen).await == handled).await;
    }
    consumer.drained().await;
    let others = "select count(*) from public.seen where setting <> 'on'";
    assert_eq!(database.count(others).await, 0);
    let scans = async |kind: &str| {
        let of = "from pg_stat_user_tables where relname in ('handled_default', 'failures')";
        database.count(&format!("select sum({kind})::bigint {of}")).await
    };
    eventually("the statistics have come", PATIENCE, async || scans("idx_scan").await >= 10).await;
    assert_eq!(scans("seq_scan").await, 0);
}

#[tokio::test]
async fn a_message_that_fails_fails_alone_and_only_its_key_waits() {
    let (kafka, database) = (Kafka::shared().await, database().await);
    let topic = kafka.topic(1).await;
    for n in 0..120 {
        let payload = match n {
            40 => "bad".to_owned(),
            77 => "late".to_owned(),
            _ => format!("{n}"),
        };
        kafka.produce(&topic, Some(&format!("k{}", n % 20)), Some(payload.as_bytes()), &[]).await;
    }
    let group = unique("orders");
    let settings =
        format!("topics = [\"{topic}\"]\nconcurrency = 1\n{BATCH}\n[groups.{group}.retry]\nbackoff = \"1h\"");
    let consumer = start_with_all(&database, kafka, &group, &settings, 120).await;
    // Of key 0 the messages from 40 on, of key 17 those from 77 on.
    eventually("all others are handled", PATIENCE, async || evidence(&database).await == 120 - 4 - 3).await;
    eventually("the rest is kept", PATIENCE, async || {
        database.count("select next_offset from outboxd.group_positions").await == 120
    })
    .await;
    consumer.drained().await;
    let failed = failures(&database).await;
    let due = |payload: &str| ("due".to_owned(), None, payload.to_owned());
    let held = |payload: &str| ("held".to_owned(), None, payload.to_owned());
    let expected = [due("bad"), held("60"), due("late"), held("80"), held("97"), held("100"), held("117")];
    assert_eq!(failed, expected);
    let errors = database.query("select error from outboxd.attempts", &[]).await;
    let errors: Vec<String> = errors.iter().map(|row| row.get(0)).collect();
    assert!(errors.iter().any(|error| error.contains("P0042")), "{errors:?}");
    assert!(errors.iter().any(|error| error.contains("effects_customer_fkey")), "{errors:?}");
    let done = payloads(&database).await;
    assert_eq!(done.len(), 113, "each once: {done:?}");
    let calls = calls(&database).await;
    // Each of the two costs two calls a halving, seven halvings at most, and one alone.
    assert!(calls <= 3 + 2 * (2 * 7 + 1), "the two are found by halves, and not one by one: {calls} calls");
}

/// Children before their parents, and a table that is there until the commit.
#[tokio::test]
async fn what_a_call_leaves_in_its_transaction_fails_none_behind_it() {
    let (kafka, database) = (Kafka::shared().await, database().await);
    database
        .batch(
            "create function on_orders_with_table(all_of_them outboxd.delivery[]) returns void language plpgsql
             security definer as $$
             begin
               create temporary table left_behind () on commit drop;
               perform public.on_orders(all_of_them);
             end $$",
        )
        .await;
    for function in ["on_orders", "on_orders_with_table"] {
        let (topic, group) = (kafka.topic(1).await, unique("orders"));
        for n in 0..40 {
            let payload = if n == 20 { "bad".to_owned() } else { format!("child {n} of {function}") };
            kafka.produce(&topic, Some(&format!("k{}", n % 8)), Some(payload.as_bytes()), &[]).await;
        }
        let settings = format!(
            "topics = [\"{topic}\"]\nhandler = {{ kind = \"sql\", function = \"{function}\", mode = \"batch\" }}\n\
             [groups.{group}.retry]\nbackoff = \"1h\""
        );
        let consumer = Consumer::start(&database.agent_url(), kafka, &group, &settings);
        eventually("all are at their end", PATIENCE, async || {
            let query = "select next_offset from outboxd.group_positions where consumer_group = $1";
            let rows = database.query(query, &[&group]).await;
            rows.first().is_some_and(|row| row.get::<_, i64>(0) == 40)
        })
        .await;
        consumer.drained().await;
        let failed: Vec<(String, String)> =
            failures(&database).await.into_iter().map(|(state, _, payload)| (state, payload)).collect();
        let held = |n: u32| ("held".to_owned(), format!("child {n} of {function}"));
        assert_eq!(failed, [("due".to_owned(), "bad".to_owned()), held(28), held(36)], "{function}");
        assert_eq!(payloads(&database).await.len(), 37, "{function}: each once");
        assert_eq!(database.count("select count(*) from outboxd.attempts").await, 1, "{function}");
        database.batch("truncate effects; delete from outboxd.failures; delete from outboxd.attempts").await;
    }
}

#[tokio::test]
async fn a_breaker_opens_inside_a_batch_and_lets_one_message_try() {
    let (kafka, database) = (Kafka::shared().await, database().await);
    let (topic, group) = (kafka.topic(1).await, unique("orders"));
    for _ in 0..100 {
        kafka.produce(&topic, None, Some(b"bad"), &[]).await;
    }
    let settings = format!(
        "topics = [\"{topic}\"]\nconcurrency = 1\n{BATCH}\nbreaker = {{ failures = 3, pause = \"1h\" }}\n\
         retry = {{ backoff = \"1h\" }}"
    );
    let consumer = Consumer::start(&database.agent_url(), kafka, &group, &settings);
    let is_open = "select count(*) from outboxd.groups where breaker_until > now() + interval '1 min'";
    eventually("it opens", PATIENCE, async || {
        database.count(is_open).await == 1 && failures(&database).await.len() == 3
    })
    .await;
    let before = calls(&database).await;
    for tried in 1..=2 {
        database.batch("update outboxd.groups set breaker_until = now()").await;
        eventually("it opens again", PATIENCE, async || {
            database.count(is_open).await == 1 && failures(&database).await.len() == 3 + tried
        })
        .await;
    }
    consumer.drained().await;
    assert_eq!(failures(&database).await.len(), 5, "the others wait");
    assert_eq!(calls(&database).await - before, 2, "one message each");
}

#[tokio::test]
async fn what_is_refused_at_the_commit_itself_fails_alone() {
    let (kafka, database) = (Kafka::shared().await, database().await);
    database
        .batch(
            "create function put_off() returns trigger language plpgsql security definer as $$
             begin
               -- At its check it puts a fault off behind all checks.
               set constraints all deferred;
               insert into public.effects (payload, customer) values ('hidden', 'nobody');
               return null;
             end $$;
             create constraint trigger put_off after insert on effects deferrable initially deferred
             for each row when (new.payload = 'hidden-fault') execute function put_off();",
        )
        .await;
    for settings in [BATCH, EACH] {
        let (topic, group) = (kafka.topic(1).await, unique("orders"));
        for payload in ["a", "b", "hidden-fault", "c", "d"] {
            kafka.produce(&topic, None, Some(payload.as_bytes()), &[]).await;
        }
        let settings =
            format!("topics = [\"{topic}\"]\n{settings}\n[groups.{group}.retry]\nmax_attempts = 1");
        let consumer = Consumer::start(&database.agent_url(), kafka, &group, &settings);
        eventually("all are at their end", PATIENCE, async || {
            let rows = database
                .query("select next_offset from outboxd.group_positions where consumer_group = $1", &[&group])
                .await;
            rows.first().is_some_and(|row| row.get::<_, i64>(0) == 5)
        })
        .await;
        consumer.drained().await;
        let dead = ("dead".to_owned(), Some("attempts".to_owned()), "hidden-fault".to_owned());
        assert_eq!(failures(&database).await, [dead], "{settings}");
        let mut done = payloads(&database).await;
        done.sort();
        assert_eq!(done, ["a", "b", "c", "d"], "{settings}");
        database.batch("truncate effects; delete from outboxd.failures").await;
    }
}

#[tokio::test]
async fn operations_that_are_done_and_keys_that_come_twice_in_a_batch_are_skipped_on_evidence() {
    let (kafka, database) = (Kafka::shared().await, database().await);
    let (topic, group) = (kafka.topic(1).await, unique("orders"));
    database
        .execute(
            "insert into outboxd.idempotency_keys (consumer_group, namespace, key, message_id, payload_hash, state, owner,
               done_at) values ($1, 'key', 'order-7', gen_random_uuid(), 0, 'done', gen_random_uuid(), now())",
            &[&group],
        )
        .await;
    for n in 0..100 {
        let operation = format!("order-{}", n % 25);
        kafka
            .produce(&topic, None, Some(format!("{n}").as_bytes()), &[("idempotency-key", &operation)])
            .await;
    }
    let settings = format!("topics = [\"{topic}\"]\nordering = \"none\"\nconcurrency = 1\n{BATCH}");
    let consumer = start_with_all(&database, kafka, &group, &settings, 100).await;
    eventually("all are handled", PATIENCE, async || evidence(&database).await == 100).await;
    consumer.drained().await;
    let mut done: Vec<u32> =
        payloads(&database).await.iter().map(|payload| payload.parse().unwrap()).collect();
    done.sort_unstable();
    let first: Vec<u32> = (0..25).filter(|n| *n != 7).collect();
    assert_eq!(done, first, "of each operation the first, and none that was done");
    assert_eq!(
        database.count("select count(*) from outboxd.handled where duplicate_of is not null").await,
        76
    );
    let calls = calls(&database).await;
    assert!(calls <= 3, "duplicates do not make a batch go in halves: {calls} calls");
}

/// What ends its connection each time is found and given up, as what ends a process is.
#[tokio::test]
async fn a_message_that_ends_its_connection_is_given_up_and_its_neighbours_are_done_once() {
    let (kafka, database) = (Kafka::shared().await, database().await);
    for settings in [BATCH, EACH] {
        let (topic, group) = (kafka.topic(1).await, unique("orders"));
        for n in 0..10 {
            let payload = if n == 5 { "deadly".to_owned() } else { format!("{n}") };
            kafka.produce(&topic, None, Some(payload.as_bytes()), &[]).await;
        }
        let settings = format!("topics = [\"{topic}\"]\n{settings}\n[groups.{group}.retry]\nmax_starts = 2");
        let consumer = Consumer::start(&database.agent_url(), kafka, &group, &settings);
        eventually("it is given up", PATIENCE, async || failures(&database).await.len() == 1).await;
        eventually("the others are handled", PATIENCE, async || payloads(&database).await.len() == 9).await;
        eventually("nothing is in doubt", PATIENCE, async || {
            database.count("select count(*) from outboxd.starts").await == 0
        })
        .await;
        consumer.drained().await;
        let dead = ("dead".to_owned(), Some("starts".to_owned()), "deadly".to_owned());
        assert_eq!(failures(&database).await, [dead], "{settings}");
        assert_eq!(database.count("select count(distinct payload) from effects").await, 9, "{settings}");
        database.batch("truncate effects; delete from outboxd.failures").await;
    }
}

#[tokio::test]
async fn a_batch_whose_answer_is_lost_is_not_done_twice() {
    let (kafka, database) = (Kafka::shared().await, database().await);
    let proxy = Proxy::to(Postgres::shared().await.port()).await;
    let topic = kafka.topic(1).await;
    let settings = format!("topics = [\"{topic}\"]\n{BATCH}");
    let consumer = Consumer::start(&without_tls(&proxy, &database), kafka, &unique("orders"), &settings);
    consumer.assigned(1).await;
    let lost = proxy.lose_answer_to("COMMIT");
    for n in 0..50 {
        kafka.produce(&topic, Some("k"), Some(format!("{n}").as_bytes()), &[]).await;
    }
    tokio::time::timeout(PATIENCE, lost).await.expect("an answer was lost");
    eventually("all are handled", PATIENCE, async || evidence(&database).await == 50).await;
    eventually("all are counted", PATIENCE, async || consumer.number("processed") == 50).await;
    consumer.drained().await;
    let expected: Vec<String> = (0..50).map(|n| n.to_string()).collect();
    assert_eq!(payloads(&database).await, expected, "each once, in order");
}

#[tokio::test]
async fn how_many_messages_a_slow_function_can_take_is_remembered() {
    let (kafka, database) = (Kafka::shared().await, database().await);
    database
        .batch(
            "create function on_slow_orders(all_of_them outboxd.delivery[]) returns void language plpgsql
             security definer as $$
             begin
               perform public.on_orders(all_of_them);
               -- Not a wait: a function that takes its time.
               perform pg_sleep(0.02 * cardinality(all_of_them));
             end $$",
        )
        .await;
    let topic = kafka.topic(1).await;
    for n in 0..300 {
        kafka.produce(&topic, None, Some(format!("{n}").as_bytes()), &[]).await;
    }
    let handler = BATCH.replace("on_orders", "on_slow_orders").replace("60s", "1s");
    let settings = format!("topics = [\"{topic}\"]\nconcurrency = 1\nbatch = 100\n{handler}");
    let consumer = Consumer::start(&database.agent_url(), kafka, &unique("orders"), &settings);
    eventually("all are handled", PATIENCE, async || evidence(&database).await == 300).await;
    consumer.drained().await;
    assert_eq!(payloads(&database).await.len(), 300, "each once");
    let came_through = database.count("select count(distinct xmin::text) from effects").await;
    let in_vain = calls(&database).await - came_through;
    assert!(in_vain <= 7, "100 have no more halvings: {in_vain} calls came to nothing");
    assert!(came_through < 200, "they go together still: {came_through} calls");
}

#[tokio::test]
async fn a_drain_does_not_wait_for_all_parts_of_a_batch() {
    let (kafka, database) = (Kafka::shared().await, database().await);
    database
        .batch(
            "create function on_bad_orders(all_of_them outboxd.delivery[]) returns void language plpgsql
             security definer as $$
             begin
               perform public.on_orders(all_of_them);
               if cardinality(all_of_them) > 20 then
                 perform pg_advisory_xact_lock_shared(2);
               end if;
               raise exception 'no';
             end $$",
        )
        .await;
    let topic = kafka.topic(1).await;
    for n in 0..100 {
        kafka.produce(&topic, None, Some(format!("{n}").as_bytes()), &[]).await;
    }
    let client = database.connect().await;
    client.execute("select pg_advisory_lock(2)", &[]).await.unwrap();
    let handler = BATCH.replace("on_orders", "on_bad_orders");
    let settings = format!(
        "topics = [\"{topic}\"]\nconcurrency = 1\n{handler}\nbreaker = {{ failures = 1000, pause = \"1h\" }}"
    );
    let consumer = start_with_all(&database, kafka, &unique("orders"), &settings, 100).await;
    let blocked = "select count(*) from pg_locks where locktype = 'advisory' and objid = 2 and not granted
        and database = (select oid from pg_database where datname = current_database())";
    eventually("a large call is under way", PATIENCE, async || database.count(blocked).await == 1).await;
    let before = calls(&database).await;
    consumer.drain.cancel();
    // All of the consumer runs in this thread: it has heard of the drain before the server answers.
    client.execute("select pg_advisory_unlock(2)", &[]).await.unwrap();
    consumer.drained().await;
    assert_eq!(calls(&database).await, before, "its halves are not tried");
}
