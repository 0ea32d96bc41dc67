//! Consuming: what a group has handled, it has handled once; what it has not, is neither lost nor passed over.

mod back_pressure;
#[cfg(feature = "failpoints")]
mod crashing;
mod economy;
mod effects;
mod failing;
mod illegible;
mod membership;
mod operations;
mod ordering;
mod orders;
mod poison;
mod standing_still;
mod two_brokers;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use outboxd::config::Config;
use outboxd::consumer::{self, ConsumerError, ConsumerStatus, Drained, GroupContext, GroupStatus, Solitude};
use outboxd::domain::health::Vitals;
use outboxd::pg::Connector;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::{Database, Kafka, Outboxd, Postgres, Proxy, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

/// The other side of an `http` handler: keeps what it was called with, and answers as it is told.
#[derive(Clone, Default)]
struct Receiver {
    calls: Arc<Mutex<Vec<Call>>>,
    /// By payload; 200 for all others.
    answers: Arc<Mutex<HashMap<String, StatusCode>>>,
    /// How long an answer takes.
    takes: Duration,
    /// Payloads that are not answered before they are let go.
    stuck: Arc<Mutex<HashSet<String>>>,
    /// Calls that are not answered yet, by payload.
    running: Arc<Mutex<Vec<String>>>,
    /// Which payloads were ever with it at one moment.
    together: Arc<Mutex<Vec<Vec<String>>>>,
}

#[derive(Clone, Debug)]
struct Call {
    payload: String,
    status: StatusCode,
}

impl Receiver {
    async fn listen(self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let router = Router::new().route("/", post(Self::answer)).with_state(self);
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }

    async fn answer(State(receiver): State<Self>, _: HeaderMap, payload: String) -> StatusCode {
        {
            let mut running = receiver.running.lock().unwrap();
            running.push(payload.clone());
            receiver.together.lock().unwrap().push(running.clone());
        }
        // Not a wait: a handler that takes its time.
        tokio::time::sleep(receiver.takes).await;
        // A handler that hangs until the test lets it go.
        while receiver.stuck.lock().unwrap().contains(&payload) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        receiver.running.lock().unwrap().retain(|other| *other != payload);
        let status = receiver.answers.lock().unwrap().get(&payload).copied().unwrap_or(StatusCode::OK);
        receiver.calls.lock().unwrap().push(Call { payload, status });
        status
    }

    fn tell(&self, payload: &str, status: StatusCode) {
        self.answers.lock().unwrap().insert(payload.to_owned(), status);
    }

    /// How often it said yes, by payload.
    fn handled(&self) -> HashMap<String, usize> {
        let mut handled = HashMap::new();
        for call in self.calls.lock().unwrap().iter().filter(|call| call.status.is_success()) {
            *handled.entry(call.payload.clone()).or_default() += 1;
        }
        handled
    }

    /// In the order in which they were answered.
    fn answered(&self) -> Vec<String> {
        self.calls.lock().unwrap().iter().map(|call| call.payload.clone()).collect()
    }

    fn tried(&self, payload: &str) -> usize {
        self.calls.lock().unwrap().iter().filter(|call| call.payload == payload).count()
    }
}

/// A group of this test, in this process.
struct Consumer {
    status: Arc<GroupStatus>,
    drain: CancellationToken,
    abort: CancellationToken,
    task: JoinHandle<Result<Drained, ConsumerError>>,
}

impl Consumer {
    fn start(url: &str, kafka: &Kafka, group: &str, settings: &str) -> Self {
        Self::start_watched(url, kafka, group, settings, consumer::PATIENCE)
    }

    /// Told to stand still after that time.
    fn start_watched(url: &str, kafka: &Kafka, group: &str, settings: &str, patience: Duration) -> Self {
        Self::start_at(url, &kafka.brokers(), group, settings, patience)
    }

    fn start_at(url: &str, brokers: &str, group: &str, settings: &str, patience: Duration) -> Self {
        let text = format!(
            "[postgres]\nurl = \"{url}\"\n[kafka]\nbrokers = \"{brokers}\"\n[groups.{group}]\n{settings}\n"
        );
        let mut config = Config::parse(&text, None, []).unwrap().config;
        let (drain, abort) = (CancellationToken::new(), CancellationToken::new());
        let status = Arc::new(GroupStatus::new(group, Arc::default()));
        let agent_name = format!("test-{:08x}", fastrand::u32(..));
        let group_config = config.groups.remove(group).unwrap();
        let context = GroupContext {
            name: group.to_owned(),
            handler: consumer::handler::prepare(&group_config.handler).unwrap(),
            config: outboxd::consumer::Live::new(group_config),
            connector: Connector::new(&config.postgres, format!("outboxd/consumer/{agent_name}")),
            kafka: config.kafka,
            agent: Uuid::new_v4(),
            agent_name,
            status: Arc::clone(&status),
            solitude: Solitude::default(),
            patience,
        };
        let task = tokio::spawn(consumer::run(context, drain.clone(), abort.clone()));
        Self { status, drain, abort, task }
    }

    fn number(&self, name: &str) -> u64 {
        ConsumerStatus(vec![Arc::clone(&self.status)]).health()[name].as_u64().unwrap()
    }

    async fn assigned(&self, at_least: u64) {
        eventually("partitions are assigned", PATIENCE, async || {
            self.number("assigned_partitions") >= at_least
        })
        .await;
    }

    async fn drained(self) {
        self.drain.cancel();
        let drained =
            tokio::time::timeout(PATIENCE, self.task).await.expect("it drains in time").unwrap().unwrap();
        assert_eq!(drained.left, Vec::<String>::new());
    }

    /// As a crash would, but for what is sent already.
    async fn aborted(self) {
        self.abort.cancel();
        let _ = self.task.await;
    }
}

/// A name that no other test uses with the broker that they share.
fn unique(name: &str) -> String {
    format!("{name}-{:08x}", fastrand::u32(..))
}

fn posting(topics: &[&str], url: &str) -> String {
    format!(
        "topics = {topics:?}\nhandler = {{ kind = \"http\", url = \"{url}\", timeout = \"60s\" }}\n\
         retry = {{ inline_attempts = 1000, max_attempts = 1000, backoff = \"50ms\", max_backoff = \"200ms\" }}"
    )
}

/// So that the proxy can read what passes.
fn without_tls(proxy: &Proxy, database: &Database) -> String {
    format!("{}?sslmode=disable", proxy.reroute(&database.url))
}

async fn evidence(database: &Database) -> i64 {
    database.count("select count(*) from outboxd.handled").await
}

#[tokio::test]
async fn what_has_evidence_is_not_handled_again() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let topic = kafka.topic(2).await;
    let receiver = Receiver::default();
    let url = receiver.clone().listen().await;
    let group = unique("orders");
    for n in 0..20 {
        kafka.produce(&topic, Some(&format!("k{n}")), Some(format!("m{n}").as_bytes()), &[]).await;
    }
    let consumer = Consumer::start(&database.agent_url(), kafka, &group, &posting(&[&topic], &url));
    eventually("all are handled", PATIENCE, async || evidence(&database).await == 20).await;
    consumer.drained().await;
    assert_eq!(receiver.handled().len(), 20);
    // A database whose positions went back reads the log again, and the evidence holds.
    database.execute("update outboxd.group_positions set next_offset = 0", &[]).await;
    let again = Consumer::start(&database.agent_url(), kafka, &group, &posting(&[&topic], &url));
    eventually("all are skipped", PATIENCE, async || again.number("duplicates") == 20).await;
    again.drained().await;
    assert!(receiver.handled().values().all(|times| *times == 1));
    let position = "select sum(next_offset)::bigint from outboxd.group_positions";
    assert_eq!(database.count(position).await, 20, "positions rise again");
}

