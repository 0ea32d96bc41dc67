//! What Kafka refused is an operator's to decide: found by filters, sent again or discarded, on record, never lost.

use std::time::{Duration, Instant};

use outboxd::config::Config;
use outboxd::pg::Connector;
use outboxd::pg::retry::{self, Behind, Filter, WAITING};
use serde_json::Value;
use uuid::Uuid;

use crate::support::outboxd::Output;
use crate::support::{Daemon, Database, Kafka, Outboxd, Postgres, eventually};

const LIMIT: &str = "kafka.producer.\"message.max.bytes\" = 20000";

/// Parks a message for each of these keys, too large for a client with `LIMIT`, and returns their ids.
async fn park(database: &Database, kafka: &Kafka, topic: &str, keys: &[&str]) -> Vec<Uuid> {
    let mut ids = Vec::new();
    for key in keys {
        let sql = "select outboxd.enqueue($1, repeat('x', 30000), key => $2, type => 'Big', idempotency_key => 'op-' || $2)";
        ids.push(database.query_one(sql, &[&topic, key]).await.get(0));
    }
    let producer = Outboxd::new(database, kafka).set(LIMIT).producer();
    database.reach(topic, "parked", i64::try_from(keys.len()).unwrap()).await;
    stop(producer).await;
    ids
}

async fn stop(producer: Daemon) {
    producer.terminate();
    assert_eq!(producer.wait_exit().await, Some(0));
}

fn operator(database: &Database) -> Outboxd {
    Outboxd::without_kafka(database).postgres_url(&database.operator_url())
}

fn ids(output: &Output) -> Vec<Uuid> {
    assert_eq!(output.code, 0, "{output:?}");
    let listed: Value = serde_json::from_str(&output.stdout).unwrap();
    listed.as_array().unwrap().iter().map(|entry| entry["id"].as_str().unwrap().parse().unwrap()).collect()
}

#[tokio::test]
async fn a_replay_keeps_the_id_and_the_operation_and_is_on_record() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = kafka.topic(2).await;
    let parked = park(&database, kafka, &topic, &["a", "b"]).await;
    let operator = operator(&database);
    let id = parked[0].to_string();
    let shown = operator.run(&["retry", "show", &id]).await;
    assert!(shown.code == 0 && shown.stdout.contains("parked") && shown.stdout.contains("op-a"), "{shown:?}");
    let dry = operator.run(&["retry", "run", &id, "--dry-run"]).await;
    assert!(dry.code == 0 && dry.stdout.contains(&id), "{dry:?}");
    let unasked = operator.run(&["retry", "run", &id]).await;
    assert!(unasked.code == 5 && unasked.stderr.contains("--yes"), "{unasked:?}");
    assert_eq!(database.in_state(&topic, "parked").await, 2);
    let run = operator.run(&["retry", "run", &id, "--yes"]).await;
    assert_eq!((run.code, run.stdout.trim()), (0, "1 message sent again"), "{run:?}");
    assert_eq!(operator.run(&["retry", "run", &id, "--yes"]).await.code, 4);
    let producer = Outboxd::new(&database, kafka).producer();
    database.reach(&topic, "published", 1).await;
    let records = kafka.read_all(&topic).await;
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].header("id"), Some(id.clone()));
    assert_eq!(records[0].header("idempotency-key"), Some("op-a".into()));
    assert_eq!(records[0].payload_text().len(), 30_000);
    // By the old id the new message is found, and the one that was refused says what became of it.
    let shown = operator.run(&["messages", "show", &id, "--json"]).await;
    assert!(shown.stdout.contains("\"published\""), "{shown:?}");
    assert_eq!(database.in_state(&topic, "replayed").await, 1);
    let record = database.query_one("select command, selection, database_user, os_user <> '', messages, result, ended_at is not null from outboxd.operations", &[]).await;
    let selection: Value = record.get("selection");
    assert_eq!((record.get("command"), selection["ids"][0].as_str()), ("retry run", Some(id.as_str())));
    assert_eq!((record.get("database_user"), record.get("messages")), ("operator", 1_i64));
    assert!(
        record.get::<_, bool>(3) && record.get::<_, bool>(6) && record.get::<_, &str>("result") == "done"
    );
    stop(producer).await;
}

#[tokio::test]
async fn what_is_discarded_is_kept_and_can_be_sent_again() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = kafka.topic(1).await;
    let parked = park(&database, kafka, &topic, &["a", "b"]).await;
    let operator = operator(&database);
    let discard = operator.run(&["retry", "discard", "--key", "a", "--yes"]).await;
    assert_eq!((discard.code, discard.stdout.trim()), (0, "1 message discarded"), "{discard:?}");
    assert_eq!(ids(&operator.run(&["retry", "list", "--json"]).await), parked[1..]);
    assert_eq!(ids(&operator.run(&["retry", "list", "--state", "discarded", "--json"]).await), parked[..1]);
    let id = parked[0].to_string();
    assert_eq!(operator.run(&["retry", "discard", &id, "--yes"]).await.code, 4);
    let shown = operator.run(&["retry", "show", &id]).await;
    assert!(shown.stdout.contains("retry discard, by"), "{shown:?}");
    // A producer that reads the window again does not take it for one that was never tried.
    let producer = Outboxd::new(&database, kafka).producer();
    assert_eq!(operator.run(&["retry", "run", &id, "--yes"]).await.code, 0);
    database.reach(&topic, "published", 1).await;
    assert_eq!(kafka.read_all(&topic).await.len(), 1);
    stop(producer).await;
}

