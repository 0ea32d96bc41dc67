//! P1, P2 and P7 under faults in any order: a seeded schedule, for half a minute, or for as long as `make soak` is asked to.

use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::support::ledger::Ledger;
use crate::support::{Daemon, Database, Direction, Kafka, Outboxd, Postgres, Proxy, database, eventually};

const SECONDS: u64 = 30;

const WRITERS: u64 = 4;

/// Of the relay; a frozen owner must lose its lanes within a fault.
const LEASE: &str = "producer.lease = \"1s\"";

/// Between two faults, and how long one lasts, at the most.
const PAUSE: u64 = 1_500;

pub async fn let_pass(time: Duration) {
    let begun = Instant::now();
    eventually("time passes", time * 4, async || begun.elapsed() > time).await;
}

pub fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// What stands below the daemons, and the ways to it. Of two brokers each leads a part of every topic and coordinates some
/// of the groups, until it dies.
pub struct Services {
    postgres: Postgres,
    brokers: [Kafka; 2],
    to_postgres: Proxy,
    to_brokers: [Proxy; 2],
}

/// How many kinds of fault the services have.
pub const SERVICE_FAULTS: u8 = 5;

impl Services {
    pub async fn start() -> Self {
        let (postgres, brokers) = tokio::join!(Postgres::private(), Kafka::pair());
        let to_postgres = Proxy::to(postgres.port()).await;
        let to_brokers = [brokers[0].proxy().await, brokers[1].proxy().await];
        Self { postgres, brokers, to_postgres, to_brokers }
    }

    pub fn kafka(&self) -> &Kafka {
        &self.brokers[0]
    }

    pub async fn database(&self) -> Database {
        self.postgres.database().await
    }

    /// A program that reaches them by ways that can be cut.
    pub fn outboxd(&self, database: &Database) -> Outboxd {
        let brokers = self.brokers.each_ref().map(Kafka::proxied_brokers).join(",");
        Outboxd::new(database, self.kafka())
            .postgres_url(&self.to_postgres.reroute(&database.agent_url()))
            .brokers(&brokers)
    }

    /// One of the kinds below `SERVICE_FAULTS`, over when it returns.
    pub async fn fault(&self, kind: u8, time: Duration, rng: &mut Rng) {
        let which = usize::from(rng.bool());
        let broker = &self.brokers[which];
        match kind {
            0 => {
                self.postgres.kill();
                self.postgres.start().await;
            }
            1 => {
                println!("broker {which}");
                broker.kill();
                broker.start().await;
            }
            2 => {
                println!("broker {which}");
                broker.pause();
                let_pass(time).await;
                broker.resume();
            }
            3 => {
                self.to_postgres.cut();
                let_pass(time).await;
                self.to_brokers.iter().for_each(Proxy::cut);
            }
            _ => {
                let networks = [&self.to_postgres, &self.to_brokers[0], &self.to_brokers[1]];
                let which = rng.usize(0..networks.len());
                println!("network {which}");
                let network = networks[which];
                network.swallow(if rng.bool() { Direction::Requests } else { Direction::Answers });
                let_pass(time).await;
                network.cut();
                network.heal();
            }
        }
    }
}

/// What breaks.
struct Site {
    services: Services,
    database: Database,
    outboxd: Outboxd,
    producers: [Daemon; 2],
    topic: String,
}

impl Site {
    async fn new() -> Self {
        let services = Services::start().await;
        let (database, topic) = (services.database().await, services.kafka().topic(4).await);
        let outboxd = services.outboxd(&database).set(LEASE);
        let producers = [outboxd.producer(), outboxd.producer()];
        Self { services, database, outboxd, producers, topic }
    }

    /// A transaction that stays open with a row of a key of its own.
    async fn hold(&self, time: Duration, number: usize) {
        let Ok(client) = database::try_connect(&self.database.app_url()).await else { return };
        let insert = "insert into outboxd.messages (topic, key, payload) values ($1, $2, 'x')";
        let key = format!("held-{number}");
        let held = async {
            client.batch_execute("begin").await?;
            client.execute(insert, &[&self.topic, &key]).await?;
            let_pass(time).await;
            client.execute(insert, &[&self.topic, &key]).await?;
            client.batch_execute("commit").await
        };
        // The server may die under it: then it never happened.
        let _: Result<(), tokio_postgres::Error> = held.await;
    }

    async fn fault(&mut self, number: usize, rng: &mut Rng) {
        let time = Duration::from_millis(rng.u64(50..PAUSE));
        let which = usize::from(rng.bool());
        let kind = rng.u8(0..10);
        println!("fault {number}: kind {kind}, producer {which}, {time:?}");
        match kind {
            0 => {
                self.producers[which].kill();
                self.producers[which] = self.outboxd.producer();
            }
            1 | 2 => {
                // Past its lease: the other takes over, and this one wakes up.
                self.producers[which].pause();
                let_pass(Duration::from_secs(1) + time).await;
                self.producers[which].resume();
            }
            3..=7 => self.services.fault(kind - 3, time, rng).await,
            8 => self.hold(time, number).await,
            _ => {
                self.producers[which].terminate();
                self.producers[which].wait_exit().await;
                self.producers[which] = self.outboxd.producer();
            }
        }
    }
}

#[tokio::test]
async fn no_schedule_of_faults_loses_or_inverts_a_message() {
    let seed = from_environment("SOAK_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    let time = Duration::from_secs(from_environment("SOAK_SECONDS").unwrap_or(SECONDS));
    println!("SOAK_SEED={seed}, for {time:?}");
    let mut rng = Rng::with_seed(seed);
    let mut site = Site::new().await;
    let ledger = Ledger::new(&site.database, &site.topic);
    let writers = ledger.keep_writing(WRITERS);
    ledger.flows(&site.database).await;
    let begun = Instant::now();
    let mut faults = 0;
    while begun.elapsed() < time {
        faults += 1;
        site.fault(faults, &mut rng).await;
        let_pass(Duration::from_millis(rng.u64(50..PAUSE))).await;
    }
    let committed = writers.stop().await;
    ledger.published(&site.database).await;
    let found = ledger.check(&site.database, site.services.kafka()).await;
    println!(
        "SOAK_SEED={seed}: {faults} faults, {} messages, {} repeats, {} of them out of line",
        found.messages, found.repeats, found.skips
    );
    assert!(committed.iter().all(|id| found.ids.contains(id)), "an acknowledged commit is not in the topic");
    assert!(site.producers.iter().all(Daemon::is_running));
}
