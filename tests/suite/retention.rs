//! P9: nothing goes before every group that subscribes to it is past it, unless a limit that the operator set says so.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::support::{Database, Kafka, Outboxd, Postgres, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

const ROWS: &str = "select count(*) from outboxd.messages";

/// Ten messages, published two days ago as the database tells it, and a group that reads their topic.
async fn two_days_old(database: &Database, kafka: &Kafka, topic: &str) {
    let producer = Outboxd::new(database, kafka).set("jobs.cleanup.enabled = false").producer();
    let insert = "insert into outboxd.messages (topic, payload, created_at)
        select $1, 'x', now() - interval '2 days' from generate_series(1, 10)";
    database.execute(insert, &[&topic]).await;
    let group = "insert into outboxd.groups (name, kafka_group, cluster_id, topics) values ('g', 'g', 'c', array[$1])";
    database.execute(group, &[&topic]).await;
    eventually("they are published", PATIENCE, async || {
        let published = "select count(*) from outboxd.message_states where state = 'published'";
        database.count(published).await == 10
    })
    .await;
    producer.terminate();
    producer.wait_exit().await;
    // What the relay itself noted, as if it had been then.
    database
        .batch(
            "delete from outboxd.publications;
             update outboxd.lanes set publishing_first_seq = null, publishing_last_seq = null",
        )
        .await;
    let publication = "insert into outboxd.publications values
        (0, -1, '3:3:', '3:3:', 1, 10, 10, 'a', now() - interval '2 days', now() - interval '2 days',
         jsonb_build_object($1::text || '/0', 9))";
    database.execute(publication, &[&topic]).await;
}

fn outboxd(database: &Database, kafka: &Kafka) -> Outboxd {
    Outboxd::new(database, kafka).set("jobs.cleanup.schedule = \"every 1s\"")
}

/// The sequence has gone on to the second leaf: the first was looked at.
async fn first_leaf_has_ended(database: &Database) {
    eventually("the leaf is ended, for its age", PATIENCE, async || {
        database.count("select min(floor) from outboxd.lanes").await >= 1_048_575
    })
    .await;
}

async fn cleanup_has_run(database: &Database) {
    let runs = "select coalesce(sum(runs), 0)::bigint from outboxd.jobs where name = 'cleanup'";
    let before = database.count(runs).await;
    eventually("cleanup has run some times", PATIENCE, async || database.count(runs).await >= before + 4)
        .await;
}

#[tokio::test]
async fn a_group_that_lags_keeps_its_messages_and_one_that_is_past_them_does_not() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = kafka.topic(1).await;
    two_days_old(&database, kafka, &topic).await;
    let _producer = outboxd(&database, kafka).producer();
    first_leaf_has_ended(&database).await;
    cleanup_has_run(&database).await;
    assert_eq!(database.count(ROWS).await, 10, "it has no position");
    let position =
        "insert into outboxd.group_positions (consumer_group, cluster_id, topic, partition, next_offset)
        values ('g', 'c', $1, 0, 9)";
    database.execute(position, &[&topic]).await;
    cleanup_has_run(&database).await;
    assert_eq!(database.count(ROWS).await, 10, "the last one is not handled");
    database.batch("update outboxd.group_positions set next_offset = 10").await;
    eventually("they go", PATIENCE, async || database.count(ROWS).await == 0).await;
}

async fn cluster_id(kafka: &Kafka) -> String {
    let client: BaseConsumer = kafka.client_config().create().unwrap();
    tokio::task::spawn_blocking(move || client.client().fetch_cluster_id(PATIENCE)).await.unwrap().unwrap()
}

/// Known by what its log holds: gone, or made anew and shorter.
#[tokio::test]
async fn records_of_a_topic_that_was_deleted_are_waited_for_by_nobody() {
    let kafka = Kafka::shared().await;
    for is_made_anew in [false, true] {
        let database = Postgres::shared().await.database().await;
        let topic = kafka.topic(1).await;
        two_days_old(&database, kafka, &topic).await;
        let _producer = outboxd(&database, kafka).producer();
        first_leaf_has_ended(&database).await;
        cleanup_has_run(&database).await;
        assert_eq!(database.count(ROWS).await, 10, "it has no position");
        kafka.delete_topic(&topic).await;
        if is_made_anew {
            kafka.create_topic(&topic, 1, &[]).await;
        }
        cleanup_has_run(&database).await;
        assert_eq!(database.count(ROWS).await, 10, "the group reads in another cluster");
        let here = "update outboxd.groups set cluster_id = $1";
        database.execute(here, &[&cluster_id(kafka).await]).await;
        eventually("they go", PATIENCE, async || database.count(ROWS).await == 0).await;
    }
}