#[tokio::test]
async fn a_filter_means_what_fits_all_of_it_and_nothing_narrows_down_to_all() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = kafka.topic(1).await;
    let parked = park(&database, kafka, &topic, &["a", "b", "c", "d"]).await;
    let operator = operator(&database);
    let list = async |arguments: &[&str]| {
        ids(&operator.run(&[&["retry", "list", "--json"][..], arguments].concat()).await)
    };
    assert_eq!(list(&[]).await, parked);
    assert_eq!(list(&["--topic", &topic, "--type", "Big", "--error", "TOO LARGE"]).await, parked);
    assert_eq!(list(&["--since", "1h", "--limit", "2"]).await, parked[..2]);
    assert_eq!(list(&["--limit", "2", "--after", &parked[1].to_string()]).await, parked[2..]);
    for nothing in [
        ["--topic", "other"],
        ["--key", "e"],
        ["--type", "Small"],
        ["--error", "forbidden"],
        ["--until", "1h"],
        ["--group", "g"],
        ["--since", "2100-01-01T00:00:00Z"],
        ["--state", "discarded"],
    ] {
        assert!(list(&nothing).await.is_empty(), "{nothing:?}");
    }
    for command in ["run", "discard"] {
        for unfiltered in
            [&["retry", command, "--yes"][..], &["retry", command, "--yes", "--state", "parked"]]
        {
            let refused = operator.run(unfiltered).await;
            assert!(refused.code == 5 && refused.stderr.contains("--all"), "{refused:?}");
        }
        let unknown = operator.run(&["retry", command, &Uuid::nil().to_string(), "--yes"]).await;
        assert_eq!(unknown.code, 4, "{unknown:?}");
        let both = operator.run(&["retry", command, &parked[0].to_string(), "--key", "a"]).await;
        assert_eq!(both.code, 2, "{both:?}");
    }
    // One that is unknown keeps all from being changed.
    let some = [parked[0].to_string(), Uuid::nil().to_string()];
    assert_eq!(operator.run(&["retry", "run", &some[0], &some[1], "--yes"]).await.code, 4);
    assert_eq!(database.in_state(&topic, "parked").await, 4);
    assert_eq!(database.count("select count(*) from outboxd.operations").await, 0);
    // The rate holds: five a second, in batches of one.
    let begun = Instant::now();
    let run = operator.run(&["retry", "run", "--all", "--yes", "--rate", "5/s", "--limit", "3"]).await;
    assert_eq!((run.code, run.stdout.trim()), (0, "3 messages sent again"), "{run:?}");
    assert!(begun.elapsed() >= Duration::from_millis(600));
    assert_eq!(list(&[]).await, parked[3..]);
}

#[tokio::test]
async fn who_may_not_decide_changes_nothing() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = kafka.topic(1).await;
    park(&database, kafka, &topic, &["a"]).await;
    let reader = Outboxd::without_kafka(&database).postgres_url(&database.reader_url());
    let refused = reader.run(&["retry", "discard", "--all", "--yes"]).await;
    assert!(refused.code == 1 && refused.stderr.contains("outboxd_operator"), "{refused:?}");
    assert_eq!(database.in_state(&topic, "parked").await, 1);
}

#[tokio::test]
async fn what_is_decided_is_kept_for_its_retention_and_no_longer() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = kafka.topic(1).await;
    let parked = park(&database, kafka, &topic, &["a", "b", "c"]).await;
    let operator = operator(&database);
    for key in ["a", "b"] {
        assert_eq!(operator.run(&["retry", "discard", "--key", key, "--yes"]).await.code, 0);
    }
    let old = "
        update outboxd.set_aside set set_aside_at = now() - interval '31 days';
        update outboxd.set_aside set decided_at = now() - interval '31 days' where key = 'a';
        update outboxd.operations set began_at = now() - interval '31 days' where selection ->> 'key' = 'a'";
    database.batch(old).await;
    let producer =
        Outboxd::new(&database, kafka).set("jobs.cleanup.schedule = \"every 1s\"").set(LIMIT).producer();
    // The lanes must be past them: what moves a lane, moves its floor.
    let flows = "insert into outboxd.messages (topic, payload) values ($1, 'x')";
    let kept = "select count(*) from outboxd.operations";
    eventually("the old one is forgotten", Duration::from_secs(30), async || {
        database.execute(flows, &[&topic]).await;
        database.in_state(&topic, "discarded").await == 1 && database.count(kept).await == 1
    })
    .await;
    assert_eq!(
        ids(&operator.run(&["retry", "list", "--json"]).await),
        parked[2..],
        "one that waits never goes"
    );
    stop(producer).await;
}

