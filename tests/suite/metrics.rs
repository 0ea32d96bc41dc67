//! `/metrics`: every name is told by running daemons, counts what happened, and what concerns the whole database is told once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use outboxd::telemetry::metrics::ALL;
use serde_json::Value;

use crate::support::{Daemon, Kafka, Outboxd, Postgres, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

/// Series with their labels, as they are written.
async fn scrape(daemon: &Daemon) -> BTreeMap<String, f64> {
    let (status, body) = daemon.get("/metrics").await.expect("it answers");
    assert_eq!(status, 200);
    let samples = body.lines().filter(|line| !line.starts_with('#'));
    let sample =
        |line: &str| line.rsplit_once(' ').map(|(name, value)| (name.to_owned(), value.parse().unwrap()));
    samples.filter_map(sample).collect()
}

/// Waits until a daemon tells that.
async fn tells(daemon: &Daemon, series: &str, value: f64) {
    let told = async || scrape(daemon).await.get(series).copied();
    let mut last = None;
    let is_told = async || {
        last = told().await;
        last.is_some_and(|told| (told - value).abs() < 1e-9)
    };
    eventually(&format!("{series} is {value}"), PATIENCE, is_told).await;
}

/// Without labels, and without what a histogram appends.
fn names(samples: &BTreeMap<String, f64>) -> BTreeSet<String> {
    let name = |series: &String| {
        let name = series.split('{').next().unwrap_or_default();
        let is_histogram = |end: &str| {
            name.strip_suffix(end).is_some_and(|base| ALL.iter().any(|metric| metric.name == base))
        };
        let end = ["_bucket", "_sum", "_count"].into_iter().find(|end| is_histogram(end)).unwrap_or("");
        name.strip_suffix(end).unwrap_or(name).to_owned()
    };
    samples.keys().map(name).collect()
}

#[tokio::test]
async fn every_metric_is_told_from_the_start_and_counts_what_happens() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let (topic, group) = (kafka.topic(2).await, format!("metrics-{:08x}", fastrand::u32(..)));
    // The third payload is no JSON: that message is given up at once.
    let handler = "kind = \"exec\"\ncommand = [\"sh\", \"-c\", \"read -r line; test \\\"$line\\\" != bad || exit 100\"]";
    let outboxd = Outboxd::new(&database, kafka)
        .group(&group, &topic, handler)
        .set(&format!("groups.{group}.retry.max_attempts = 1"));
    let producer = outboxd.producer();
    let consumer = outboxd.consumer(&[&group]);
    producer.ready().await;
    consumer.ready().await;

    // Explicit zeros, and nothing that the table does not have.
    tells(&producer, &format!("outboxd_dead_letters{{group=\"{group}\"}}"), 0.0).await;
    tells(&consumer, &format!("outboxd_handled_total{{group=\"{group}\",result=\"done\"}}"), 0.0).await;
    for payload in ["one", "two", "bad"] {
        let sql = "select outboxd.enqueue($1, $2::text, key => $2)";
        database.query(sql, &[&topic, &payload]).await;
    }
    tells(&producer, &format!("outboxd_published_total{{topic=\"{topic}\"}}"), 3.0).await;
    tells(&consumer, &format!("outboxd_handled_total{{group=\"{group}\",result=\"done\"}}"), 2.0).await;
    tells(&consumer, &format!("outboxd_handled_total{{group=\"{group}\",result=\"failed\"}}"), 1.0).await;
    let given_up = scrape(&consumer).await;
    let dead =
        |reason| given_up[&format!("outboxd_dead_lettered_total{{group=\"{group}\",reason=\"{reason}\"}}")];
    assert!((dead("attempts") + dead("permanent") - 1.0).abs() < 1e-9);
    tells(&producer, &format!("outboxd_dead_letters{{group=\"{group}\"}}"), 1.0).await;
    tells(&producer, "outboxd_pending_messages", 0.0).await;
    tells(&producer, "outboxd_agents{role=\"consumer\",status=\"active\"}", 1.0).await;
    tells(&producer, "outboxd_kafka_connected", 1.0).await;
    tells(&consumer, "outboxd_kafka_connected", 1.0).await;
    for partition in 0..2 {
        let lag =
            format!("outboxd_consumer_lag{{group=\"{group}\",topic=\"{topic}\",partition=\"{partition}\"}}");
        tells(&consumer, &lag, 0.0).await;
    }

    // A command is a process of its own, and is counted all the same.
    let replayed = outboxd.run(&["retry", "run", "--group", &group, "--yes"]).await;
    assert_eq!(replayed.code, 0, "{replayed:?}");
    tells(&producer, "outboxd_replayed_total{result=\"done\"}", 1.0).await;
    tells(&producer, &format!("outboxd_retries_scheduled_total{{group=\"{group}\"}}"), 1.0).await;
    tells(&consumer, &format!("outboxd_handled_total{{group=\"{group}\",result=\"failed\"}}"), 2.0).await;

    let (producers, consumers) = (scrape(&producer).await, scrape(&consumer).await);
    // Where nothing was ever parked there is no topic to tell it of.
    let told: BTreeSet<String> = names(&producers).union(&names(&consumers)).cloned().collect();
    let known: BTreeSet<String> = ALL.iter().map(|metric| metric.name.to_owned()).collect();
    let untold: Vec<&String> = known.difference(&told).collect();
    assert_eq!(untold, ["outboxd_parked_messages"]);
    assert_eq!(told.difference(&known).collect::<Vec<_>>(), Vec::<&String>::new());
    let calls = &consumers[&format!("outboxd_handler_duration_seconds_count{{group=\"{group}\"}}")];
    assert!((calls - 4.0).abs() < 1e-9, "{calls}");
    let acknowledged = &producers["outboxd_commit_to_ack_seconds_count{lane=\"normal\"}"];
    assert!(*acknowledged >= 1.0);
}

