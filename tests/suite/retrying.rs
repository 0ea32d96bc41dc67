//! Retrying: what a group failed to handle is tried again by an agent that is named for it, and ends once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use outboxd::domain::dispatch;
use uuid::Uuid;

mod copies;
mod deadly;
mod deciding;
mod ends;
mod faults;
mod held;
mod undeliverable;

use crate::support::{Daemon, Database, Kafka, Outboxd, Postgres, eventually, until_none_is_left};

const PATIENCE: Duration = Duration::from_secs(60);

/// A handler of the test's own: whom it was called by, with what.
#[derive(Clone)]
struct Handler {
    calls: Arc<Mutex<Vec<Call>>>,
    status: StatusCode,
    takes: Duration,
    /// Nothing is answered before it is let go.
    stuck: Arc<AtomicBool>,
}

#[derive(Clone, Debug)]
struct Call {
    id: String,
    payload: Vec<u8>,
}

impl Handler {
    fn answering(status: StatusCode) -> Self {
        Self { calls: Arc::default(), status, takes: Duration::ZERO, stuck: Arc::default() }
    }

    fn taking(takes: Duration) -> Self {
        Self { takes, ..Self::answering(StatusCode::OK) }
    }

    fn stuck() -> Self {
        Self { stuck: Arc::new(AtomicBool::new(true)), ..Self::answering(StatusCode::OK) }
    }

    fn let_go(&self) {
        self.stuck.store(false, Ordering::Relaxed);
    }

    async fn listen(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let router = Router::new().route("/", post(Self::answer)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }

    async fn answer(State(handler): State<Self>, headers: HeaderMap, payload: Bytes) -> StatusCode {
        let id = headers["ce-id"].to_str().unwrap().to_owned();
        handler.calls.lock().unwrap().push(Call { id, payload: payload.to_vec() });
        // Not a wait: a handler that takes its time.
        tokio::time::sleep(handler.takes).await;
        // A handler that hangs until the test lets it go.
        while handler.stuck.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        handler.status
    }

    fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    fn count(&self) -> usize {
        self.calls.lock().unwrap().len()
    }
}

/// A group with a topic of its own, in a database of its own.
struct Scene<'a> {
    kafka: &'a Kafka,
    database: Database,
    topic: String,
    group: String,
}

impl Scene<'static> {
    async fn new() -> Self {
        Self::at(Kafka::shared().await).await
    }
}

impl<'a> Scene<'a> {
    async fn at(kafka: &'a Kafka) -> Self {
        let database = Postgres::shared().await.database().await;
        let group = format!("retrying-{:08x}", fastrand::u32(..));
        Self { kafka, topic: kafka.topic(1).await, database, group }
    }

    fn outboxd(&self) -> Outboxd {
        Outboxd::new(&self.database, self.kafka)
    }

    /// With a group of that handler, and with settings of the group.
    fn with(&self, outboxd: Outboxd, handler: &str, settings: &[&str]) -> Outboxd {
        let outboxd = outboxd.group(&self.group, &self.topic, handler);
        let settings = settings.iter().map(|line| format!("groups.{}.{line}", self.group));
        settings.fold(outboxd, |outboxd, line| outboxd.set(&line))
    }

    /// An agent of that name.
    async fn consumer(&self, name: &str, handler: &Handler, settings: &[&str]) -> Daemon {
        let posting = format!("kind = \"http\"\nurl = \"{}\"\ntimeout = \"5m\"", handler.listen().await);
        let outboxd = self.outboxd().set(&format!("agent.name = \"{name}\""));
        self.with(outboxd, &posting, settings).consumer(&[&self.group])
    }

    /// Whose job gives the retries out, by these settings of the group.
    fn producer(&self, settings: &[&str]) -> Daemon {
        self.with(self.outboxd(), "kind = \"log\"", settings).producer()
    }

    /// `a` and `b`, which take retries, and who gives these out.
    async fn two_agents(&self, [a, b]: &[Handler; 2]) -> [Daemon; 3] {
        let daemons =
            [self.consumer("a", a, &[]).await, self.consumer("b", b, &[]).await, self.producer(&[])];
        self.takers_are(2).await;
        daemons
    }

    async fn agent(&self, name: &str) -> Uuid {
        self.database
            .query_one("select agent_id from outboxd.members where agent = $1", &[&name])
            .await
            .get(0)
    }

    /// As if the lease or the deadline of all that is out had ended.
    async fn expire(&self) {
        self.database
            .execute("update outboxd.failures set expires_at = now() where expires_at is not null", &[])
            .await;
    }

