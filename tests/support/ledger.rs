//! What applications committed, held against what a topic holds.

mod effects;
mod order;
mod writers;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use fastrand::Rng;
use tokio_postgres::{Client, Error};

pub use order::{Order, order};
pub use writers::Writers;

use super::{Database, Kafka, Record, eventually};

const PATIENCE: Duration = Duration::from_secs(90);

const KEYS: u64 = 20;

/// What a look at the topic found.
#[derive(Debug, Default)]
pub struct Found {
    pub messages: usize,
    /// Records beyond the first of a message.
    pub repeats: usize,
    /// Repeats that do not follow, in their key, the message before them: a tail that was repeated out of order.
    pub skips: usize,
    /// The ids of the messages.
    pub ids: HashSet<String>,
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
                    ledger.transaction(&mut client, &mut rng).await.unwrap();
                }
            });
        }
        writers.join_all().await;
    }

    /// One transaction of an application; the ids of what it committed.
    async fn transaction(&self, client: &mut Client, rng: &mut Rng) -> Result<Vec<String>, Error> {
        let mut ids = Vec::new();
        let transaction = client.transaction().await?;
        if rng.bool() {
            transaction.execute("select pg_current_xact_id()", &[]).await?;
        }
        // In order, so that two writers never wait for each other in a circle.
        let mut keys: Vec<i64> =
            (0..rng.u8(1..4)).map(|_| i64::try_from(rng.u64(0..KEYS)).unwrap()).collect();
        keys.sort_unstable();
        for key in keys {
            transaction.execute("select pg_advisory_xact_lock($1)", &[&key]).await?;
            for _ in 0..rng.u8(1..4) {
                let priority = i16::from(rng.u8(0..10) == 0);
                let inserted = transaction
                    .query_one(
                        "insert into outboxd.messages (topic, key, payload, priority) values ($1, $2, $3, $4)
                         returning outboxd.message_id(created_at, seq)::text",
                        &[&self.topic, &format!("key-{key}"), &b"payload".as_slice(), &priority],
                    )
                    .await?;
                ids.push(inserted.get(0));
            }
        }
        if rng.u8(0..5) == 0 {
            transaction.rollback().await?;
            return Ok(Vec::new());
        }
        transaction.commit().await?;
        Ok(ids)
    }

    /// Sessions that write at a steady pace until they are stopped, whatever happens to their connections.
    pub fn keep_writing(&self, sessions: u64) -> Writers {
        Writers::start(self, sessions)
    }

    /// Inserts one message, and waits until it counts as published.
    pub async fn flows(&self, database: &Database) {
        let client = database.connect().await;
        let insert =
            "insert into outboxd.messages (topic, key, payload) values ($1, 'flows', 'x') returning seq";
        let seq: i64 = client.query_one(insert, &[&self.topic]).await.unwrap().get(0);
        let is_published =
            "select state = 'published' from outboxd.message_states where priority = 0 and seq = $1";
        eventually("a new message is published", PATIENCE, async || {
            client.query_one(is_published, &[&seq]).await.unwrap().get(0)
        })
        .await;
    }

    /// Waits until every committed message counts as published, but for what is parked or was decided.
    pub async fn published(&self, database: &Database) {
        let client = database.connect().await;
        eventually("every message is published", PATIENCE, async || {
            let pending = "select exists (select from outboxd.message_states
                           where topic = $1 and state not in ('published', 'parked', 'discarded', 'replayed'))";
            !client.query_one(pending, &[&self.topic]).await.unwrap().get::<_, bool>(0)
        })
        .await;
    }

    /// Nothing committed is missing, nothing rolled back is there, and the first records of a key and priority stand in
    /// one partition in the order of their inserts.
    pub async fn check(&self, database: &Database, kafka: &Kafka) -> Found {
        self.check_since(0, database, kafka).await
    }

    /// The same of a topic that was made anew: of the messages up to that `seq` the oldest may be missing, but nothing
    /// is missing behind one that is there.
    pub async fn check_since(&self, lost_up_to: i64, database: &Database, kafka: &Kafka) -> Found {
        let found = self.compare(lost_up_to, database, kafka).await;
        assert_eq!(found.ghosts, 0, "messages that were never committed are published");
        found
    }

    /// The same for a database that lost the tail of what was committed: its messages may be published all the same.
    pub async fn check_survivors(&self, database: &Database, kafka: &Kafka) -> Found {
        self.compare(0, database, kafka).await
    }

    async fn compare(&self, lost_up_to: i64, database: &Database, kafka: &Kafka) -> Found {
        let rows = database
            .query(
                "select outboxd.message_id(created_at, seq)::text, key, priority, seq from outboxd.messages m
                 where topic = $1 and not exists (select from outboxd.set_aside a
                   where a.priority = m.priority and a.seq = m.seq and a.state in ('parked', 'discarded', 'replayed'))
                 order by seq",
                &[&self.topic],
            )
            .await;
        let records = kafka.read_all(&self.topic).await;
        let present: HashSet<String> = records.iter().map(id).collect();
        // A message's key and priority, and its place among those of both.
        let mut places: HashMap<String, (String, i16, usize)> = HashMap::new();
        let mut counts: HashMap<(String, i16), usize> = HashMap::new();
        for row in &rows {
            let (id, key, priority, seq): (String, String, i16, i64) =
                (row.get(0), row.get(1), row.get(2), row.get(3));
            let count = counts.entry((key.clone(), priority)).or_default();
            if *count == 0 && seq <= lost_up_to && !present.contains(&id) {
                continue;
            }
            places.insert(id, (key, priority, *count));
            *count += 1;
        }
        let mut logs: HashMap<(String, i16), Vec<usize>> = HashMap::new();
        let mut partitions: HashMap<String, i32> = HashMap::new();
        let mut ghosts = 0;
        for record in &records {
            let id = id(record);
            let Some((key, priority, place)) = places.get(&id) else {
                ghosts += 1;
                continue;
            };
            assert_eq!(*key, record.key_text(), "a record has its message's key");
            let partition = *partitions.entry(key.clone()).or_insert(record.partition);
            assert_eq!(partition, record.partition, "a key keeps its partition");
            logs.entry((key.clone(), *priority)).or_default().push(*place);
        }
        let mut found = Found { messages: places.len(), ids: present, ghosts, ..Found::default() };
        for (key, count) in counts {
            let Order { missing, inverted, repeats, skips } =
                order(count, logs.get(&key).map_or(&[][..], Vec::as_slice));
            assert_eq!(missing, 0, "messages of {key:?} are lost");
            assert_eq!(inverted, 0, "the messages of {key:?} are out of order: {:?}", logs.get(&key));
            found.repeats += repeats;
            found.skips += skips;
        }
        found
    }
}

fn id(record: &Record) -> String {
    record.header("outboxd-id").expect("every record has its id")
}