#[tokio::test]
async fn a_message_tried_in_place_holds_its_partition_and_no_other() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let topic = kafka.topic(8).await;
    let receiver = Receiver::default();
    let url = receiver.clone().listen().await;
    let bad = kafka.produce(&topic, Some("bad"), Some(b"bad"), &[]).await;
    receiver.tell("bad", StatusCode::INTERNAL_SERVER_ERROR);
    let mut behind = Vec::new();
    for n in 0..40 {
        let payload = format!("m{n}");
        let at = kafka.produce(&topic, Some(&payload), Some(payload.as_bytes()), &[]).await;
        if at.0 == bad.0 {
            behind.push(payload);
        }
    }
    assert!(!behind.is_empty() && behind.len() < 40);
    let settings = format!("ordering = \"partition\"\n{}", posting(&[&topic], &url));
    let consumer = Consumer::start(&database.agent_url(), kafka, &unique("orders"), &settings);
    let others = 40 - behind.len();
    eventually("the others are handled", PATIENCE, async || receiver.handled().len() == others).await;
    eventually("it is tried again", PATIENCE, async || receiver.tried("bad") >= 3).await;
    assert!(
        behind.iter().all(|payload| receiver.tried(payload) == 0),
        "nothing overtakes it in its partition"
    );
    assert!(consumer.number("failed") >= 3);
    receiver.tell("bad", StatusCode::OK);
    eventually("all are handled", PATIENCE, async || evidence(&database).await == 41).await;
    consumer.drained().await;
    assert!(receiver.handled().values().all(|times| *times == 1));
}

