//! What an operator or the breaker orders: nothing more starts, what runs is finished, no attempt is spent.

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use outboxd::consumer::ConsumerStatus;
use outboxd::domain::health::Vitals;

use super::{Consumer, PATIENCE, Receiver, evidence, posting, unique};
use crate::support::{Database, Kafka, Postgres, eventually};

fn waiting_for(consumer: &Consumer) -> String {
    ConsumerStatus(vec![consumer.status.clone()]).waiting_for().unwrap_or_default()
}

async fn call(database: &Database, statement: &str, group: &str) {
    database.execute(statement, &[&group]).await;
}

#[tokio::test]
async fn a_paused_group_starts_nothing_and_goes_on_when_it_is_resumed() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let topic = kafka.topic(2).await;
    let receiver = Receiver::default();
    let url = receiver.clone().listen().await;
    let group = unique("orders");
    let consumer = Consumer::start(&database.agent_url(), kafka, &group, &posting(&[&topic], &url));
    consumer.assigned(2).await;
    eventually("it is at work", PATIENCE, async || {
        database.count("select count(*) from outboxd.members where not takes_retries").await == 1
    })
    .await;
    let pause = "update outboxd.groups set paused_at = now(), paused_by = 'ann' where name = $1";
    call(&database, pause, &group).await;
    eventually("it hears", PATIENCE, async || waiting_for(&consumer).contains("paused by ann")).await;
    for n in 0..10 {
        kafka.produce(&topic, Some(&format!("k{n}")), Some(format!("m{n}").as_bytes()), &[]).await;
    }
    eventually("the lag is seen", PATIENCE, async || consumer.number("lag") == 10).await;
    assert_eq!(receiver.handled().len(), 0);
    call(&database, "update outboxd.groups set paused_at = null where name = $1", &group).await;
    eventually("all are handled", PATIENCE, async || evidence(&database).await == 10).await;
    assert_eq!(waiting_for(&consumer), "");
    consumer.drained().await;
    assert_eq!(database.count("select count(*) from outboxd.members").await, 0, "it has said goodbye");
}

#[tokio::test]
async fn a_breaker_waits_for_the_other_side_instead_of_using_up_attempts() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let topic = kafka.topic(2).await;
    let receiver = Receiver { takes: Duration::from_millis(10), ..Receiver::default() };
    let url = receiver.clone().listen().await;
    for n in 0..60 {
        let payload = format!("m{n}");
        receiver.tell(&payload, StatusCode::SERVICE_UNAVAILABLE);
        kafka.produce(&topic, None, Some(payload.as_bytes()), &[]).await;
    }
    let group = unique("orders");
    let settings = format!(
        "topics = [\"{topic}\"]\nconcurrency = 2\nhandler = {{ kind = \"http\", url = \"{url}\" }}\n\
         breaker = {{ failures = 5, pause = \"1h\" }}"
    );
    let consumer = Consumer::start(&database.agent_url(), kafka, &group, &settings);
    eventually("it opens", PATIENCE, async || waiting_for(&consumer).contains("the breaker is open")).await;
    let open = "select count(*) from outboxd.groups
        where breaker_until > now() + interval '1 min' and breaker_reason like '%503%'";
    eventually("all agents know", PATIENCE, async || database.count(open).await == 1).await;
    eventually("what ran has ended", PATIENCE, async || consumer.number("in_flight") == 0).await;
    let failed = consumer.number("failed");
    assert!((5..=7).contains(&failed), "those that ran when it opened at the most: {failed}");
    let soon = "update outboxd.groups set breaker_until = now() + interval '1 s'";
    database.batch(soon).await;
    eventually("one is let through", PATIENCE, async || consumer.number("failed") > failed).await;
    eventually("it opens again", PATIENCE, async || database.count(open).await == 1).await;
    assert_eq!(consumer.number("failed"), failed + 1);
    receiver.answers.lock().unwrap().clear();
    database.batch(soon).await;
    eventually("the rest is handled", PATIENCE, async || {
        let failures = database.count("select count(*) from outboxd.failures").await;
        evidence(&database).await + failures == 60
    })
    .await;
    assert!(database.count("select count(*) from outboxd.failures").await < 20, "few attempts were spent");
    assert_eq!(database.count("select count(*) from outboxd.groups where breaker_until is null").await, 1);
    consumer.drained().await;
}

