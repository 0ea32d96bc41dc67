//! A Kafka broker of the tests' own: one KRaft node, or a cluster of two, from the jars that `make kafka` fetches.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use outboxd::config::Config;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::sync::OnceCell;

use super::database::PASSWORD;
use super::process::Process;
use super::{Proxy, eventually, port, watchdog};

const POM: &str = include_str!("../services/pom.xml");
const START: Duration = Duration::from_secs(120);
const STOP: Duration = Duration::from_secs(60);
const ANSWER: Duration = Duration::from_secs(30);

/// A listener that tells its clients to come by way of a proxy.
#[derive(Clone, Copy)]
struct Proxied {
    port: u16,
    proxy: u16,
}

/// A small heap and the compiler that starts fast.
const FOR_TESTS: &[&str] = &["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"];

/// As Kafka's own start script has it, but for the pages: on a virtual machine whose page walks are slow, small ones made
/// of each collection, once a second, a stop of 50 to 150 ms.
const FOR_LOAD: &[&str] =
    &["-Xms1g", "-Xmx1g", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:+UseTransparentHugePages"];

/// Of the topic in which a broker keeps what groups have committed.
const OFFSETS_PARTITIONS: i32 = 4;

/// For one of two brokers: what is on one is on both, also the topics that ask for the broker's default, and who led before
/// it died leads again soon after it is back.
const ON_BOTH: &str = "offsets.topic.replication.factor=2
default.replication.factor=2
leader.imbalance.check.interval.seconds=1
";

/// What the nodes of one cluster have in common. The first alone is its controller.
struct Cluster {
    id: String,
    controller: u16,
    replicas: i32,
}

impl Cluster {
    fn of(brokers: i32) -> Self {
        Self { id: cluster_id(), controller: port::free(), replicas: brokers }
    }
}

pub struct Kafka {
    process: Mutex<Option<Process>>,
    jvm: &'static [&'static str],
    replicas: i32,
    port: u16,
    guarded_port: u16,
    proxied: Proxied,
    directory: TempDir,
    admin: AdminClient<DefaultClientContext>,
}