#[tokio::test]
async fn one_idempotency_key_over_two_consumers_is_handled_once() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let topic = kafka.topic(8).await;
    let receiver = Receiver { takes: Duration::from_millis(100), ..Receiver::default() };
    let url = receiver.clone().listen().await;
    let group = unique("orders");
    let settings = posting(&[&topic], &url);
    let consumers = [
        Consumer::start(&database.agent_url(), kafka, &group, &settings),
        Consumer::start(&database.agent_url(), kafka, &group, &settings),
    ];
    for consumer in &consumers {
        consumer.assigned(1).await;
    }
    for n in 0..40 {
        let (key, payload) = (format!("k{n}"), format!("order {}", n % 2));
        let headers = [("idempotency-key", if n % 2 == 0 { "order-0" } else { "order-1" })];
        kafka.produce(&topic, Some(&key), Some(payload.as_bytes()), &headers).await;
    }
    let other = [("idempotency-key", "order-0")];
    kafka.produce(&topic, Some("k"), Some(b"another payload"), &other).await;
    eventually("all have evidence", PATIENCE, async || evidence(&database).await == 41).await;
    let handled: usize = receiver.handled().values().sum();
    assert_eq!(handled, 2, "{:?}", receiver.handled());
    let named = "select count(distinct duplicate_of) from outboxd.handled where duplicate_of in \
                 (select message_id from outboxd.handled where duplicate_of is null)";
    assert_eq!(database.count(named).await, 2, "each duplicate names the message that did its operation");
    assert_eq!(database.count("select count(*) from outboxd.idempotency_keys where state = 'done'").await, 2);
    for consumer in consumers {
        consumer.drained().await;
    }
}

#[tokio::test]
async fn without_the_database_nothing_is_handled_and_afterwards_everything() {
    let (kafka, postgres) = (Kafka::shared().await, Postgres::shared().await);
    let (database, proxy) = (postgres.database().await, Proxy::to(postgres.port()).await);
    let topic = kafka.topic(2).await;
    let receiver = Receiver::default();
    let url = receiver.clone().listen().await;
    let consumer = Consumer::start(
        &proxy.reroute(&database.agent_url()),
        kafka,
        &unique("orders"),
        &posting(&[&topic], &url),
    );
    kafka.produce(&topic, Some("first"), Some(b"first"), &[]).await;
    eventually("the first is handled", PATIENCE, async || evidence(&database).await == 1).await;
    proxy.refuse();
    proxy.cut();
    for n in 0..20 {
        kafka.produce(&topic, Some(&format!("k{n}")), Some(format!("m{n}").as_bytes()), &[]).await;
    }
    let vitals = ConsumerStatus(vec![Arc::clone(&consumer.status)]);
    eventually("it says what it waits for", PATIENCE, async || {
        vitals.waiting_for().is_some_and(|what| what.contains("PostgreSQL"))
    })
    .await;
    assert_eq!(receiver.handled().len(), 1, "no answer is not `never seen`");
    proxy.heal();
    eventually("all are handled", PATIENCE, async || evidence(&database).await == 21).await;
    eventually("nothing is waited for", PATIENCE, async || vitals.waiting_for().is_none()).await;
    consumer.drained().await;
    assert!(receiver.handled().values().all(|times| *times == 1));
}