#[tokio::test]
async fn what_concerns_the_whole_database_is_told_by_one_agent_and_by_another_after_it() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let outboxd = |name: &str| {
        Outboxd::new(&database, kafka)
            .set(&format!("agent.name = \"{name}\""))
            .set("agent.heartbeat = \"1s\"")
            .set("producer.lease = \"2s\"")
    };
    // Its file says another thing for the whole cluster.
    let other = outboxd("two").set("retention.published = \"3d\"");
    let producers = [outboxd("one").producer(), other.producer()];
    for producer in &producers {
        producer.ready().await;
    }
    let teller = async |producers: &[&Daemon]| {
        let mut telling = Vec::new();
        for (place, producer) in producers.iter().enumerate() {
            if scrape(producer).await.contains_key("outboxd_oldest_pending_age_seconds") {
                telling.push(place);
            }
        }
        telling
    };
    let [one, two] = &producers;
    let mut first = 0;
    eventually("one of them tells", PATIENCE, async || {
        let telling = teller(&[one, two]).await;
        first = telling.first().copied().unwrap_or_default();
        telling.len() == 1
    })
    .await;
    tells(&producers[first], "outboxd_config_mismatch", 1.0).await;
    // Of two the one that came later is told of.
    let mut later = Value::Null;
    eventually("the list says so", PATIENCE, async || {
        let listed = outboxd("looks").run(&["agents", "list", "--json"]).await;
        let listed: Vec<Value> = serde_json::from_str(&listed.stdout).unwrap();
        later = listed.iter().max_by_key(|agent| agent["started_at"].as_str().unwrap()).unwrap().clone();
        listed.iter().all(|agent| (agent["config_mismatch"] == true) == (agent["id"] == later["id"]))
    })
    .await;
    let finding = format!("of their role: {}", later["name"].as_str().unwrap());
    eventually("the doctor finds it", PATIENCE, async || {
        outboxd("looks").run(&["doctor"]).await.stdout.contains(&finding)
    })
    .await;
    let other = &producers[1 - first];
    producers[first].kill();
    tells(other, "outboxd_oldest_pending_age_seconds", 0.0).await;
    tells(other, "outboxd_agents{role=\"producer\",status=\"active\"}", 1.0).await;
    tells(other, "outboxd_config_mismatch", 0.0).await;
}
