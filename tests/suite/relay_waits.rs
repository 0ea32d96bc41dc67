//! A relay that waits says so: to its health, and to its log now and then.

use std::time::{Duration, Instant};

use crate::support::{Direction, Kafka, Outboxd, Postgres, Proxy, eventually};

const SOON: Duration = Duration::from_secs(30);

async fn let_pass(time: Duration) {
    let begun = Instant::now();
    eventually("time passes", time * 2, async || begun.elapsed() > time).await;
}

#[tokio::test]
async fn a_standby_whose_database_is_silent_is_waiting_and_not_stuck() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let database = postgres.database().await;
    let owner = Outboxd::new(&database, kafka).producer();
    owner.wait_for_line("\"low\"").await;
    let proxy = Proxy::to(postgres.port()).await;
    let url = proxy.reroute(&database.agent_url());
    let standby = Outboxd::new(&database, kafka).postgres_url(&url).producer();
    standby.ready().await;
    proxy.swallow(Direction::Answers);
    let_pass(Duration::from_secs(62)).await;
    assert_eq!(standby.get("/healthz").await.unwrap().0, 200);
}

#[tokio::test]
async fn an_idle_producer_is_not_ready_while_kafka_is_away() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::private().await);
    let database = postgres.database().await;
    let daemon = Outboxd::new(&database, &kafka).producer();
    daemon.ready().await;
    kafka.stop().await;
    eventually("/readyz names Kafka", SOON, async || {
        let (status, body) = daemon.get("/readyz").await.unwrap();
        status == 503 && body.contains("Kafka")
    })
    .await;
}

#[tokio::test]
async fn a_broker_that_is_away_does_not_fill_the_log() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::private().await);
    let database = postgres.database().await;
    let topic = kafka.topic(1).await;
    let daemon = Outboxd::new(&database, &kafka).producer();
    daemon.ready().await;
    kafka.stop().await;
    database.execute("insert into outboxd.messages (topic, payload) values ($1, 'x')", &[&topic]).await;
    let_pass(Duration::from_secs(40)).await;
    let told = daemon.log().lines().filter(|line| line.contains("what is committed waits")).count();
    assert!((1..=2).contains(&told), "told {told} times in 40 s");
}

#[tokio::test]
async fn records_in_flight_are_counted_while_they_are_waited_for() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::private().await);
    let database = postgres.database().await;
    let topic = kafka.topic(1).await;
    let outboxd =
        Outboxd::new(&database, &kafka).set("agent.heartbeat = \"1s\"").set("agent.drain_timeout = \"1s\"");
    let daemon = outboxd.producer();
    daemon.ready().await;
    let insert = "insert into outboxd.messages (topic, payload) select $1, 'x' from generate_series(1, 3)";
    database.execute(insert, &[&topic]).await;
    eventually("the topic is known", SOON, async || kafka.read_all(&topic).await.len() == 3).await;
    kafka.pause();
    database.execute(insert, &[&topic]).await;
    eventually("they are sent", SOON, async || {
        database.count("select count(*) from outboxd.lanes where target is not null").await == 1
    })
    .await;
    let in_flight = "select count(*) from outboxd.agents where health ->> 'in_flight' = '3'";
    eventually("three are in flight", SOON, async || database.count(in_flight).await == 1).await;
    daemon.terminate();
    assert_eq!(daemon.wait_exit().await, Some(1));
    let named = daemon.wait_for_line("the drain ended with work left").await;
    assert!(named.contains("3 records that Kafka has not acknowledged"), "{named}");
}