#[tokio::test]
async fn an_effect_in_sql_happens_once_though_the_answer_to_its_commit_is_lost() {
    let (kafka, postgres) = (Kafka::shared().await, Postgres::shared().await);
    let (database, proxy) = (postgres.database().await, Proxy::to(postgres.port()).await);
    let topic = kafka.topic(1).await;
    database
        .batch(
            "create table effects (payload text, message_id uuid);
             create function on_order(d outboxd.delivery) returns void language plpgsql as $$
             begin
               insert into effects values (convert_from(d.payload, 'UTF8'), d.id);
               if convert_from(d.payload, 'UTF8') = 'bad' and d.attempt < 3 then
                 raise exception 'not yet';
               end if;
             end $$",
        )
        .await;
    let settings = format!(
        "topics = [\"{topic}\"]\nordering = \"partition\"\n\
         handler = {{ kind = \"sql\", function = \"on_order\", timeout = \"5s\" }}\n\
         retry = {{ inline_attempts = 10, backoff = \"20ms\", max_backoff = \"50ms\" }}"
    );
    let consumer = Consumer::start(&without_tls(&proxy, &database), kafka, &unique("orders"), &settings);
    consumer.assigned(1).await;
    let lost = proxy.lose_answer_to("COMMIT");
    for payload in ["a", "b", "bad", "c"] {
        kafka.produce(&topic, Some(payload), Some(payload.as_bytes()), &[]).await;
    }
    tokio::time::timeout(PATIENCE, lost).await.expect("an answer was lost");
    eventually("all are handled", PATIENCE, async || evidence(&database).await == 4).await;
    eventually("all are counted", PATIENCE, async || consumer.number("processed") == 4).await;
    let effects = database.query("select payload from effects order by ctid", &[]).await;
    let effects: Vec<String> = effects.iter().map(|row| row.get(0)).collect();
    assert_eq!(effects, ["a", "b", "bad", "c"], "each once, in order, and none of a try that failed");
    eventually("the position follows", PATIENCE, async || {
        database.count("select next_offset from outboxd.group_positions").await == 4
    })
    .await;
    consumer.drained().await;
}

#[tokio::test]
async fn an_operation_whose_evidence_has_gone_is_not_waited_for() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    database
        .batch(
            "create function on_order(d outboxd.delivery) returns void language sql as $$ select $$;
             grant execute on function on_order to outboxd_agent",
        )
        .await;
    let (topic, group) = (kafka.topic(1).await, unique("orders"));
    let settings = format!("topics = [\"{topic}\"]\nhandler = {{ kind = \"sql\", function = \"on_order\" }}");
    kafka.produce(&topic, None, Some(b"a"), &[("idempotency-key", "order-1")]).await;
    let first = Consumer::start(&database.agent_url(), kafka, &group, &settings);
    eventually("it is handled", PATIENCE, async || evidence(&database).await == 1).await;
    first.drained().await;
    database.batch("delete from outboxd.handled; update outboxd.group_positions set next_offset = 0").await;
    let second = Consumer::start(&database.agent_url(), kafka, &group, &settings);
    eventually("it is a duplicate", PATIENCE, async || second.number("duplicates") == 1).await;
    second.drained().await;
}

#[tokio::test]
async fn members_that_come_and_go_lose_and_repeat_nothing() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let topic = kafka.topic(6).await;
    let receiver = Receiver { takes: Duration::from_millis(2), ..Receiver::default() };
    let url = receiver.clone().listen().await;
    let group = unique("orders");
    let settings = posting(&[&topic], &url);
    let stays = Consumer::start(&database.agent_url(), kafka, &group, &settings);
    stays.assigned(6).await;
    let over = CancellationToken::new();
    let feed = tokio::spawn({
        let over = over.clone();
        async move {
            let mut written = 0;
            while !over.is_cancelled() {
                let (key, payload) = (format!("k{written}"), format!("m{written}"));
                kafka.produce(&topic, Some(&key), Some(payload.as_bytes()), &[]).await;
                written += 1;
            }
            written
        }
    });
    for _ in 0..2 {
        let comes = Consumer::start(&database.agent_url(), kafka, &group, &settings);
        comes.assigned(3).await;
        eventually("it works", PATIENCE, async || comes.number("processed") > 20).await;
        comes.drained().await;
        stays.assigned(6).await;
    }
    over.cancel();
    let written: i64 = feed.await.unwrap();
    eventually("all are handled", PATIENCE, async || evidence(&database).await == written).await;
    stays.drained().await;
    let handled = receiver.handled();
    assert_eq!(i64::try_from(handled.len()).unwrap(), written);
    assert!(
        handled.values().all(|times| *times == 1),
        "a drain and a revocation finish what they have begun"
    );
}