#[tokio::test]
async fn a_replay_that_the_lane_is_not_past_is_published_once() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = kafka.topic(1).await;
    let insert = "select outboxd.enqueue($1, repeat('x', 30000))";
    database.query_one(insert, &[&topic]).await;
    let outboxd = Outboxd::new(&database, kafka);
    let doomed = Outboxd::new(&database, kafka)
        .set("producer.lease = \"1s\"")
        .set(LIMIT)
        .failpoint("relay-after-park")
        .producer();
    assert_eq!(doomed.wait_exit().await, None);
    let open = "select count(*) from outboxd.lanes where target is not null and published_seq = 0";
    assert_eq!(database.count(open).await, 1, "the next owner reads the window from its beginning");
    assert_eq!(operator(&database).run(&["retry", "run", "--all", "--yes"]).await.code, 0);
    let producer = outboxd.producer();
    database.execute("insert into outboxd.messages (topic, payload) values ($1, 'behind')", &[&topic]).await;
    database.reach(&topic, "published", 2).await;
    let lengths: Vec<_> =
        kafka.read_all(&topic).await.iter().map(|record| record.payload_text().len()).collect();
    assert_eq!(lengths, [30_000, 6]);
    stop(producer).await;
}

#[tokio::test]
async fn a_list_goes_on_behind_an_entry_that_is_gone() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = kafka.topic(1).await;
    let parked = park(&database, kafka, &topic, &["a", "b"]).await;
    let dead = "insert into outboxd.failures (consumer_group, message_id, state, reason, topic, partition, \"offset\", header_names, header_values)
        select 'g', ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, 'dead', 'attempts', 't', 0, n, '{}', '{}'
        from generate_series(1, 3) n";
    database.execute(dead, &[]).await;
    let text = format!("postgres.url = \"{}\"", database.agent_url());
    let config = Config::parse(&text, None, []).unwrap().config;
    let client = Connector::new(&config.postgres, "outboxd/test").connect().await.unwrap();
    let filter = Filter { states: WAITING.map(str::to_owned).to_vec(), ..Filter::default() };
    let (mut seen, mut behind) = (Vec::new(), Behind::Refused(0));
    while let [entry, ..] = &retry::list_behind(&client, &filter, behind, 1).await.unwrap()[..] {
        seen.push(entry.id);
        behind = Behind::from(&entry.place);
        database.batch(&format!("delete from outboxd.failures where message_id = '{}'", entry.id)).await;
    }
    assert_eq!((seen.len(), &seen[..2]), (5, &parked[..]), "{seen:?}");
}

/// A topic's name with a fault in it.
#[tokio::test]
async fn messages_for_a_topic_that_will_never_be_can_be_discarded_and_later_ones_are_held_and_go() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = format!("never-{:x}", fastrand::u64(..));
    let send = async |payload: &str| -> Uuid {
        let sql = "select outboxd.enqueue($1, $2::text, key => 'k')";
        database.query_one(sql, &[&topic, &payload]).await.get(0)
    };
    let producer = Outboxd::new(&database, kafka).producer();
    let held = [send("a").await, send("b").await, send("c").await];
    database.reach(&topic, "held", 3).await;
    let operator = operator(&database);
    assert_eq!(operator.run(&["retry", "list", "--json"]).await.stdout.trim(), "[]", "they may still go");
    let listed = operator.run(&["retry", "list", "--state", "held", "--topic", &topic, "--json"]).await;
    assert_eq!(ids(&listed), held);
    let again = operator.run(&["retry", "run", "--state", "held", "--topic", &topic, "--yes"]).await;
    assert!(again.code == 2 && again.stderr.contains("not for those that are held"), "{again:?}");
    let one = operator.run(&["retry", "discard", &held[0].to_string(), "--yes"]).await;
    assert_eq!((one.code, one.stdout.trim()), (0, "1 message discarded"), "{one:?}");
    assert_eq!(database.in_state(&topic, "held").await, 2);
    let rest = operator.run(&["retry", "discard", "--state", "held", "--topic", &topic, "--yes"]).await;
    assert_eq!((rest.code, rest.stdout.trim()), (0, "2 messages discarded"), "{rest:?}");
    let record = "select count(*) from outboxd.operations
        where command = 'retry discard' and database_user = 'operator' and result = 'done' and messages in (1, 2)";
    assert_eq!(database.count(record).await, 2);
    let later = send("later").await;
    database.reach(&topic, "held", 1).await;
    stop(producer).await;
    let producer = Outboxd::new(&database, kafka).set(&format!("topics.{topic}.create = {{}}")).producer();
    database.reach(&topic, "published", 1).await;
    let after = send("after").await;
    database.reach(&topic, "published", 2).await;
    let records = kafka.read_all(&topic).await;
    let published: Vec<_> = records.iter().map(|record| record.header("id").unwrap()).collect();
    assert_eq!(published, [later.to_string(), after.to_string()]);
    assert_eq!(database.in_state(&topic, "discarded").await, 3);
    // Who meant the topic after all has them again.
    assert_eq!(operator.run(&["retry", "run", &held[1].to_string(), "--yes"]).await.code, 0);
    database.reach(&topic, "published", 3).await;
    stop(producer).await;
}
