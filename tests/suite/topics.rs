//! P3: a missing topic is made if and only if the configuration says so, and a refusal is told in clear words.

use std::time::Duration;

use outboxd::kafka::topics::Topics;
use rdkafka::mocking::MockCluster;

use crate::support::{Database, Kafka, Outboxd, Postgres, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

const INSERT: &str = "insert into outboxd.messages (topic, key, payload)
    select $1, 'key-' || i % 7, 'x' from generate_series(1, 50) i";

fn name() -> String {
    format!("made-{:x}", fastrand::u64(..))
}

async fn reason(database: &Database, topic: &str) -> String {
    let sql = "select reason from outboxd.message_states where topic = $1 and state = 'held' limit 1";
    database.query_one(sql, &[&topic]).await.get(0)
}

#[tokio::test]
async fn a_missing_topic_is_made_as_configured_and_its_messages_go() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = name();
    let create = "{ partitions = 3, replication = -1, config = { \"max.message.bytes\" = \"20000\" } }";
    let _producer =
        Outboxd::new(&database, kafka).set(&format!("topics.{topic}.create = {create}")).producer();
    database.execute(INSERT, &[&topic]).await;
    database.reach(&topic, "published", 50).await;
    let partitions: std::collections::HashSet<i32> =
        kafka.read_all(&topic).await.iter().map(|record| record.partition).collect();
    assert_eq!(partitions, [0, 1, 2].into());
    let large = "insert into outboxd.messages (topic, payload)
        select $1, decode(string_agg(md5(random()::text), ''), 'hex') from generate_series(1, 5000)";
    database.execute(large, &[&topic]).await;
    let parked = "select count(*) from outboxd.message_states where state = 'parked'";
    eventually("its config is in force", PATIENCE, async || database.count(parked).await == 1).await;
}

#[tokio::test]
async fn the_rest_are_made_as_the_star_says_but_for_those_with_a_table_of_their_own() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let (made, impossible) = (name(), name());
    let _producer = Outboxd::new(&database, kafka)
        .set("topics.\"*\".create = {}")
        .set(&format!("topics.{impossible}.create = {{ replication = 3 }}"))
        .producer();
    database.execute(INSERT, &[&made]).await;
    database.execute(INSERT, &[&impossible]).await;
    database.reach(&made, "published", 50).await;
    database.reach(&impossible, "held", 50).await;
    assert_eq!(
        reason(&database, &impossible).await,
        format!(
            "topic `{impossible}` does not exist and cannot be created: too few brokers for `replication` 3"
        )
    );
    // Somebody else makes it.
    kafka.create_topic(&impossible, 1, &[]).await;
    database.reach(&impossible, "published", 50).await;
}

#[tokio::test]
async fn create_that_is_forbidden_or_invalid_says_so_and_holds() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let (wrong, forbidden) = (name(), name());
    kafka.forbid(&forbidden).await;
    let _producer = Outboxd::new(&database, kafka)
        .guarded(kafka)
        .set(&format!("topics.{wrong}.create = {{ config = {{ \"cleanup.policy\" = \"nonsense\" }} }}"))
        .set(&format!("topics.{forbidden}.create = {{}}"))
        .producer();
    database.execute(INSERT, &[&wrong]).await;
    database.execute(INSERT, &[&forbidden]).await;
    database.reach(&wrong, "held", 50).await;
    database.reach(&forbidden, "held", 50).await;
    let told = reason(&database, &wrong).await;
    assert!(told.ends_with("cannot be created: its `config` is not valid"), "{told}");
    let told = reason(&database, &forbidden).await;
    assert_eq!(told, format!("topic `{forbidden}` is forbidden to us"));
}

#[tokio::test]
async fn a_topic_without_a_leader_holds_only_its_own() {
    let database = Postgres::shared().await.database().await;
    let cluster = MockCluster::new(1).unwrap();
    let (leaderless, there) = (name(), name());
    for topic in [&leaderless, &there] {
        cluster.create_topic(topic, 2, 1).unwrap();
    }
    cluster.partition_leader(&leaderless, 1, None).unwrap();
    let outboxd = Outboxd::without_kafka(&database).brokers(&cluster.bootstrap_servers());
    let _producer = outboxd.producer();
    database.execute(INSERT, &[&leaderless]).await;
    database.execute(INSERT, &[&there]).await;
    database.reach(&there, "published", 50).await;
    database.reach(&leaderless, "held", 50).await;
    let told = reason(&database, &leaderless).await;
    assert!(told.ends_with("does not take records: a partition has no leader"), "{told}");
    cluster.partition_leader(&leaderless, 1, Some(1)).unwrap();
    database.reach(&leaderless, "published", 50).await;
}

#[tokio::test]
async fn a_broker_that_makes_topics_by_itself_makes_none_for_us() {
    let database = Postgres::shared().await.database().await;
    let kafka = Kafka::private_with("auto.create.topics.enable=true\n").await;
    let (missing, there) = (name(), kafka.topic(1).await);
    let outboxd = Outboxd::new(&database, &kafka).set("producer.lease = \"1s\"");
    let first = outboxd.producer();
    database.execute(INSERT, &[&missing]).await;
    database.reach(&missing, "held", 50).await;
    // The next owner looks at what is held as well, several times before this one is due.
    first.kill();
    let _next = outboxd.producer();
    let later = "insert into outboxd.messages (topic, payload, deliver_after)
        select $1, 'x', clock_timestamp() + interval '4 seconds' from generate_series(1, 50)";
    database.execute(later, &[&there]).await;
    database.reach(&there, "published", 50).await;
    assert_eq!(reason(&database, &missing).await, format!("topic `{missing}` does not exist"));
    // It fails if there is one.
    kafka.create_topic(&missing, 1, &[]).await;
    database.reach(&missing, "published", 50).await;
}

#[tokio::test]
async fn a_topic_made_anew_has_another_id_and_one_that_is_missing_has_none() {
    let kafka = Kafka::shared().await;
    let (kept, anew) = (kafka.topic(1).await, kafka.topic(1).await);
    let topics = Topics::new(&kafka.settings(), "test").unwrap();
    let names = [kept.clone(), anew.clone(), name()];
    let before = topics.ids(&names).await.unwrap();
    assert_eq!(before.len(), 2, "{before:?}");
    kafka.delete_topic(&anew).await;
    kafka.create_topic(&anew, 1, &[]).await;
    let after = topics.ids(&names).await.unwrap();
    assert_eq!(before[&kept], after[&kept]);
    assert_ne!(before[&anew], after[&anew]);
    kafka.delete_topic(&anew).await;
}
