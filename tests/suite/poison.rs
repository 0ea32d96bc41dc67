//! P2 and P3 behind what Kafka refuses for good: `hold-key` keeps a key in order around it, `stop` a lane, whatever dies
//! in between, and an operator sets them going again.

use std::time::Duration;

use serde_json::Value;

use crate::support::ledger::Ledger;
use crate::support::{Database, Kafka, Outboxd, Postgres, eventually};

const PATIENCE: Duration = Duration::from_secs(60);
const LEASE: &str = "producer.lease = \"1s\"";

/// What a large message has.
const LARGE: i64 = 40_000;

struct Scene {
    database: Database,
    kafka: &'static Kafka,
    ledger: Ledger,
    topic: String,
}

impl Scene {
    /// A topic of two partitions that refuses what is large.
    async fn new() -> Self {
        let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
        let topic = format!("small-{:x}", fastrand::u64(..));
        kafka.create_topic(&topic, 2, &[("max.message.bytes", "20000")]).await;
        Self { ledger: Ledger::new(&database, &topic), database, kafka, topic }
    }

    fn outboxd(&self, on_poison: &str) -> Outboxd {
        self.leased(LEASE, on_poison)
    }

    fn leased(&self, lease: &str, on_poison: &str) -> Outboxd {
        Outboxd::new(&self.database, self.kafka)
            .set(lease)
            .set(&format!("topics.\"{}\".on_poison = \"{on_poison}\"", self.topic))
    }

    /// As whoever operates it; the answer must be good.
    async fn operate(&self, arguments: &[&str]) -> String {
        let operator = Outboxd::without_kafka(&self.database).postgres_url(&self.database.operator_url());
        let output = operator.run(arguments).await;
        assert_eq!(output.code, 0, "{arguments:?}: {output:?}");
        output.stdout
    }

    async fn take_larger(&self, bytes: i64) {
        self.kafka.configure_topic(&self.topic, "max.message.bytes", &bytes.to_string()).await;
    }

    /// In one transaction and so in one window: good ones of seven keys before and behind each large one of key 3.
    async fn insert(&self, large: &[i64]) {
        let mut client = self.database.connect().await;
        let transaction = client.transaction().await.unwrap();
        let good = "insert into outboxd.messages (topic, key, payload) select $1, 'key-' || i % 7, 'x' from generate_series(1, 140) i";
        // Not compressible, and within librdkafka's own limit: only the broker refuses it.
        let bad = "insert into outboxd.messages (topic, key, payload)
            select $1, 'key-3', substr(decode(string_agg(md5(random()::text), ''), 'hex'), 1, $2::integer)
            from generate_series(1, 6000)";
        for bytes in large {
            transaction.execute(good, &[&self.topic]).await.unwrap();
            transaction.execute(bad, &[&self.topic, &i32::try_from(*bytes).unwrap()]).await.unwrap();
        }
        transaction.execute(good, &[&self.topic]).await.unwrap();
        transaction.commit().await.unwrap();
    }

    async fn reach(&self, state: &str, expected: i64) {
        self.database.reach(&self.topic, state, expected).await;
    }

    /// Everything is published, each key in order, in the topic once at least.
    async fn settle(&self, messages: usize) {
        self.ledger.published(&self.database).await;
        let found = self.ledger.check(&self.database, self.kafka).await;
        assert_eq!((found.messages, found.skips), (messages, 0), "{} repeats", found.repeats);
        let waiting = "select count(*) from outboxd.set_aside where state not in ('discarded', 'replayed')";
        assert_eq!(self.database.count(waiting).await, 0);
    }
}

