//! `messages show` and `list` tell what became of a message: when and where it was published, and what is left of it when
//! its leaf is emptied.

use std::time::Duration;

use serde_json::Value;

use crate::support::ledger::Ledger;
use crate::support::{Kafka, Outboxd, Postgres, Record, eventually};

/// Messages by how many publications tell of them; what is published and not yet a row counts as one.
const COVERED: &str = "
    with told as (
      select priority, done, target from outboxd.publications
      union all
      select priority, publishing_done, coalesce(target, done) from outboxd.lanes where publishing_done is not null
    )
    select (select count(*) from told where told.priority = m.priority
        and pg_visible_in_snapshot(m.txid, told.target) and not pg_visible_in_snapshot(m.txid, told.done)), count(*)
    from outboxd.messages m group by 1 order by 1";

async fn show(outboxd: &Outboxd, id: &str) -> Value {
    let shown = outboxd.run(&["messages", "show", id, "--json"]).await;
    assert_eq!(shown.code, 0, "{shown:?}");
    serde_json::from_str(&shown.stdout).unwrap()
}

#[tokio::test]
async fn a_published_message_is_told_by_agent_time_partition_and_offset() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = kafka.topic(4).await;
    let outboxd = Outboxd::new(&database, kafka).set("agent.name = \"relay-7\"");
    let insert = "insert into outboxd.messages (topic, key, payload)
        select $1, case when i % 5 > 0 then 'key-' || i end, 'x' from generate_series(1, 100) i";
    database.execute(insert, &[&topic]).await;
    let producer = outboxd.producer();
    database.reach(&topic, "published", 100).await;
    let records = kafka.read_all(&topic).await;
    let reader = Outboxd::without_kafka(&database).postgres_url(&database.reader_url());
    let mut at_most = 0;
    // While it goes on, from the lane; later from a row of its own.
    for round in 0..2 {
        for record in records.iter().step_by(12) {
            let id = record.header("outboxd-id").unwrap();
            let story = show(&outboxd, &id).await;
            assert_eq!(story["deliver_after"], Value::Null);
            let publication = &story["publication"];
            assert_eq!(publication["agent"], "relay-7", "{publication}");
            let places = publication["places"].as_array().unwrap();
            assert_eq!(places.len(), 1, "{publication}");
            assert_eq!(places[0]["partition"], record.partition);
            assert!(places[0]["offset_at_most"].as_i64().unwrap() >= record.offset);
            at_most += usize::from(places[0]["offset_at_most"] == record.offset);
        }
        if round == 0 {
            let recorded = "select count(*) from outboxd.publications where last_seq = 100";
            eventually("it is recorded", Duration::from_secs(30), async || {
                database.count(recorded).await == 1
            })
            .await;
        }
    }
    assert!(at_most <= 8, "an upper bound, of four partitions and in two rounds");
    // Without Kafka to ask, it may be any of those that got something; nobody needs more rights to look.
    let keyed = records.iter().find(|record| record.key.is_some()).unwrap();
    let story = show(&reader, &keyed.header("id").unwrap()).await;
    let (places, began) = (&story["publication"]["places"], &story["publication"]["began_at"]);
    assert!(
        places.as_array().unwrap().len() == 4 && began.as_str() < story["publication"]["ended_at"].as_str()
    );
    let told = outboxd.run(&["messages", "show", &keyed.header("id").unwrap()]).await.stdout;
    assert!(
        told.contains(&format!("partition {}, offset at most", keyed.partition))
            && told.contains("by relay-7"),
        "{told}"
    );
    producer.terminate();
    assert_eq!(producer.wait_exit().await, Some(0));
}