#[tokio::test]
async fn what_a_member_was_doing_when_it_died_is_done_by_another() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let topic = kafka.topic(1).await;
    let receiver = Receiver::default();
    receiver.stuck.lock().unwrap().extend(["a".to_owned(), "b".to_owned()]);
    let url = receiver.clone().listen().await;
    let group = unique("orders");
    let settings = posting(&[&topic], &url);
    let dies = Consumer::start(&database.agent_url(), kafka, &group, &settings);
    kafka.produce(&topic, None, Some(b"a"), &[]).await;
    kafka.produce(&topic, None, Some(b"b"), &[]).await;
    eventually("it is at work", PATIENCE, async || dies.number("in_flight") == 2).await;
    dies.aborted().await;
    receiver.stuck.lock().unwrap().clear();
    let lives = Consumer::start(&database.agent_url(), kafka, &group, &settings);
    eventually("both are handled", PATIENCE, async || evidence(&database).await == 2).await;
    lives.drained().await;
}

#[tokio::test]
async fn a_topic_that_is_missing_is_waited_for_while_others_go_on() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let (there, missing) = (kafka.topic(1).await, unique("missing"));
    let receiver = Receiver::default();
    let url = receiver.clone().listen().await;
    let settings = format!("start = \"latest\"\n{}", posting(&[&there, &missing], &url));
    let consumer = Consumer::start(&database.agent_url(), kafka, &unique("orders"), &settings);
    consumer.assigned(1).await;
    kafka.produce(&there, None, Some(b"there"), &[]).await;
    eventually("the topic that is there is read", PATIENCE, async || evidence(&database).await == 1).await;
    kafka.create_topic(&missing, 2, &[]).await;
    kafka.produce(&missing, None, Some(b"appeared"), &[]).await;
    eventually("the topic that appeared is read from its beginning", PATIENCE, async || {
        receiver.handled().contains_key("appeared")
    })
    .await;
    consumer.drained().await;
}

#[tokio::test]
async fn a_topic_made_anew_is_read_from_its_beginning_however_long_it_is() {
    for (stopped, count) in [(false, 3), (false, 15), (true, 15)] {
        let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
        let topic = kafka.topic(1).await;
        let receiver = Receiver::default();
        let (url, group) = (receiver.clone().listen().await, unique("orders"));
        let start = || Consumer::start(&database.agent_url(), kafka, &group, &posting(&[&topic], &url));
        let mut consumer = Some(start());
        for n in 0..10 {
            kafka.produce(&topic, None, Some(format!("old {n}").as_bytes()), &[]).await;
        }
        eventually("the old ones are handled", PATIENCE, async || evidence(&database).await == 10).await;
        if stopped {
            consumer.take().unwrap().drained().await;
        }
        kafka.delete_topic(&topic).await;
        kafka.create_topic(&topic, 1, &[]).await;
        for n in 0..count {
            kafka.produce(&topic, None, Some(format!("new {n}").as_bytes()), &[]).await;
        }
        let consumer = consumer.unwrap_or_else(start);
        eventually("the new ones are handled", PATIENCE, async || evidence(&database).await == 10 + count)
            .await;
        let position = "select next_offset from outboxd.group_positions";
        eventually("its position is of the new one", PATIENCE, async || {
            database.count(position).await == count
        })
        .await;
        consumer.drained().await;
    }
}

#[tokio::test]
async fn a_partition_that_appears_later_is_read_from_its_beginning() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let topic = kafka.topic(1).await;
    let receiver = Receiver::default();
    let url = receiver.clone().listen().await;
    let settings = format!(
        "start = \"latest\"\n{}\n[kafka.consumer]\n\"topic.metadata.refresh.interval.ms\" = 500",
        posting(&[&topic], &url)
    );
    let consumer = Consumer::start(&database.agent_url(), kafka, &unique("orders"), &settings);
    consumer.assigned(1).await;
    kafka.add_partitions(&topic, 3).await;
    // Most of them before the group knows of the partition.
    for n in 0..30 {
        kafka.produce(&topic, Some(&format!("k{n}")), Some(format!("m{n}").as_bytes()), &[]).await;
    }
    eventually("all are handled", PATIENCE, async || evidence(&database).await == 30).await;
    let partitions = "select count(*) from outboxd.group_positions where topic_id is not null";
    assert_eq!(database.count(partitions).await, 3);
    consumer.drained().await;
}