    /// By whom each message was handled, at which attempt.
    async fn evidence(&self) -> Vec<(Uuid, String, i32)> {
        let rows = self.database.query("select message_id, agent, attempt from outboxd.handled", &[]).await;
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
    }

    /// The agents that take retries now.
    async fn takers(&self) -> i64 {
        let seen =
            "select count(*) from outboxd.members where takes_retries and seen_at > now() - interval '3 s'";
        self.database.count(seen).await
    }

    async fn takers_are(&self, count: i64) {
        eventually("the agents take retries", PATIENCE, async || self.takers().await == count).await;
    }

    /// A message that is due, after that many attempts, the last of them by that agent.
    async fn failure(&self, payload: &[u8], last_agent: Option<Uuid>) -> Uuid {
        let id = Uuid::new_v4();
        self.database
            .execute(
                "insert into outboxd.failures (consumer_group, message_id, state, topic, partition, \"offset\", key, payload,
                   header_names, header_values, attempts, last_agent, error, next_attempt_at)
                 values ($1, $2, 'due', $3, 0, 0, 'k', $4, '{}', '{}', 1, $5, 'no', clock_timestamp())",
                &[&self.group, &id, &self.topic, &payload, &last_agent],
            )
            .await;
        id
    }

    /// Messages without keys, after one attempt each.
    async fn many_are_due(&self, count: i32) {
        self.database
            .execute(
                "insert into outboxd.failures (consumer_group, message_id, state, topic, partition, \"offset\", header_names,
                   header_values, attempts, next_attempt_at)
                 select $1, gen_random_uuid(), 'due', $2, 0, n, '{}', '{}', 1, now() from generate_series(1, $3) n",
                &[&self.group, &self.topic, &count],
            )
            .await;
    }

    /// Until a statement of outboxd with these words waits, or none does any more.
    async fn waits_for_a_lock(&self, words: &str, waits: bool) {
        let waiting = "select exists (select from pg_stat_activity where datname = current_database()
            and wait_event_type = 'Lock' and application_name like 'outboxd/%' and strpos(query, $1) > 0)";
        eventually("it waits for a lock, or does not", PATIENCE, async || {
            self.database.query_one(waiting, &[&words]).await.get::<_, bool>(0) == waits
        })
        .await;
    }

    async fn failures(&self) -> i64 {
        self.database.count("select count(*) from outboxd.failures").await
    }

    async fn all_done(&self) {
        let states = async || {
            let sql = "select state || ' (' || coalesce(reason, '') || ')' from outboxd.failures limit 20";
            let rows = self.database.query(sql, &[]).await;
            rows.iter().map(|row| row.get(0)).collect::<Vec<String>>().join(", ")
        };
        until_none_is_left("done with", PATIENCE, async || Some(self.failures().await), states).await;
    }
}

#[tokio::test]
async fn a_failure_is_given_to_the_other_agent_through_the_outbox() {
    let scene = Scene::new().await;
    let handlers = [Handler::answering(StatusCode::OK), Handler::answering(StatusCode::OK)];
    let _daemons = scene.two_agents(&handlers).await;
    let id = scene.failure(b"again", Some(scene.agent("a").await)).await;
    scene.all_done().await;
    assert_eq!(
        scene.evidence().await,
        [(id, "b".to_owned(), 2)],
        "not the one that failed while another lives"
    );
    assert_eq!(handlers[0].count(), 0);
    let calls = handlers[1].calls();
    assert_eq!(calls.len(), 1);
    assert_eq!((&calls[0].id, calls[0].payload.as_slice()), (&id.to_string(), &b"again"[..]));
    let records = scene.kafka.read_all(&dispatch::topic(&scene.group)).await;
    assert_eq!(records.len(), 1);
    let header = |name: &str| records[0].header(&format!("outboxd-retry-{name}")).unwrap();
    assert_eq!(header("target"), scene.agent("b").await.to_string());
    assert_eq!((header("original-id"), header("group")), (id.to_string(), scene.group.clone()));
    assert_eq!(
        (header("attempt"), header("dispatch"), header("deadline")),
        ("2".into(), "1".into(), "60000".into())
    );
    assert_eq!(records[0].payload, None, "the message itself stays in the database");
    let looks = scene.outboxd();
    let listed = looks.run(&["messages", "list"]).await.stdout;
    assert!(!listed.contains("outboxd.retry."), "what is outboxd's own is in nobody's way: {listed}");
    let listed = looks.run(&["messages", "list", "--topic", &dispatch::topic(&scene.group)]).await.stdout;
    assert!(listed.contains("published"), "{listed}");
}