impl Kafka {
    /// The one broker of this run: never stop it.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Kafka> = OnceCell::const_new();
        SHARED.get_or_init(Self::private).await
    }

    /// A broker for one test, to be stopped, killed or frozen. It costs seconds and some 300 MB.
    pub async fn private() -> Self {
        Self::private_with("").await
    }

    /// The same, with lines of `server.properties` over its own.
    pub async fn private_with(more: &str) -> Self {
        Self::made(FOR_TESTS, 1, &Cluster::of(1), more).await
    }

    /// A broker to be measured.
    #[allow(dead_code, reason = "only measurements use it")]
    pub async fn for_load() -> Self {
        Self::made(FOR_LOAD, 1, &Cluster::of(1), "").await
    }

    /// Two brokers of one cluster. If the second dies, the first leads in its place. While the first is dead nothing moves:
    /// it is the controller.
    pub async fn pair() -> [Self; 2] {
        let cluster = Cluster::of(2);
        let first = Self::made(FOR_TESTS, 1, &cluster, ON_BOTH).await;
        let second = Self::made(FOR_TESTS, 2, &cluster, ON_BOTH).await;
        [first, second]
    }

    async fn made(jvm: &'static [&'static str], node: i32, cluster: &Cluster, more: &str) -> Self {
        let directory = TempDir::with_prefix("outboxd-kafka-").unwrap();
        watchdog::remove(directory.path());
        let (port, guarded_port) = (port::free(), port::free());
        let proxied = Proxied { port: port::free(), proxy: port::free() };
        let properties = properties(node, cluster, port, guarded_port, proxied, directory.path()) + more;
        std::fs::write(properties_file(&directory), properties).unwrap();
        let formatted = java(FOR_TESTS, &["kafka.tools.StorageTool", "format", "-t", &cluster.id, "-c"])
            .arg(properties_file(&directory))
            .output()
            .expect("java runs: `make setup` installs it");
        assert!(
            formatted.status.success(),
            "Kafka's storage tool: {}",
            String::from_utf8_lossy(&formatted.stderr)
        );
        let admin = client_config(port).create().unwrap();
        let (process, replicas) = (Mutex::new(None), cluster.replicas);
        let kafka = Self { process, jvm, replicas, port, guarded_port, proxied, directory, admin };
        kafka.start().await;
        kafka
    }

    /// What goes into `kafka.brokers`.
    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// For parts of the daemon that run in a test.
    pub fn settings(&self) -> outboxd::config::Kafka {
        let text = format!(
            "[postgres]\nurl = \"postgres://localhost/none\"\n[kafka]\nbrokers = \"{}\"\n",
            self.brokers()
        );
        Config::parse(&text, None, []).unwrap().config.kafka
    }

    /// Where clients say who they are (see `guarded_client`), so that a topic can be forbidden to them.
    pub fn guarded_brokers(&self) -> String {
        format!("127.0.0.1:{}", self.guarded_port)
    }

    /// A network of its own to this broker, to be broken: for clients whose `kafka.brokers` is `proxied_brokers`. One at
    /// a time.
    pub async fn proxy(&self) -> Proxy {
        Proxy::at(self.proxied.proxy, self.proxied.port).await
    }

    /// By way of `proxy`.
    pub fn proxied_brokers(&self) -> String {
        format!("127.0.0.1:{}", self.proxied.proxy)
    }

    /// Changes a property of a topic; the others go back to their defaults.
    pub async fn configure_topic(&self, topic: &str, property: &str, value: &str) {
        let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set(property, value);
        let changed = self.admin.alter_configs([&change], &AdminOptions::new()).await.unwrap();
        changed.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
    }

    /// The librdkafka properties of a client at `guarded_brokers`.
    pub fn guarded_client() -> [(&'static str, &'static str); 4] {
        [
            ("security.protocol", "sasl_plaintext"),
            ("sasl.mechanism", "PLAIN"),
            ("sasl.username", "app"),
            ("sasl.password", PASSWORD),
        ]
    }

    /// Nobody at `guarded_brokers` may write or read that topic any more, until `allow`.
    pub async fn forbid(&self, topic: &str) {
        self.acl(&["--add", "--deny-principal", "User:app", "--operation", "All", "--topic", topic]).await;
    }

    pub async fn allow(&self, topic: &str) {
        self.acl(&[
            "--remove",
            "--force",
            "--deny-principal",
            "User:app",
            "--operation",
            "All",
            "--topic",
            topic,
        ])
        .await;
    }

    async fn acl(&self, arguments: &[&str]) {
        let mut command =
            java(FOR_TESTS, &["org.apache.kafka.tools.AclCommand", "--bootstrap-server", &self.brokers()]);
        command.args(arguments);
        let output = tokio::process::Command::from(command).output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// A new topic with a name of its own.
    pub async fn topic(&self, partitions: i32) -> String {
        let name = format!("topic-{:016x}", fastrand::u64(..));
        self.create_topic(&name, partitions, &[]).await;
        name
    }

    /// A new topic of that name; ready when this returns.
    pub async fn create_topic(&self, name: &str, partitions: i32, config: &[(&str, &str)]) {
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(self.replicas));
        let topic = config.iter().fold(topic, |topic, (property, value)| topic.set(property, value));
        let made = self.admin.create_topics(&[topic], &AdminOptions::new()).await.unwrap();
        made.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
        self.wait_for_leaders(name, partitions).await;
    }

    /// Raises the number of its partitions to that.
    pub async fn add_partitions(&self, topic: &str, count: i32) {
        let more = NewPartitions::new(topic, usize::try_from(count).unwrap());
        let made = self.admin.create_partitions(&[more], &AdminOptions::new()).await.unwrap();
        made.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
        self.wait_for_leaders(topic, count).await;
    }

    /// The file that holds the records of a partition, as the broker reads them again for every fetch.
    pub fn log(&self, topic: &str, partition: i32) -> PathBuf {
        let directory = self.directory.path().join("data").join(format!("{topic}-{partition}"));
        directory.join("00000000000000000000.log")
    }

    /// As retention does: its log begins at that offset now.
    pub async fn delete_records(&self, topic: &str, partition: i32, before: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(before)).unwrap();
        self.admin.delete_records(&list, &AdminOptions::new()).await.unwrap();
    }

    /// Deletes it; gone when this returns.
    pub async fn delete_topic(&self, name: &str) {
        let deleted = self.admin.delete_topics(&[name], &AdminOptions::new()).await.unwrap();
        deleted.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
        eventually(&format!("topic {name} is gone"), ANSWER, async || self.leaders(name).await.is_none())
            .await;
    }

    /// Which node leads which partition of the topic, of those that can be written to; nothing if there is no such topic.
    pub async fn leaders(&self, topic: &str) -> Option<HashMap<i32, i32>> {
        let (config, name) = (self.client_config(), topic.to_owned());
        let metadata = tokio::task::spawn_blocking(move || {
            let client: AdminClient<DefaultClientContext> = config.create()?;
            client.inner().fetch_metadata(Some(&name), ANSWER)
        });
        let metadata = metadata.await.unwrap().ok()?;
        let found = metadata.topics().first().filter(|topic| topic.error().is_none())?;
        let ready = found
            .partitions()
            .iter()
            .filter(|partition| partition.error().is_none() && partition.leader() >= 0);
        Some(ready.map(|partition| (partition.id(), partition.leader())).collect())
    }

    async fn wait_for_leaders(&self, topic: &str, partitions: i32) {
        eventually(&format!("{partitions} partitions of {topic} have leaders"), ANSWER, async || {
            self.leaders(topic).await.is_some_and(|leaders| i32::try_from(leaders.len()) == Ok(partitions))
        })
        .await;
    }

    /// Which node coordinates the group: the leader of the partition that keeps what the group commits, which is Java's hash
    /// of its name without its sign, modulo their number.
    pub async fn coordinator(&self, group: &str) -> Option<i32> {
        // The first question for a coordinator makes the topic.
        self.committed(group, "any").await.ok()?;
        let hash = group.bytes().fold(0_i32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        let partition = hash.checked_abs().unwrap_or(0) % OFFSETS_PARTITIONS;
        self.leaders("__consumer_offsets").await?.get(&partition).copied()
    }

    /// What the group has committed of the topic's first partition.
    pub async fn committed(&self, group: &str, topic: &str) -> Result<Offset, KafkaError> {
        let mut config = self.client_config();
        config.set("group.id", group);
        let mut wanted = TopicPartitionList::new();
        wanted.add_partition(topic, 0);
        let asked = tokio::task::spawn_blocking(move || {
            config.create::<BaseConsumer>()?.committed_offsets(wanted, ANSWER)
        });
        Ok(asked.await.unwrap()?.elements()[0].offset())
    }

    pub fn client_config(&self) -> ClientConfig {
        client_config(self.port)
    }

    /// Starts it, on the same port and data as before, and waits until it answers.
    pub async fn start(&self) {
        let mut command = java(self.jvm, &["kafka.Kafka"]);
        command.arg(properties_file(&self.directory));
        let process = Process::start("Kafka", &mut command, &self.directory.path().join("log"), "KILL");
        *self.process.lock().unwrap() = Some(process);
        eventually("Kafka answers", START, async || {
            self.assert_alive();
            self.answers().await
        })
        .await;
    }

    fn assert_alive(&self) {
        let process = self.process.lock().unwrap();
        let running = process.as_ref().expect("it was started");
        assert!(running.exited().is_none(), "Kafka ended. {}", running.last_words());
    }

    async fn answers(&self) -> bool {
        let config = self.client_config();
        let asked = tokio::task::spawn_blocking(move || {
            let client: AdminClient<DefaultClientContext> = config.create()?;
            let metadata = client.inner().fetch_metadata(None, Duration::from_secs(1))?;
            if metadata.brokers().is_empty() {
                return Err(KafkaError::MetadataFetch(RDKafkaErrorCode::BrokerNotAvailable));
            }
            Ok(())
        });
        asked.await.unwrap().is_ok()
    }

    /// Ends it in good order.
    pub async fn stop(&self) {
        let process = self.process.lock().unwrap().take().expect("it runs");
        process.signal(Signal::TERM);
        process.ended(STOP).await;
    }

    pub fn kill(&self) {
        self.process.lock().unwrap().take().expect("it runs").kill();
    }

    /// Freezes it: connections stay, nothing answers.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        self.process.lock().unwrap().as_ref().expect("it runs").signal(signal);
    }
}

