//! Retrying: what a group failed to handle is tried again by an agent that is named for it, and ends once.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use outboxd::domain::dispatch;
use uuid::Uuid;

use crate::support::{Daemon, Database, Kafka, Outboxd, Postgres, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

/// A handler of the test's own: whom it was called by, with what.
#[derive(Clone)]
struct Handler {
    calls: Arc<Mutex<Vec<Call>>>,
    status: StatusCode,
    takes: Duration,
}

#[derive(Clone, Debug)]
struct Call {
    id: String,
    payload: Vec<u8>,
    headers: HeaderMap,
}

impl Handler {
    fn answering(status: StatusCode) -> Self {
        Self { calls: Arc::default(), status, takes: Duration::ZERO }
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
        handler.calls.lock().unwrap().push(Call { id, payload: payload.to_vec(), headers });
        // Not a wait: a handler that takes its time.
        tokio::time::sleep(handler.takes).await;
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
struct Scene {
    kafka: &'static Kafka,
    database: Database,
    topic: String,
    group: String,
}

impl Scene {
    async fn new() -> Self {
        let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
        let group = format!("retrying-{:08x}", fastrand::u32(..));
        Self { kafka, topic: kafka.topic(1).await, database, group }
    }

    fn outboxd(&self) -> Outboxd {
        Outboxd::new(&self.database, self.kafka)
    }

    fn consumer(&self, url: &str, settings: &[&str]) -> Daemon {
        let handler = format!("kind = \"http\"\nurl = \"{url}\"");
        let outboxd = self.outboxd().group(&self.group, &self.topic, &handler);
        let settings = settings.iter().map(|line| format!("groups.{}.{line}", self.group));
        settings.fold(outboxd, |outboxd, line| outboxd.set(&line)).consumer(&[&self.group])
    }

    /// The agents that take retries now.
    async fn takers(&self) -> i64 {
        let seen = "select count(*) from outboxd.members where takes_retries and seen_at > now() - interval '3 s'";
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

    async fn failures(&self) -> i64 {
        self.database.count("select count(*) from outboxd.failures").await
    }

    async fn handled(&self) -> i64 {
        self.database.count("select count(*) from outboxd.handled").await
    }
}

#[tokio::test]
async fn a_failure_is_given_to_the_other_agent_through_the_outbox() {
    let scene = Scene::new().await;
    let handlers = [Handler::answering(StatusCode::OK), Handler::answering(StatusCode::OK)];
    let _consumers = [
        scene.consumer(&handlers[0].listen().await, &[]),
        scene.consumer(&handlers[1].listen().await, &[]),
    ];
    let _producer = scene.outboxd().producer();
    scene.takers_are(2).await;
    let agents = "select agent_id from outboxd.members order by agent_id limit 1";
    let last: Uuid = scene.database.query_one(agents, &[]).await.get(0);
    let id = scene.failure(b"again", Some(last)).await;
    eventually("it is done with", PATIENCE, async || scene.failures().await == 0).await;

    let evidence = "
        select h.message_id, h.attempt, m.agent_id from outboxd.handled h join outboxd.members m on m.agent = h.agent";
    let evidence = scene.database.query_one(evidence, &[]).await;
    assert_eq!((evidence.get::<_, Uuid>(0), evidence.get::<_, i32>(1)), (id, 2));
    assert_ne!(evidence.get::<_, Uuid>(2), last, "not the one that failed while another lives");
    let calls: Vec<Call> = handlers.iter().flat_map(Handler::calls).collect();
    assert_eq!(calls.len(), 1);
    assert_eq!((calls[0].id.as_str(), calls[0].payload.as_slice()), (id.to_string().as_str(), &b"again"[..]));
    let records = scene.kafka.read_all(&dispatch::topic(&scene.group)).await;
    assert_eq!(records.len(), 1);
    let header = |name: &str| records[0].header(&format!("outboxd-retry-{name}")).unwrap();
    assert_eq!(header("target"), evidence.get::<_, Uuid>(2).to_string());
    assert_eq!((header("original-id"), header("group")), (id.to_string(), scene.group.clone()));
    assert_eq!((header("attempt"), header("dispatch"), header("deadline")), ("2".into(), "1".into(), "60000".into()));
    assert_eq!(records[0].payload, None, "the message itself stays in the database");
}