#[tokio::test]
async fn a_key_waits_behind_what_is_refused_and_the_others_flow() {
    let scene = Scene::new().await;
    scene.insert(&[LARGE]).await;
    // Long enough that a busy machine loses none, and repeats nothing for it.
    let outboxd = || scene.leased("producer.lease = \"8s\"", "hold-key");
    let producer = outboxd().producer();
    scene.reach("parked", 1).await;
    scene.reach("published", 260).await;
    scene.reach("held", 20).await;
    // The next owner knows, and so do messages without a key.
    producer.kill();
    let next = outboxd().producer();
    scene.insert(&[]).await;
    let keyless = "insert into outboxd.messages (topic, payload) values ($1, 'x')";
    scene.database.execute(keyless, &[&scene.topic]).await;
    scene.reach("held", 40).await;
    scene.reach("published", 381).await;
    scene.database.execute("delete from outboxd.messages where key is null", &[]).await;
    // Refused once more, it holds them as before.
    scene.operate(&["retry", "run", "--topic", &scene.topic, "--yes"]).await;
    next.wait_for_line("a message is parked").await;
    scene.reach("parked", 1).await;
    scene.reach("held", 40).await;
    let shown = scene.operate(&["retry", "list", "--json"]).await;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let shown = scene.operate(&["retry", "show", shown[0]["id"].as_str().unwrap()]).await;
    assert!(shown.contains("40 later messages wait behind it"), "{shown}");
    scene.take_larger(100_000).await;
    scene.operate(&["retry", "run", "--topic", &scene.topic, "--yes"]).await;
    scene.ledger.published(&scene.database).await;
    scene.insert(&[]).await;
    scene.ledger.published(&scene.database).await;
    let records = scene.kafka.read_all(&scene.topic).await;
    assert_eq!(records.iter().filter(|record| record.key.is_none()).count(), 1);
    assert_eq!(scene.database.count("select count(*) from outboxd.set_aside").await, 0);
    let place = |large: bool| {
        records
            .iter()
            .position(|record| record.key_text() == "key-3" && (record.payload_text().len() > 1_000) == large)
    };
    assert!(place(true) > place(false));
    producer.kill();
}

#[tokio::test]
async fn a_line_goes_up_to_the_next_that_is_refused() {
    let scene = Scene::new().await;
    scene.insert(&[LARGE, 2 * LARGE]).await;
    let _producer = scene.outboxd("hold-key").producer();
    scene.reach("parked", 1).await;
    scene.reach("held", 41).await;
    scene.take_larger(LARGE + 10_000).await;
    scene.operate(&["retry", "run", "--all", "--yes"]).await;
    scene.reach("held", 20).await;
    scene.reach("parked", 1).await;
    scene.take_larger(1_000_000).await;
    scene.operate(&["retry", "run", "--all", "--yes"]).await;
    scene.settle(422).await;
}

/// A broker that does not know the producer in a partition takes any number as its first: what was under way behind a
/// record that was refused there.
#[tokio::test]
async fn a_key_waits_behind_what_is_refused_first_of_all() {
    let scene = Scene::new().await;
    // From 4.5 on a broker takes only 0 as the first number in an empty partition (KAFKA-15591).
    scene.insert(&[]).await;
    let outboxd = || scene.outboxd("hold-key").set("kafka.producer.\"batch.num.messages\" = 1");
    let earlier = outboxd().producer();
    scene.reach("published", 140).await;
    earlier.terminate();
    assert_eq!(earlier.wait_exit().await, Some(0));
    let refused_first = "insert into outboxd.messages (topic, key, payload)
        select $1, 'key-3', case when i = 0 then large.bytes else 'x' end
        from generate_series(0, 20) i,
          (select decode(string_agg(md5(random()::text), ''), 'hex') bytes from generate_series(1, 2000)) large
        order by i";
    scene.database.execute(refused_first, &[&scene.topic]).await;
    let _producer = outboxd().producer();
    scene.reach("parked", 1).await;
    scene.reach("held", 20).await;
    scene.take_larger(100_000).await;
    scene.operate(&["retry", "run", "--all", "--yes"]).await;
    scene.settle(161).await;
}