fn client_config(port: u16) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", format!("127.0.0.1:{port}"));
    config.set("allow.auto.create.topics", "false");
    // A test that waits for a broker to come back has no patience for the default of ten seconds.
    config.set("reconnect.backoff.max.ms", "500");
    config
}

fn properties_file(directory: &TempDir) -> PathBuf {
    directory.path().join("server.properties")
}

fn properties(
    node: i32,
    cluster: &Cluster,
    port: u16,
    guarded_port: u16,
    proxied: Proxied,
    directory: &Path,
) -> String {
    let Proxied { port: proxied, proxy } = proxied;
    let (controller, data) = (cluster.controller, directory.join("data"));
    let (roles, controlling) = match node {
        1 => ("broker,controller", format!(",CONTROLLER://127.0.0.1:{controller}")),
        _ => ("broker", String::new()),
    };
    format!(
        "process.roles={roles}
node.id={node}
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},GUARDED://127.0.0.1:{guarded_port},PROXIED://127.0.0.1:{proxied}{controlling}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},GUARDED://127.0.0.1:{guarded_port},PROXIED://127.0.0.1:{proxy}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,GUARDED:SASL_PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT
listener.name.guarded.sasl.enabled.mechanisms=PLAIN
listener.name.guarded.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_app=\"{PASSWORD}\";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
allow.everyone.if.no.acl.found=true
log.dirs={data}
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
offsets.topic.num.partitions={OFFSETS_PARTITIONS}
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
",
        data = data.display()
    )
}

/// A Java program from Kafka's jars.
fn java(jvm: &[&str], arguments: &[&str]) -> Command {
    let (_, version) = POM.split_once("<kafka.version>").unwrap();
    let (version, _) = version.split_once('<').unwrap();
    let jars = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/kafka").join(version).join("lib");
    assert!(
        jars.join(".complete").exists(),
        "Kafka's jars are missing in {}: run `make kafka`",
        jars.display()
    );
    let mut command = Command::new("java");
    command.args(jvm);
    command.arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn");
    command.arg("-cp").arg(jars.join("*")).args(arguments);
    command
}

/// 128 bits in Kafka's base 64, never with the leading dash that its tools take for an option.
fn cluster_id() -> String {
    let letters: String = std::iter::repeat_with(fastrand::alphanumeric).take(21).collect();
    letters + "A"
}
