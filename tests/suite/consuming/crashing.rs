//! Crashes at each boundary of the consumer.

use super::{PATIENCE, Receiver, evidence, unique};
use crate::support::{Database, Kafka, Outboxd, Postgres, eventually};

/// A consumer daemon that dies where it is told, then another one that does not. Gives the offsets of what had evidence
/// when the first was dead.
async fn killed_and_started_again(
    point: &'static str,
    topic: &str,
    database: &Database,
    handler: &str,
) -> Vec<i64> {
    let kafka = Kafka::shared().await;
    let group = unique("orders");
    let outboxd = || {
        let outboxd = Outboxd::new(database, kafka).set("kafka.consumer.\"session.timeout.ms\" = \"6000\"");
        outboxd.group(&group, topic, handler)
    };
    let dies = outboxd().failpoint(point);
    let daemon = dies.consumer(&[&group]);
    assert_eq!(daemon.wait_exit().await, None, "{point}: it is killed");
    let recorded = database.query("select \"offset\" from outboxd.handled", &[]).await;
    let lives = outboxd();
    let daemon = lives.consumer(&[&group]);
    daemon.ready().await;
    eventually(&format!("{point}: all are handled"), PATIENCE, async || evidence(database).await == 10).await;
    daemon.terminate();
    assert_eq!(daemon.wait_exit().await, Some(0), "{point}");
    recorded.iter().map(|row| row.get(0)).collect()
}

async fn ten_orders() -> String {
    let kafka = Kafka::shared().await;
    let topic = kafka.topic(1).await;
    for n in 0..10 {
        let (payload, key) = (format!("m{n}"), format!("order-{n}"));
        kafka.produce(&topic, None, Some(payload.as_bytes()), &[("idempotency-key", &key)]).await;
    }
    topic
}

#[tokio::test]
async fn a_consumer_killed_at_any_boundary_loses_nothing_and_repeats_only_what_has_no_evidence() {
    let at = async |point: &'static str| {
        let (database, topic) = (Postgres::shared().await.database().await, ten_orders().await);
        let receiver = Receiver::default();
        let url = receiver.clone().listen().await;
        let posting = format!("kind = \"http\"\nurl = \"{url}\"");
        let recorded = killed_and_started_again(point, &topic, &database, &posting).await;
        let handled = receiver.handled();
        assert_eq!(handled.len(), 10, "{point}");
        for offset in &recorded {
            assert_eq!(handled[&format!("m{offset}")], 1, "{point}: what is recorded stays done");
        }
        recorded.len()
    };
    let (_, _, _, after_complete, after_commit) = tokio::join!(
        at("consumer-before-handle:3"),
        at("consumer-after-handle:3"),
        at("consumer-before-complete"),
        at("consumer-after-complete"),
        at("consumer-after-commit"),
    );
    assert!(after_complete > 0 && after_commit > 0, "some were recorded");
}

#[tokio::test]
async fn an_effect_in_sql_happens_once_wherever_the_consumer_is_killed() {
    const EACH: &str = "function = \"on_order\"";
    const BATCH: &str = "function = \"on_orders\"\nmode = \"batch\"";
    let at = async |handler: &str, point: &'static str| {
        let (database, topic) = (Postgres::shared().await.database().await, ten_orders().await);
        database
            .batch(
                "create table effects (payload text);
                 create function on_order(d outboxd.delivery) returns void language sql security definer as $$
                   insert into public.effects values (convert_from(d.payload, 'UTF8')) $$;
                 create function on_orders(all_of_them outboxd.delivery[]) returns void language sql security definer as $$
                   insert into public.effects select convert_from(payload, 'UTF8') from unnest(all_of_them) $$",
            )
            .await;
        killed_and_started_again(point, &topic, &database, &format!("kind = \"sql\"\n{handler}")).await;
        assert_eq!(database.count("select count(*) from effects").await, 10, "{point}");
        assert_eq!(database.count("select count(distinct payload) from effects").await, 10, "{point}");
    };
    tokio::join!(
        at(EACH, "consumer-before-handle:3"),
        at(EACH, "effect-before-commit:3"),
        at(EACH, "effect-after-commit:3"),
        at(EACH, "consumer-after-commit"),
        at(BATCH, "consumer-before-handle"),
        at(BATCH, "effect-before-commit"),
        at(BATCH, "effect-after-commit"),
        at(BATCH, "consumer-after-commit"),
    );
}