#[tokio::test]
async fn what_waits_behind_a_discarded_one_goes() {
    let scene = Scene::new().await;
    scene.insert(&[LARGE, LARGE]).await;
    let producer = scene.outboxd("hold-key").producer();
    scene.reach("held", 41).await;
    scene.operate(&["retry", "discard", "--key", "key-3", "--yes"]).await;
    scene.reach("held", 20).await;
    scene.reach("parked", 1).await;
    // Also while nobody is there to see it.
    producer.kill();
    scene.operate(&["retry", "discard", "--key", "key-3", "--yes"]).await;
    let _next = scene.outboxd("hold-key").producer();
    scene.settle(420).await;
    scene.reach("discarded", 2).await;
}

/// A producer dies at that place while it parks; the next one holds the same messages.
async fn holds_the_same_after_a_crash_at(point: &str) {
    let scene = Scene::new().await;
    let doomed = scene.outboxd("hold-key").failpoint(point).producer();
    doomed.ready().await;
    scene.insert(&[LARGE]).await;
    assert_eq!(doomed.wait_exit().await, None, "{point} was not reached");
    let _next = scene.outboxd("hold-key").producer();
    scene.reach("parked", 1).await;
    scene.reach("held", 20).await;
    scene.reach("published", 260).await;
    scene.take_larger(100_000).await;
    scene.operate(&["retry", "run", "--all", "--yes"]).await;
    scene.settle(281).await;
}

/// A producer dies at that place while it lets a line go; the next one goes on.
async fn lets_the_rest_go_after_a_crash_at(point: &str) {
    let scene = Scene::new().await;
    scene.insert(&[LARGE]).await;
    let doomed = scene.outboxd("hold-key").failpoint(point).producer();
    scene.reach("held", 20).await;
    scene.take_larger(100_000).await;
    scene.operate(&["retry", "run", "--all", "--yes"]).await;
    assert_eq!(doomed.wait_exit().await, None, "{point} was not reached");
    scene.insert(&[]).await;
    let _next = scene.outboxd("hold-key").producer();
    scene.settle(421).await;
}

/// A producer dies at that place while its lane stops; the next one stops there too, and goes on from there.
async fn stops_at_the_same_after_a_crash_at(point: &str) {
    let scene = Scene::new().await;
    let doomed = scene.outboxd("stop").failpoint(point).producer();
    doomed.ready().await;
    scene.insert(&[LARGE]).await;
    assert_eq!(doomed.wait_exit().await, None, "{point} was not reached");
    let _next = scene.outboxd("stop").producer();
    stopped(&scene).await;
    scene.reach("published", 140).await;
    scene.take_larger(100_000).await;
    scene.settle(281).await;
}

/// A producer dies at that place while its lane goes on; the next one goes on too.
async fn goes_on_after_a_crash_at(point: &str) {
    let scene = Scene::new().await;
    scene.insert(&[LARGE]).await;
    let doomed = scene.outboxd("stop").failpoint(point).producer();
    stopped(&scene).await;
    scene.take_larger(100_000).await;
    assert_eq!(doomed.wait_exit().await, None, "{point} was not reached");
    let _next = scene.outboxd("stop").producer();
    scene.settle(281).await;
}

macro_rules! crashes {
    ($($what:ident: $($name:ident at $point:literal),*;)*) => {
        $($(#[tokio::test]
        async fn $name() {
            $what($point).await;
        })*)*
    };
}

crashes! {
    holds_the_same_after_a_crash_at:
        a_crash_before_it_is_parked at "relay-before-park",
        a_crash_after_it_is_parked at "relay-after-park";
    stops_at_the_same_after_a_crash_at:
        a_crash_before_the_lane_stops at "relay-before-park",
        a_crash_after_the_lane_is_stopped at "relay-after-park";
    goes_on_after_a_crash_at:
        a_crash_after_what_stopped_it_is_taken at "relay-before-forget",
        a_crash_after_what_stopped_it_is_forgotten at "relay-after-forget";
    lets_the_rest_go_after_a_crash_at:
        a_crash_after_a_line_is_sent at "relay-before-forget",
        a_crash_after_a_line_is_forgotten at "relay-after-forget";
}

