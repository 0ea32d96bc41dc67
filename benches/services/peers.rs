//! Debezium's outbox router and outboxd in turn, on the same services: the same rows, the same reader at the sink.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Command;
use std::time::Duration;

use outboxd::bench::fill::{Shape, messages};
use outboxd::bench::sink::Sink;
use outboxd::bench::statistics::median;
use outboxd::bench::usage::{Postmaster, Usage, of_process};
use outboxd::config::Config;
use outboxd::pg::{Connector, benching};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::Client;
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::Type;

use crate::Services;
use crate::tests::support::process::Process;
use crate::tests::support::{Database, eventually, port};

const LIB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/peers/lib");
const MESSAGES: u64 = 500_000;
/// A JVM needs this many to have compiled what matters.
const WARM_UP: u64 = 300_000;
const ROUNDS: usize = 3;
const TRANSACTION: u64 = 1_000;
const SHAPE: Shape = Shape { payload_bytes: 300, keys: 1_000, partitions: 8 };
const PATIENCE: Duration = Duration::from_secs(120);

/// Debezium's outbox table, with its one index.
const DEBEZIUM_TABLE: &str = "create table outbox (id uuid primary key default gen_random_uuid(),
    aggregatetype text not null default 'bench', aggregateid text not null, type text not null default 'bench', payload bytea)";

const INTO_DEBEZIUM: &str = "copy outbox (aggregateid, payload) from stdin (format binary)";

/// One of the two, on its own database and topic.
struct Peer {
    name: &'static str,
    database: Database,
    topic: String,
    sink: Sink,
    drains: Vec<Drain>,
}

struct Drain {
    rate: f64,
    cpu: f64,
    postgres_cpu: f64,
    memory: u64,
    wrong: u64,
}

