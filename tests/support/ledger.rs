//! What applications committed, held against what a topic holds.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use fastrand::Rng;
use tokio_postgres::Client;

use super::{Database, Kafka, eventually};

const PATIENCE: Duration = Duration::from_secs(90);

const KEYS: u64 = 20;

/// What a look at the topic found.
#[derive(Debug)]
pub struct Found {
    pub messages: usize,
    /// Records beyond the first of a message.
    pub repeats: usize,
    /// Records of messages that the database has not (any more).
    pub ghosts: usize,
}

/// Applications that write to one topic.
#[derive(Clone)]
pub struct Ledger {
    url: String,
    pub topic: String,
}

impl Ledger {
    pub fn new(database: &Database, topic: &str) -> Self {
        Self { url: database.app_url(), topic: topic.to_owned() }
    }

    /// So many sessions at once, each with so many transactions: some take their xid early, some are rolled back, all
    /// keep the order of a key by a lock of their own until they commit.
    pub async fn write(&self, sessions: u64, transactions: u64) {
        let mut writers = tokio::task::JoinSet::new();
        for session in 0..sessions {
            let ledger = self.clone();
            writers.spawn(async move {
                let mut client = super::database::connect(&ledger.url).await;
                let mut rng = Rng::with_seed(session);
                for _ in 0..transactions {
                    ledger.transaction(&mut client, &mut rng).await;
                }
            });
        }
        writers.join_all().await;
    }

    async fn transaction(&self, client: &mut Client, rng: &mut Rng) {
        let transaction = client.transaction().await.unwrap();
        if rng.bool() {
            transaction.execute("select pg_current_xact_id()", &[]).await.unwrap();
        }
        // In order, so that two writers never wait for each other in a circle.
        let mut keys: Vec<i64> =
            (0..rng.u8(1..4)).map(|_| i64::try_from(rng.u64(0..KEYS)).unwrap()).collect();
        keys.sort_unstable();
        for key in keys {
            transaction.execute("select pg_advisory_xact_lock($1)", &[&key]).await.unwrap();
            for _ in 0..rng.u8(1..4) {
                let priority = i16::from(rng.u8(0..10) == 0);
                transaction
                    .execute(
                        "insert into outboxd.messages (topic, key, payload, priority) values ($1, $2, $3, $4)",
                        &[&self.topic, &format!("key-{key}"), &b"payload".as_slice(), &priority],
                    )
                    .await
                    .unwrap();
            }
        }
        if rng.u8(0..5) == 0 {
            transaction.rollback().await.unwrap();
        } else {
            transaction.commit().await.unwrap();
        }
    }

    /// Waits until every committed message counts as published.
    pub async fn published(&self, database: &Database) {
        let client = database.connect().await;
        eventually("every message is published", PATIENCE, async || {
            let pending =
                "select count(*) from outboxd.message_states where topic = $1 and state <> 'published'";
            client.query_one(pending, &[&self.topic]).await.unwrap().get::<_, i64>(0) == 0
        })
        .await;
    }

    /// Nothing committed is missing, nothing rolled back is there, and the first records of a key and priority stand in
    /// one partition in the order of their inserts.
    pub async fn check(&self, database: &Database, kafka: &Kafka) -> Found {
        let found = self.check_survivors(database, kafka).await;
        assert_eq!(found.ghosts, 0, "messages that were never committed are published");
        found
    }

    /// The same for a database that lost the tail of what was committed: its messages may be published all the same.
    pub async fn check_survivors(&self, database: &Database, kafka: &Kafka) -> Found {
        let rows = database
            .query(
                "select outboxd.message_id(created_at, seq)::text, key, priority from outboxd.messages
                 where topic = $1 order by seq",
                &[&self.topic],
            )
            .await;
        let mut expected: HashMap<(String, i16), Vec<String>> = HashMap::new();
        let mut lanes: HashMap<String, i16> = HashMap::new();
        for row in &rows {
            expected.entry((row.get(1), row.get(2))).or_default().push(row.get(0));
            lanes.insert(row.get(0), row.get(2));
        }
        let records = kafka.read_all(&self.topic).await;
        let (mut seen, mut ghosts) = (HashSet::new(), 0);
        let mut found: HashMap<(String, i16), Vec<String>> = HashMap::new();
        let mut partitions: HashMap<String, i32> = HashMap::new();
        for record in &records {
            let id = record.header("outboxd-id").expect("every record has its id");
            let Some(&priority) = lanes.get(&id) else {
                ghosts += 1;
                continue;
            };
            let partition = *partitions.entry(record.key_text()).or_insert(record.partition);
            assert_eq!(partition, record.partition, "a key keeps its partition");
            if seen.insert(id.clone()) {
                found.entry((record.key_text(), priority)).or_default().push(id);
            }
        }
        for (key, expected) in &expected {
            let found = found.get(key).map_or(&[][..], Vec::as_slice);
            let missing = expected.iter().filter(|id| !found.contains(id)).count();
            assert_eq!(missing, 0, "messages of {key:?} are lost");
            assert_eq!(found, expected, "the messages of {key:?} are out of order");
        }
        Found { messages: seen.len(), repeats: records.len() - ghosts - seen.len(), ghosts }
    }
}