#[tokio::test]
async fn a_group_that_is_forgotten_is_not_waited_for_and_one_that_is_alive_is_not_forgotten() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = kafka.topic(1).await;
    two_days_old(&database, kafka, &topic).await;
    let outboxd = outboxd(&database, kafka);
    let _producer = outboxd.producer();
    first_leaf_has_ended(&database).await;
    let listed = outboxd.run(&["groups", "list", "--json"]).await;
    let listed: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!(
        (listed[0]["name"].as_str(), listed[0]["topics"][0].as_str()),
        (Some("g"), Some(topic.as_str()))
    );
    assert_eq!(outboxd.run(&["groups", "forget", "nobody", "--yes"]).await.code, 4);
    let agent = "insert into outboxd.agents (id, name, role, groups, host, pid, version, heartbeat)
        values (gen_random_uuid(), 'living', 'consumer', '{g}', 'h', 1, '0', '30s')";
    database.batch(agent).await;
    let alive = outboxd.run(&["groups", "forget", "g", "--yes"]).await;
    assert!(alive.code == 5 && alive.stderr.contains("living"), "{alive:?}");
    database.batch("update outboxd.agents set status = 'stopped' where name = 'living'").await;
    let asked = outboxd.run(&["groups", "forget", "g"]).await;
    assert!(asked.code == 5 && asked.stderr.contains("--yes"), "{asked:?}");
    cleanup_has_run(&database).await;
    assert_eq!(database.count(ROWS).await, 10);
    let operator = Outboxd::without_kafka(&database).postgres_url(&database.operator_url());
    let forgotten = operator.run(&["groups", "forget", "g", "--yes"]).await;
    assert_eq!(forgotten.code, 0, "{forgotten:?}");
    eventually("they go", PATIENCE, async || database.count(ROWS).await == 0).await;
}

#[tokio::test]
async fn the_ceiling_drops_what_is_published_whatever_a_group_does_and_says_so() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = kafka.topic(1).await;
    two_days_old(&database, kafka, &topic).await;
    // In the same leaf, and never published: a transaction that is open.
    let mut client = database.connect_app().await;
    let open = client.transaction().await.unwrap();
    open.execute("insert into outboxd.messages (topic, payload) values ($1, 'x')", &[&topic]).await.unwrap();
    let producer = outboxd(&database, kafka).set("retention.max = \"36h\"").producer();
    first_leaf_has_ended(&database).await;
    cleanup_has_run(&database).await;
    assert_eq!(database.count(ROWS).await, 10);
    open.rollback().await.unwrap();
    let told = producer.wait_for_line("were dropped from the outbox").await;
    assert!(told.contains("10 published messages") && told.contains("group g"), "{told}");
    assert_eq!(database.count(ROWS).await, 0);
}

#[tokio::test]
async fn of_the_default_partition_only_what_is_published_is_deleted() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = kafka.topic(1).await;
    database.batch("select setval('outboxd.messages_seq', 8388607)").await;
    let mut client = database.connect_app().await;
    let open = client.transaction().await.unwrap();
    let insert = "insert into outboxd.messages (topic, payload) values ($1, 'x')";
    open.execute(insert, &[&topic]).await.unwrap();
    for _ in 0..20 {
        database.execute(insert, &[&topic]).await;
    }
    let producer = outboxd(&database, kafka).set("retention.published = \"0s\"").producer();
    producer.wait_for_line("deleted from the default partition").await;
    let strays = "select count(*) from only outboxd.messages_default";
    eventually("the published ones go", PATIENCE, async || database.count(strays).await == 0).await;
    open.commit().await.unwrap();
    eventually("it is published before it goes", PATIENCE, async || kafka.read_all(&topic).await.len() == 21)
        .await;
    eventually("it goes as well", PATIENCE, async || database.count(strays).await == 0).await;
}

#[tokio::test]
async fn dead_letters_stay_for_ever_unless_the_operator_says_how_long() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let insert = "
        insert into outboxd.failures (consumer_group, message_id, state, reason, topic, partition, \"offset\", header_names,
          header_values, changed_at)
        select 'g', gen_random_uuid(), 'dead', 'attempts', 't', 0, n, '{}', '{}', now() - n * interval '1 day'
        from generate_series(0, 9) n";
    database.execute(insert, &[]).await;
    let dead = "select count(*) from outboxd.dead_letters";
    let cleaned =
        "select count(*) from outboxd.jobs where name = 'cleanup' and runs > 0 and ended_at is not null";
    let keeps = outboxd(&database, kafka).producer();
    eventually("cleanup has run", PATIENCE, async || database.count(cleaned).await == 1).await;
    keeps.terminate();
    keeps.wait_exit().await;
    assert_eq!(database.count(dead).await, 10);
    let _deletes = outboxd(&database, kafka).set("retention.dead_letters = \"3days 12h\"").producer();
    eventually("the old ones go", PATIENCE, async || database.count(dead).await == 4).await;
}
