//! A standby becomes the primary while messages are published: the same relay goes on there, losing nothing that is there.

use std::time::Duration;

use crate::support::ledger::Ledger;
use crate::support::{Daemon, Database, Kafka, Outboxd, Postgres, Proxy, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

const INSERT: &str = "insert into outboxd.messages (topic, key, payload)
    select $1, $2 || i % 7, 'x' from generate_series(1, $3::integer) i";

async fn insert(database: &Database, topic: &str, key: &str, count: i32) {
    database.execute(INSERT, &[&topic, &key, &count]).await;
}

/// A primary with a standby behind a proxy, and a relay that works on whichever of them is the primary.
struct Pair {
    primary: Postgres,
    _standby: Postgres,
    /// Between the two.
    stream: Proxy,
    database: Database,
    /// The same on the standby.
    copy: Database,
    ledger: Ledger,
    relay: Daemon,
}

impl Pair {
    async fn start(kafka: &Kafka) -> Self {
        let primary = Postgres::private().await;
        let database = primary.database().await;
        let stream = Proxy::to(primary.port()).await;
        let standby = primary.standby(stream.port()).await;
        let copy = standby.moved(&database);
        let ledger = Ledger::new(&copy, &kafka.topic(4).await);
        let hosts = format!("127.0.0.1:{},127.0.0.1:{}", primary.port(), standby.port());
        let url = database.agent_url().replace(&format!("127.0.0.1:{}", primary.port()), &hosts);
        let relay = Outboxd::new(&database, kafka)
            // Long enough that a busy machine loses none, and repeats nothing for it.
            .set("producer.lease = \"8s\"")
            .postgres_url(&format!("{url}?target_session_attrs=read-write"))
            .producer();
        relay.ready().await;
        Self { primary, _standby: standby, stream, database, copy, ledger, relay }
    }

    /// Until the standby shows what the primary has.
    async fn caught_up(&self, count: i64) {
        let rows = "select count(*) from outboxd.messages";
        eventually("the standby has it all", PATIENCE, async || self.copy.count(rows).await == count).await;
    }

    /// The primary dies, the standby takes its place; how many messages it does not know to be published.
    async fn fail_over(&self) -> usize {
        self.primary.kill();
        let unknown = "select count(*) from outboxd.message_states where state <> 'published'";
        let unknown = self.copy.count(unknown).await;
        self.copy.execute("select pg_promote()", &[]).await;
        usize::try_from(unknown).unwrap()
    }

    async fn published(&self) {
        self.ledger.published(&self.copy).await;
        assert!(self.relay.is_running());
    }
}

#[tokio::test]
async fn a_transaction_prepared_before_a_promotion_and_committed_after_it_is_published() {
    let kafka = Kafka::shared().await;
    let pair = Pair::start(kafka).await;
    let (topic, session) = (&pair.ledger.topic, pair.database.connect().await);
    insert(&pair.database, topic, "before-", 500).await;
    session.batch_execute("begin").await.unwrap();
    session.execute(INSERT, &[topic, &"prepared-", &20]).await.unwrap();
    session.batch_execute("prepare transaction 'over-the-promotion'").await.unwrap();
    // While these are published the primary dies.
    insert(&pair.database, topic, "during-", 15_000).await;
    pair.caught_up(15_500).await;
    assert!(!pair.relay.log().contains("behind what was confirmed"));
    let unknown = pair.fail_over().await;
    insert(&pair.copy, topic, "after-", 500).await;
    pair.published().await;
    pair.copy.batch("commit prepared 'over-the-promotion'").await;
    insert(&pair.copy, topic, "later-", 50).await;
    pair.published().await;
    let found = pair.ledger.check(&pair.copy, kafka).await;
    assert_eq!(found.messages, 16_070);
    assert!(found.repeats <= unknown, "{found:?}, {unknown} were not known to be published");
}

#[tokio::test]
async fn a_standby_that_lagged_hands_numbers_out_again_and_hides_no_message() {
    let kafka = Kafka::shared().await;
    let pair = Pair::start(kafka).await;
    let topic = &pair.ledger.topic;
    insert(&pair.database, topic, "kept-", 300).await;
    pair.caught_up(300).await;
    let known = "select count(*) from outboxd.message_states where state = 'published'";
    eventually("the standby knows", PATIENCE, async || pair.copy.count(known).await == 300).await;
    // Its stream stands still: what comes now is published, and lost with the primary.
    pair.stream.refuse();
    pair.stream.cut();
    insert(&pair.database, topic, "lost-", 300).await;
    Ledger::new(&pair.database, topic).published(&pair.database).await;
    assert_eq!(pair.fail_over().await, 0);
    insert(&pair.copy, topic, "again-", 300).await;
    pair.relay.wait_for_line("the cursor is behind what was confirmed").await;
    let first_again = pair.copy.count("select min(seq) from outboxd.messages where key like 'again-%'").await;
    assert!(first_again < 600, "{first_again}: numbers are handed out again");
    pair.published().await;
    let found = pair.ledger.check_survivors(&pair.copy, kafka).await;
    assert_eq!((found.messages, found.repeats, found.ghosts), (600, 0, 300));
}