#[tokio::test]
async fn records_that_went_by_retention_are_passed_over_aloud() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let (topic, group) = (kafka.topic(1).await, unique("orders"));
    let outboxd = Outboxd::new(&database, kafka).group(&group, &topic, "kind = \"log\"");
    let first = outboxd.consumer(&[&group]);
    for n in 0..3 {
        kafka.produce(&topic, None, Some(format!("handled {n}").as_bytes()), &[]).await;
    }
    eventually("the first ones are handled", PATIENCE, async || evidence(&database).await == 3).await;
    first.terminate();
    assert_eq!(first.wait_exit().await, Some(0));
    for n in 0..5 {
        kafka.produce(&topic, None, Some(format!("gone {n}").as_bytes()), &[]).await;
    }
    kafka.delete_records(&topic, 0, 8).await;
    kafka.produce(&topic, None, Some(b"left"), &[]).await;
    let second = outboxd.consumer(&[&group]);
    second.wait_for_line("offset 3 is not in the log").await;
    eventually("what is left is handled", PATIENCE, async || evidence(&database).await == 4).await;
}

#[tokio::test]
async fn a_group_begins_where_it_was_told_once_in_its_life() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let topic = kafka.topic(1).await;
    let receiver = Receiver::default();
    let url = receiver.clone().listen().await;
    let group = unique("orders");
    let settings = format!("start = \"latest\"\n{}", posting(&[&topic], &url));
    kafka.produce(&topic, None, Some(b"before"), &[]).await;
    let first = Consumer::start(&database.agent_url(), kafka, &group, &settings);
    first.assigned(1).await;
    first.drained().await;
    kafka.produce(&topic, None, Some(b"between"), &[]).await;
    let second = Consumer::start(&database.agent_url(), kafka, &group, &settings);
    kafka.produce(&topic, None, Some(b"after"), &[]).await;
    eventually("what came later is handled", PATIENCE, async || evidence(&database).await == 2).await;
    second.drained().await;
    assert!(!receiver.handled().contains_key("before"));
}

#[tokio::test]
async fn what_only_the_operator_can_mend_ends_the_group_and_says_why() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let topic = kafka.topic(1).await;
    let (first, second) = (unique("orders"), unique("invoices"));
    let log = format!("topics = [\"{topic}\"]\nhandler = {{ kind = \"log\" }}");
    let owner = Consumer::start(&database.agent_url(), kafka, &first, &log);
    owner.assigned(1).await;
    let taken =
        Consumer::start(&database.agent_url(), kafka, &second, &format!("kafka_group = \"{first}\"\n{log}"));
    let reason = taken.task.await.unwrap().unwrap_err().to_string();
    assert!(reason.contains(&first) && reason.contains("two groups cannot share"), "{reason}");
    let function =
        format!("topics = [\"{topic}\"]\nhandler = {{ kind = \"sql\", function = \"app.nowhere\" }}");
    let missing = Consumer::start(&database.agent_url(), kafka, &second, &function);
    let reason = missing.task.await.unwrap().unwrap_err().to_string();
    assert!(reason.contains("app.nowhere(outboxd.delivery)"), "{reason}");
    owner.drained().await;
}

#[tokio::test]
async fn a_member_frozen_past_its_session_does_no_harm_when_it_thaws() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let topic = kafka.topic(4).await;
    let receiver = Receiver { takes: Duration::from_millis(100), ..Receiver::default() };
    let url = receiver.clone().listen().await;
    let group = unique("orders");
    let outboxd = Outboxd::new(&database, kafka)
        .set("kafka.consumer.\"session.timeout.ms\" = \"6000\"")
        .group(&group, &topic, &format!("kind = \"http\"\nurl = \"{url}\""));
    for n in 0..80 {
        kafka.produce(&topic, Some(&format!("k{n}")), Some(format!("m{n}").as_bytes()), &[]).await;
    }
    let frozen = outboxd.consumer(&[&group]);
    eventually("it is at work", PATIENCE, async || evidence(&database).await > 0).await;
    frozen.pause();
    let other = outboxd.consumer(&[&group]);
    eventually("the other has done it all", PATIENCE, async || evidence(&database).await == 80).await;
    frozen.resume();
    frozen.wait_for_line("lost to another member").await;
    kafka.produce(&topic, Some("k"), Some(b"later"), &[]).await;
    eventually("work goes on", PATIENCE, async || evidence(&database).await == 81).await;
    for daemon in [frozen, other] {
        daemon.terminate();
        assert_eq!(daemon.wait_exit().await, Some(0));
    }
    let repeated = receiver.handled().values().filter(|times| **times > 1).count();
    assert!(repeated <= 32, "only what was under way or not recorded when it froze: {repeated}");
}
