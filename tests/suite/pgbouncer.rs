//! Everything works through PgBouncer in transaction mode: nothing of ours lives in a session.

use std::time::Duration;

use tokio_postgres::types::Type;

use crate::support::ledger::Ledger;
use crate::support::{Kafka, Outboxd, PgBouncer, Postgres, Proxy, database, eventually_some};

const PATIENCE: Duration = Duration::from_secs(60);

/// What the code that talks to Postgres has to keep to: a statement without a name needs no session.
#[tokio::test]
async fn a_statement_without_a_name_works_where_a_prepared_one_does_not() {
    let database = Postgres::shared().await.database().await;
    let bouncer = PgBouncer::to(Postgres::shared().await.port()).await;
    let _crowd = bouncer.crowd(&database.agent_url()).await;
    let client = database::connect(&bouncer.reroute(&database.agent_url())).await;
    // Prepared once, by another client: to drop it is a message of its own, which PgBouncer mistakes for the next one.
    let named = database::connect(&bouncer.reroute(&database.agent_url())).await;
    let prepared = named.prepare("select $1::integer + 1").await.unwrap();
    // As often as it takes: which session it gives is its choice.
    let mut lost = 0;
    for turn in 0..10_000 {
        if turn >= 200 && lost > 0 {
            break;
        }
        let row = client.query_typed_one("select $1 + 1", &[(&1_i32, Type::INT4)]).await.unwrap();
        assert_eq!(row.get::<_, i32>(0), 2);
        lost += usize::from(named.query_one(&prepared, &[&1_i32]).await.is_err());
    }
    assert!(lost > 0, "PgBouncer gave the same session every time");
}

#[tokio::test]
async fn relay_send_and_agents_work_through_it() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let database = postgres.database().await;
    let bouncer = PgBouncer::to(postgres.port()).await;
    let ledger = Ledger::new(&database, &kafka.topic(4).await);
    let _crowd = bouncer.crowd(&database.agent_url()).await;
    let outboxd = Outboxd::new(&database, kafka)
        .postgres_url(&bouncer.reroute(&database.agent_url()))
        .set("postgres.prepared_statements = false")
        .set("agent.heartbeat = \"1s\"");
    let producer = outboxd.producer();
    producer.ready().await;
    ledger.write(4, 50).await;
    let sent = outboxd.run(&["send", "--topic", &ledger.topic, "--key", "k", "x"]).await;
    assert_eq!(sent.code, 0, "{sent:?}");
    ledger.published(&database).await;
    assert_eq!(ledger.check(&database, kafka).await.repeats, 0);
    for look in ["agents", "lanes", "messages", "groups"] {
        let listed = outboxd.run(&[look, "list"]).await;
        assert_eq!(listed.code, 0, "{listed:?}");
    }
    producer.terminate();
    assert_eq!(producer.wait_exit().await, Some(0));
    assert!(!producer.log().contains("SQLSTATE"), "{}", producer.log());
}

#[tokio::test]
async fn connections_that_it_cuts_cost_no_message() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let database = postgres.database().await;
    let bouncer = PgBouncer::to(postgres.port()).await;
    let proxy = Proxy::to(bouncer.port()).await;
    let ledger = Ledger::new(&database, &kafka.topic(4).await);
    let _crowd = bouncer.crowd(&database.agent_url()).await;
    let url = format!("{}?sslmode=disable", proxy.reroute(&database.agent_url()));
    let producer = Outboxd::new(&database, kafka)
        .postgres_url(&url)
        .set("postgres.prepared_statements = false")
        .set("producer.lease = \"1s\"")
        .producer();
    producer.ready().await;
    let writers = ledger.keep_writing(2);
    for _ in 0..3 {
        bouncer.reconnect().await;
        ledger.flows(&database).await;
        bouncer.kill_connections(&database.name).await;
        ledger.flows(&database).await;
        // A write of the cursor that is committed and never heard of: priority and owner, each behind its length.
        let owner = eventually_some("the lane has an owner", PATIENCE, async || {
            let row = database.query_one("select owner from outboxd.lanes where priority = 0", &[]).await;
            row.get::<_, Option<uuid::Uuid>>(0)
        });
        let owner = owner.await;
        let lost =
            proxy.lose_answer_to([&[0, 0, 0, 2, 0, 0, 0, 0, 0, 16], owner.as_bytes().as_slice()].concat());
        tokio::time::timeout(PATIENCE, lost).await.expect("a cursor is written");
        ledger.flows(&database).await;
    }
    writers.stop().await;
    ledger.published(&database).await;
    ledger.check(&database, kafka).await;
    assert!(producer.is_running());
}