/// What the lane is stopped by, once it is.
async fn stopped(scene: &Scene) -> String {
    let stopped =
        "select count(*) from outboxd.lane_status where name = 'normal' and stopped_at_seq is not null";
    eventually("the lane stops", PATIENCE, async || scene.database.count(stopped).await == 1).await;
    scene.operate(&["lanes", "list"]).await
}

#[tokio::test]
async fn a_lane_stops_at_what_is_refused_and_goes_on_when_the_topic_takes_it() {
    let scene = Scene::new().await;
    scene.insert(&[LARGE]).await;
    let producer = scene.outboxd("stop").producer();
    let listed = stopped(&scene).await;
    assert!(listed.contains("stopped") && listed.contains("too large"), "{listed}");
    scene.reach("published", 140).await;
    eventually("it is said", PATIENCE, async || {
        let (status, body) = producer.get("/readyz").await.unwrap();
        status == 503 && body.contains("the normal lane stops at message 141")
    })
    .await;
    // Other lanes go on; this one stands still for the next owner too.
    producer.kill();
    let _next = scene.outboxd("stop").producer();
    let high = "insert into outboxd.messages (topic, key, payload, priority) values ($1, 'high', 'x', 1)";
    scene.database.execute(high, &[&scene.topic]).await;
    scene.insert(&[]).await;
    scene.reach("published", 141).await;
    assert_eq!(scene.database.in_state(&scene.topic, "pending").await, 280);
    scene.take_larger(100_000).await;
    scene.settle(422).await;
}

#[tokio::test]
async fn a_stopped_lane_goes_on_behind_what_is_discarded() {
    let scene = Scene::new().await;
    scene.insert(&[LARGE, LARGE]).await;
    let _producer = scene.outboxd("stop").producer();
    stopped(&scene).await;
    scene.operate(&["retry", "discard", "--all", "--yes"]).await;
    scene.reach("published", 280).await;
    stopped(&scene).await;
    scene.take_larger(100_000).await;
    scene.operate(&["retry", "run", "--all", "--yes"]).await;
    scene.settle(421).await;
}

#[tokio::test]
async fn a_stopped_lane_goes_on_under_another_policy() {
    let scene = Scene::new().await;
    scene.insert(&[LARGE]).await;
    let producer = scene.outboxd("stop").producer();
    stopped(&scene).await;
    producer.terminate();
    assert_eq!(producer.wait_exit().await, Some(0));
    let next = scene.outboxd("hold-key").producer();
    scene.reach("published", 260).await;
    scene.reach("held", 20).await;
    next.kill();
    scene.take_larger(100_000).await;
    scene.operate(&["retry", "run", "--all", "--yes"]).await;
    let _last = scene.outboxd("park").producer();
    scene.settle(281).await;
}

#[tokio::test]
async fn a_key_that_waits_for_its_topic_waits_behind_what_is_refused_too() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = format!("late-{:x}", fastrand::u64(..));
    let scene = Scene { ledger: Ledger::new(&database, &topic), database, kafka, topic };
    let _producer = scene.outboxd("hold-key").producer();
    scene.insert(&[LARGE]).await;
    scene.reach("held", 281).await;
    kafka.create_topic(&scene.topic, 2, &[("max.message.bytes", "20000")]).await;
    scene.reach("parked", 1).await;
    scene.reach("held", 20).await;
    scene.insert(&[]).await;
    scene.reach("held", 40).await;
    scene.take_larger(100_000).await;
    scene.operate(&["retry", "run", "--all", "--yes"]).await;
    scene.settle(421).await;
}
