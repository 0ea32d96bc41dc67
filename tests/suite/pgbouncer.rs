//! Everything works through PgBouncer in transaction mode: nothing of ours lives in a session.

use std::time::Duration;

use crate::support::ledger::Ledger;
use crate::support::{Kafka, Outboxd, PgBouncer, Postgres, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn the_relay_publishes_through_it() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let database = postgres.database().await;
    let bouncer = PgBouncer::to(postgres.port()).await;
    let ledger = Ledger::new(&database, &kafka.topic(4).await);
    bouncer.fill(&database.agent_url()).await;
    let producer =
        Outboxd::new(&database, kafka).postgres_url(&bouncer.reroute(&database.agent_url())).producer();
    producer.ready().await;
    ledger.write(4, 50).await;
    ledger.published(&database).await;
    assert_eq!(ledger.check(&database, kafka).await.repeats, 0);
    let _ = (PATIENCE, eventually("x", PATIENCE, async || true).await);
    for row in bouncer.admin().await.simple_query("show servers").await.unwrap() { if let tokio_postgres::SimpleQueryMessage::Row(r) = row { println!("{:?} {:?} {:?} {:?}", r.get("user"), r.get("database"), r.get("state"), r.get("request_time")); } }
    println!("{}", bouncer.log());
    producer.terminate();
    assert_eq!(producer.wait_exit().await, Some(0));
    println!("{}", producer.log());
}