#[tokio::test]
async fn what_is_set_aside_is_told_when_its_leaf_is_emptied() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = kafka.topic(1).await;
    let outboxd = Outboxd::new(&database, kafka);
    let insert = "select outboxd.enqueue($1, $2, key => 'k', deliver_after => clock_timestamp() + $3::text::interval)::text";
    let large = "x".repeat(1_100_000);
    let refused: String = database.query_one(insert, &[&topic, &large, &None::<&str>]).await.get(0);
    let later: String = database.query_one(insert, &[&topic, &"later", &Some("1 day")]).await.get(0);
    database.execute("insert into outboxd.messages (topic, payload) values ($1, 'x')", &[&topic]).await;
    let producer = outboxd.producer();
    database.reach(&topic, "parked", 1).await;
    database.reach(&topic, "scheduled", 1).await;
    database.reach(&topic, "published", 1).await;
    let list = async || -> Vec<(String, String)> {
        let listed = outboxd.run(&["messages", "list", "--topic", &topic, "--json"]).await;
        let listed: Vec<Value> = serde_json::from_str(&listed.stdout).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        listed.iter().map(|message| (text(&message["id"]), text(&message["state"]))).collect()
    };
    let all = list().await;
    assert_eq!(all.len(), 3, "once each: {all:?}");
    database.batch("delete from outboxd.messages").await;
    assert_eq!(list().await, [(later.clone(), "scheduled".into()), (refused.clone(), "parked".into())]);
    database.reach(&topic, "parked", 1).await;
    let story = show(&outboxd, &refused).await;
    assert_eq!(
        (&story["state"], story["payload"].as_str().map(str::len)),
        (&"parked".into(), Some(1_100_000))
    );
    assert_eq!(show(&outboxd, &later).await["payload"], "later");
    outboxd.run(&["retry", "discard", &refused, "--yes"]).await;
    assert_eq!(show(&outboxd, &refused).await["state"], "discarded");
    assert_eq!(kafka.read_all(&topic).await.iter().map(Record::payload_text).collect::<Vec<_>>(), ["x"]);
    producer.terminate();
    assert_eq!(producer.wait_exit().await, Some(0));
}

#[tokio::test]
async fn every_message_is_in_one_publication_also_over_a_takeover() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let ledger = Ledger::new(&database, &kafka.topic(3).await);
    let outboxd = Outboxd::new(&database, kafka).set("producer.lease = \"1s\"");
    let doomed = outboxd.producer();
    doomed.ready().await;
    let writing = tokio::spawn({
        let ledger = ledger.clone();
        async move { ledger.write(4, 150).await }
    });
    let written = "select count(*) from outboxd.publications";
    eventually("a publication is told", Duration::from_secs(60), async || database.count(written).await > 0)
        .await;
    doomed.kill();
    let _next = outboxd.producer();
    writing.await.unwrap();
    ledger.published(&database).await;
    let published = ledger.check(&database, kafka).await.messages;
    let rows = database.query(COVERED, &[]).await;
    let covered: Vec<(i64, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(covered, [(1, i64::try_from(published).unwrap())], "publications a message, messages");
    // Offsets of the doomed one are among them: nobody may believe that a group is past what it has not read.
    let noted = "select coalesce(sum(messages), 0) from outboxd.publications";
    assert!(database.count(&format!("select ({noted})::bigint")).await > 0);
}

/// Innocents of a refused batch are tried alone, by another producer: a group that has not read them is not past them.
#[tokio::test]
async fn offsets_of_what_was_tried_alone_are_told_too() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = format!("small-{:x}", fastrand::u64(..));
    kafka.create_topic(&topic, 1, &[("max.message.bytes", "20000")]).await;
    let insert = "insert into outboxd.messages (topic, key, payload)
        select $1, 'k', decode(string_agg(md5(random()::text), ''), 'hex')
        from generate_series(1, 21) m, generate_series(1, case when m = 21 then 2000 else 10 end) group by m order by m";
    database.execute(insert, &[&topic]).await;
    let producer = Outboxd::new(&database, kafka).producer();
    database.reach(&topic, "published", 20).await;
    database.reach(&topic, "parked", 1).await;
    let recorded = "select count(*) from outboxd.publications";
    eventually("it is recorded", Duration::from_secs(30), async || database.count(recorded).await > 0).await;
    let highest = kafka.read_all(&topic).await.iter().map(|record| record.offset).max();
    let told = "select max((offsets ->> $1)::bigint) from outboxd.publications";
    let told: Option<i64> = database.query_one(told, &[&format!("{topic}/0")]).await.get(0);
    assert_eq!(told, highest);
    producer.terminate();
    assert_eq!(producer.wait_exit().await, Some(0));
}
