//! `outboxd.publications`: of every published message it tells when, whoever published it.

use crate::support::ledger::Ledger;
use crate::support::{Kafka, Outboxd, Postgres};

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
    crate::support::eventually("a publication is told", std::time::Duration::from_secs(60), async || {
        database.count(written).await > 0
    })
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
