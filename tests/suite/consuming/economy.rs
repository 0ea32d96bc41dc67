//! What handling costs the database: a statement is for many messages.

use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::{Consumer, PATIENCE, evidence, unique};
use crate::support::{Kafka, Postgres, eventually};

const MESSAGES: u32 = 20_000;

#[tokio::test]
async fn under_load_a_message_costs_no_more_than_a_fiftieth_of_a_statement() {
    let (kafka, postgres) = (Kafka::shared().await, Postgres::counting().await);
    let (database, topic) = (postgres.database().await, kafka.topic(4).await);
    database.batch("create extension pg_stat_statements").await;
    let producer: BaseProducer =
        kafka.client_config().set("queue.buffering.max.messages", "100000").create().unwrap();
    for n in 0..MESSAGES {
        let (key, payload) = (format!("k{}", n % 1_000), [b'x'; 300]);
        producer.send(BaseRecord::to(&topic).key(&key).payload(&payload[..])).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    let settings = format!("topics = [\"{topic}\"]\nhandler = {{ kind = \"log\" }}");
    let consumer = Consumer::start(&database.agent_url(), kafka, &unique("orders"), &settings);
    eventually("all are handled", PATIENCE, async || evidence(&database).await == i64::from(MESSAGES)).await;
    consumer.drained().await;
    let statements = "select sum(s.calls)::bigint from pg_stat_statements s join pg_roles r on r.oid = s.userid
        where r.rolname = 'agent' and s.dbid = (select oid from pg_database where datname = current_database())";
    let statements = database.count(statements).await;
    let most = i64::from(MESSAGES) / 50;
    assert!(
        (20..=most).contains(&statements),
        "{statements} statements, transactions begun and ended among them"
    );
}
