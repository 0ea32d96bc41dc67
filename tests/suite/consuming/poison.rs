//! A message that kills its process is found and given up, and its neighbours are not blamed.

use super::{PATIENCE, evidence, unique};
use crate::support::{Kafka, Outboxd, Postgres, eventually};

/// Kills the daemon that started it at the payload `poison`.
const DEADLY: &str = "kind = \"exec\"\ncommand = [\"sh\", \"-c\", \"if [ \\\"$(cat)\\\" = poison ]; then kill -9 $PPID; sleep 5; fi\"]";

#[tokio::test]
async fn a_message_that_kills_its_process_is_given_up_and_no_other() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let (topic, group) = (kafka.topic(1).await, unique("orders"));
    for n in 0..10 {
        let payload = if n == 5 { "poison".to_owned() } else { format!("m{n}") };
        kafka.produce(&topic, None, Some(payload.as_bytes()), &[]).await;
    }
    let outboxd = Outboxd::new(&database, kafka)
        .set("kafka.consumer.\"session.timeout.ms\" = \"6000\"")
        .set(&format!("groups.{group}.retry.max_starts = 2"))
        .group(&group, &topic, DEADLY);
    let mut deaths = 0;
    loop {
        let daemon = outboxd.consumer(&[&group]);
        let done = "select count(*) from outboxd.failures where state = 'dead'";
        eventually("it dies, or gives up", PATIENCE, async || {
            !daemon.is_running() || database.count(done).await == 1
        })
        .await;
        if daemon.is_running() {
            eventually("all others are handled", PATIENCE, async || evidence(&database).await == 9).await;
            daemon.terminate();
            assert_eq!(daemon.wait_exit().await, Some(0));
            break;
        }
        deaths += 1;
        assert!(deaths < 6, "it is never given up");
    }
    assert_eq!(deaths, 3, "once before it is noted, and twice alone");
    let row =
        database.query_one("select reason, convert_from(payload, 'UTF8') from outboxd.failures", &[]).await;
    assert_eq!((row.get::<_, &str>(0), row.get::<_, &str>(1)), ("starts", "poison"));
    assert_eq!(database.count("select count(*) from outboxd.starts").await, 0, "nothing is left in doubt");
}