/// Measures both; says whether all that they published was read back, in order.
pub async fn compare(services: &Services) -> bool {
    let mut debezium =
        Peer::new(services, "Debezium's outbox router", services.postgres.empty_database().await).await;
    debezium.database.batch(DEBEZIUM_TABLE).await;
    let mut outboxd = Peer::new(services, "outboxd", services.postgres.database().await).await;
    let connect = Connect::start(services, &debezium).await;
    eprintln!("warming up Debezium with {WARM_UP} rows");
    let before = debezium.sink.ends().await.unwrap();
    debezium.fill(WARM_UP).await;
    debezium.sink.grown(&before, WARM_UP, || Ok(())).await.unwrap();
    let postmaster = Connector::new(&debezium.config(services).postgres, "bench").connect().await.unwrap();
    let postmaster = Postmaster::of(&postmaster).await.unwrap().expect("the server is ours");
    for round in 1..=ROUNDS {
        eprintln!("round {round} of {ROUNDS}");
        debezium.catch_up().await;
        connect.turn("stop", "STOPPED").await;
        debezium.fill(MESSAGES).await;
        let used = of_process(connect.process.id()).unwrap();
        debezium
            .drain(postmaster, used, async || {
                connect.turn("resume", "RUNNING").await;
                connect.process.id()
            })
            .await;
        outboxd.fill(MESSAGES).await;
        let config = services.directory.path().join("outboxd-peer.toml");
        let text = format!(
            "postgres.url = \"{}\"\nkafka.brokers = \"{}\"\nhttp.listen = \"127.0.0.1:0\"\n",
            outboxd.database.url,
            services.kafka.brokers()
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_outboxd"));
        command.arg("producer").arg("--config").arg(&config);
        let mut producer = None;
        outboxd
            .drain(postmaster, Usage::default(), async || {
                let log = services.directory.path().join("outboxd.log");
                producer.insert(Process::start("outboxd", &mut command, &log, "KILL")).id()
            })
            .await;
        let producer = producer.unwrap();
        producer.signal(Signal::TERM);
        producer.ended(PATIENCE).await;
    }
    tell(&debezium, &outboxd);
    debezium.drains.iter().chain(&outboxd.drains).all(|drain| drain.wrong == 0)
}

impl Peer {
    async fn new(services: &Services, name: &'static str, database: Database) -> Self {
        let topic = format!("peer-{:08x}", fastrand::u32(..));
        let by_the_broker = [("message.timestamp.type", "LogAppendTime")];
        services.kafka.create_topic(&topic, SHAPE.partitions, &by_the_broker).await;
        let kafka = config(&database.url, &services.kafka.brokers()).kafka;
        let sink = Sink::new(&kafka, &topic, SHAPE.partitions).unwrap();
        Self { name, database, topic, sink, drains: Vec::new() }
    }

    fn config(&self, services: &Services) -> Config {
        config(&self.database.url, &services.kafka.brokers())
    }

    /// So many rows, in transactions of a thousand.
    async fn fill(&self, count: u64) {
        let client = self.database.connect().await;
        let mut noise = fastrand::Rng::with_seed(count);
        for first in (0..count).step_by(usize::try_from(TRANSACTION).unwrap()) {
            let numbers = first..(first + TRANSACTION).min(count);
            let rows = messages(numbers, SHAPE, &mut noise);
            match self.name {
                "outboxd" => benching::fill(&client, &self.topic, rows).await.unwrap(),
                _ => copy(&client, rows).await,
            }
        }
    }
}

impl Peer {
    /// What was filled, from the start of whoever publishes it to the last record. `used` is what that process had used.
    async fn drain(&mut self, postmaster: Postmaster, used: Usage, start: impl AsyncFnOnce() -> i32) {
        let before = self.sink.ends().await.unwrap();
        let postgres_before = postmaster.cpu_seconds().unwrap();
        let pid = start().await;
        self.sink.grown(&before, MESSAGES, || Ok(())).await.unwrap();
        let usage = of_process(pid).expect("it is at work");
        let postgres_after = postmaster.cpu_seconds().unwrap();
        let found = self.sink.read(&before, &self.sink.ends().await.unwrap(), MESSAGES).await.unwrap();
        let per_million = |seconds: f64| seconds * 1e6 / f64::from(u32::try_from(MESSAGES).unwrap());
        self.drains.push(Drain {
            rate: found.rate().unwrap(),
            cpu: per_million(usage.cpu_seconds - used.cpu_seconds),
            postgres_cpu: per_million(postgres_after - postgres_before),
            memory: usage.peak_memory_bytes,
            wrong: found.lost + found.out_of_order,
        });
    }

    /// Lets a connector forget the log that the other peer wrote: it would read it once more after its next start.
    async fn catch_up(&self) {
        let client = self.database.connect().await;
        let reached = "select pg_current_wal_insert_lsn()::text";
        let reached: String = client.query_one(reached, &[]).await.unwrap().get(0);
        let confirmed = "select bool_and(confirmed_flush_lsn > $1::text::pg_lsn) from pg_replication_slots";
        eventually("the connector has confirmed what it read", PATIENCE, async || {
            // It confirms what it has read of its own database, and only behind the next of it.
            let before = self.sink.ends().await.unwrap();
            let tick = "insert into outbox (aggregateid, payload) values ('tick', 'tick')";
            client.batch_execute(tick).await.unwrap();
            self.sink.grown(&before, 1, || Ok(())).await.unwrap();
            client.query_one(confirmed, &[&reached]).await.unwrap().get(0)
        })
        .await;
    }

    fn median(&self, of: impl Fn(&Drain) -> f64) -> f64 {
        median(&self.drains.iter().map(of).collect::<Vec<_>>())
    }

    /// Messages a second, CPU seconds per million of it and of Postgres, megabytes.
    fn figures(&self) -> [f64; 4] {
        let memory = self.drains.iter().map(|drain| drain.memory).max().unwrap_or(0);
        let megabytes = f64::from(u32::try_from(memory / 1_000_000).unwrap());
        [
            self.median(|drain| drain.rate),
            self.median(|drain| drain.cpu),
            self.median(|drain| drain.postgres_cpu),
            megabytes,
        ]
    }
}

fn config(url: &str, brokers: &str) -> Config {
    let text = format!("postgres.url = \"{url}\"\nkafka.brokers = \"{brokers}\"\n");
    Config::parse(&text, None, []).unwrap().config
}

async fn copy(client: &Client, rows: impl Iterator<Item = (String, Vec<u8>)>) {
    let sink = client.copy_in(INTO_DEBEZIUM).await.unwrap();
    let mut writer = pin!(BinaryCopyInWriter::new(sink, &[Type::TEXT, Type::BYTEA]));
    for (key, payload) in rows {
        writer.as_mut().write(&[&key, &payload]).await.unwrap();
    }
    writer.finish().await.unwrap();
}

fn tell(debezium: &Peer, outboxd: &Peer) {
    println!(
        "| | messages a second | CPU s per million | CPU s of PostgreSQL | memory at most | lost or out of order |"
    );
    println!("|---|---|---|---|---|---|");
    for peer in [debezium, outboxd] {
        let [rate, cpu, postgres_cpu, memory] = peer.figures();
        let wrong: u64 = peer.drains.iter().map(|drain| drain.wrong).sum();
        println!("| {} | {rate:.0} | {cpu:.1} | {postgres_cpu:.1} | {memory:.0} MB | {wrong} |", peer.name);
    }
    let [rate, cpu, postgres_cpu, memory] =
        std::array::from_fn(|figure| outboxd.figures()[figure] / debezium.figures()[figure]);
    println!("| outboxd / Debezium | {rate:.2} | {cpu:.3} | {postgres_cpu:.2} | {memory:.3} | |");
}

/// Kafka Connect with Debezium in it, tuned for throughput.
struct Connect {
    process: Process,
    port: u16,
}

impl Connect {
    async fn start(services: &Services, peer: &Peer) -> Self {
        assert!(Path::new(LIB).join(".complete").exists(), "Debezium is missing: run `make bench-peers`");
        let port = port::free();
        let directory = services.directory.path();
        let file = |name: &str, text: String| -> PathBuf {
            let path = directory.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let worker =
            file("worker.properties", worker(&services.kafka.brokers(), port, &directory.join("offsets")));
        let connector = file(
            "connector.properties",
            connector(services.postgres.port(), &peer.database.name, &peer.topic),
        );
        let mut command = Command::new("java");
        command.args([
            "-Xms2g",
            "-Xmx2g",
            "-XX:+UseParallelGC",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-cp",
        ]);
        command.arg(Path::new(LIB).join("*")).arg("org.apache.kafka.connect.cli.ConnectStandalone");
        command.arg(worker).arg(connector);
        let process = Process::start("Kafka Connect", &mut command, &directory.join("connect.log"), "KILL");
        let connect = Self { process, port };
        connect.until("RUNNING").await;
        connect
    }

    async fn turn(&self, verb: &str, state: &str) {
        self.ask("PUT", &format!("/connectors/outbox/{verb}")).await;
        self.until(state).await;
    }

    /// The connector, and its task if it has one, are in that state.
    async fn until(&self, state: &str) {
        eventually(&format!("the connector is {state}"), PATIENCE, async || {
            assert!(self.process.exited().is_none(), "{}", self.process.last_words());
            let status = self.ask("GET", "/connectors/outbox/status").await.unwrap_or_default();
            let wanted = if state == "RUNNING" { 2 } else { 1 };
            status.matches(&format!("\"state\":\"{state}\"")).count() == wanted
        })
        .await;
    }

    async fn ask(&self, method: &str, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.ok()?;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }
}

fn worker(brokers: &str, port: u16, offsets: &Path) -> String {
    format!(
        "bootstrap.servers={brokers}
listeners=http://127.0.0.1:{port}
offset.storage.file.filename={}
offset.flush.interval.ms=10000
key.converter=org.apache.kafka.connect.storage.StringConverter
value.converter=org.apache.kafka.connect.converters.ByteArrayConverter
producer.linger.ms=20
producer.batch.size=262144
producer.buffer.memory=134217728
producer.compression.type=lz4
",
        offsets.display()
    )
}

fn connector(port: u16, database: &str, topic: &str) -> String {
    format!(
        "name=outbox
connector.class=io.debezium.connector.postgresql.PostgresConnector
tasks.max=1
plugin.name=pgoutput
database.hostname=127.0.0.1
database.port={port}
database.user=postgres
database.password=none
database.dbname={database}
topic.prefix=peer
table.include.list=public.outbox
snapshot.mode=no_data
max.batch.size=16384
max.queue.size=131072
poll.interval.ms=10
transforms=outbox
transforms.outbox.type=io.debezium.transforms.outbox.EventRouter
transforms.outbox.route.topic.replacement={topic}
"
    )
}