#[tokio::test]
async fn no_more_start_in_a_second_than_the_rate_allows() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let topic = kafka.topic(1).await;
    let receiver = Receiver::default();
    let url = receiver.clone().listen().await;
    let settings = format!("rate = \"10/s\"\n{}", posting(&[&topic], &url));
    let consumer = Consumer::start(&database.agent_url(), kafka, &unique("orders"), &settings);
    consumer.assigned(1).await;
    // Before any starts: when it is recorded says less, where the first is recorded late.
    let begun = Instant::now();
    for n in 0..40 {
        kafka.produce(&topic, None, Some(format!("m{n}").as_bytes()), &[]).await;
    }
    eventually("all are handled", PATIENCE, async || evidence(&database).await == 40).await;
    let took = begun.elapsed();
    consumer.drained().await;
    let least = Duration::from_secs(3);
    assert!(took >= least, "40 at 10 a second, of which one second's worth may come at once: {took:?}");
}

/// Agents of one group, each with a partition and heard of.
async fn two_agents(kafka: &Kafka, database: &Database, group: &str, settings: &str) -> [Consumer; 2] {
    let agents = [(); 2].map(|()| Consumer::start(&database.agent_url(), kafka, group, settings));
    for agent in &agents {
        agent.assigned(1).await;
    }
    let heard = "select count(*) from outboxd.members";
    eventually("both are heard", PATIENCE, async || database.count(heard).await == 2).await;
    agents
}

#[tokio::test]
async fn one_agents_breaker_is_that_of_the_group() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let topic = kafka.topic(2).await;
    let receiver = Receiver { takes: Duration::from_millis(200), ..Receiver::default() };
    let url = receiver.clone().listen().await;
    for n in 0..200 {
        receiver.tell(&format!("m{n}"), StatusCode::SERVICE_UNAVAILABLE);
    }
    let settings = format!(
        "topics = [\"{topic}\"]\nconcurrency = 2\nhandler = {{ kind = \"http\", url = \"{url}\" }}\n\
         breaker = {{ failures = 8, pause = \"1h\" }}"
    );
    let agents = two_agents(kafka, &database, &unique("orders"), &settings).await;
    for n in 0..200 {
        kafka.produce(&topic, Some(&format!("k{n}")), Some(format!("m{n}").as_bytes()), &[]).await;
    }
    for agent in &agents {
        eventually("it stands still", PATIENCE, async || waiting_for(agent).contains("the breaker is open"))
            .await;
    }
    let failed = || agents.iter().map(|agent| agent.number("failed")).sum::<u64>();
    // Each may have come up to the limit by itself, and the second hears of it within a second.
    assert!((8..=30).contains(&failed()), "{}", failed());
    database.batch("update outboxd.groups set breaker_until = now()").await;
    receiver.answers.lock().unwrap().clear();
    eventually("it closes, and all others are handled", PATIENCE, async || {
        let failures = database.count("select count(*) from outboxd.failures").await;
        evidence(&database).await + failures == 200
    })
    .await;
    for agent in agents {
        agent.drained().await;
    }
    assert_eq!(database.count("select count(*) from outboxd.groups where breaker_until is null").await, 1);
}

#[tokio::test]
async fn the_rate_is_that_of_the_group_however_many_agents_it_has() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let topic = kafka.topic(2).await;
    let receiver = Receiver::default();
    let url = receiver.clone().listen().await;
    let settings = format!("rate = \"20/s\"\n{}", posting(&[&topic], &url));
    let agents = two_agents(kafka, &database, &unique("orders"), &settings).await;
    // Each learns of the other within a second, and has its share from then on.
    let beats = database.query_one("select max(seen_at) from outboxd.members", &[]).await;
    let beats: chrono::DateTime<chrono::Utc> = beats.get(0);
    eventually("both have heard of each other", PATIENCE, async || {
        let later = "select count(*) from outboxd.members where seen_at > $1::timestamptz + interval '1 s'";
        database.query_one(later, &[&beats]).await.get::<_, i64>(0) == 2
    })
    .await;
    let begun = Instant::now();
    for n in 0..120 {
        kafka.produce(&topic, Some(&format!("k{n}")), Some(format!("m{n}").as_bytes()), &[]).await;
    }
    eventually("all are handled", PATIENCE, async || evidence(&database).await == 120).await;
    let took = begun.elapsed();
    let both: u64 = agents.iter().map(|agent| u64::from(agent.number("processed") > 0)).sum();
    assert_eq!(both, 2, "each has a partition");
    for agent in agents {
        agent.drained().await;
    }
    let least = Duration::from_millis(4_500);
    assert!(took >= least, "120 at 20 a second, of which one second's worth may come at once: {took:?}");
}
