//! `outboxd groups`: how each is getting on, and what an operator orders.

use std::time::Duration;

use serde_json::Value;

use crate::support::{Kafka, Outboxd, Postgres, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_group_tells_how_it_is_getting_on_and_is_paused_and_resumed() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let (topic, group) = (kafka.topic(1).await, format!("orders-{:08x}", fastrand::u32(..)));
    let outboxd = Outboxd::new(&database, kafka)
        .set("agent.name = \"ann\"")
        .set(&format!("groups.{group}.retry.backoff = \"1h\""))
        .group(&group, &topic, "kind = \"exec\"\ncommand = [\"sh\", \"-c\", \"test $(cat) != bad\"]");
    let produce = async |key: &str, payload: &str| {
        kafka.produce(&topic, Some(key), Some(payload.as_bytes()), &[]).await;
    };
    for (key, payload) in [("a", "good"), ("b", "bad"), ("b", "behind"), ("c", "good")] {
        produce(key, payload).await;
    }
    let consumer = outboxd.consumer(&[&group]);
    let reader = Outboxd::without_kafka(&database).postgres_url(&database.reader_url());
    let line = async || -> Value {
        let listed = reader.run(&["groups", "list", "--json"]).await;
        assert_eq!(listed.code, 0, "{listed:?}");
        serde_json::from_str::<Vec<Value>>(&listed.stdout).unwrap().pop().unwrap_or_default()
    };
    eventually("all are taken in", PATIENCE, async || {
        let now = line().await;
        now["failures"] == 1 && now["held_keys"] == 1 && now["lag"] == 0 && now["agents"][0] == "ann"
    })
    .await;
    let now = line().await;
    assert_eq!(
        (&now["paused_at"], &now["paused_partitions"], &now["dead_letters"]),
        (&Value::Null, &0.into(), &0.into())
    );
    assert!(now["rate"].is_number(), "{now}");
    let operator = Outboxd::without_kafka(&database).postgres_url(&database.operator_url());
    let paused = operator.run(&["groups", "pause", &group]).await;
    assert!(paused.code == 0 && paused.stdout.contains("is paused"), "{paused:?}");
    let again = operator.run(&["groups", "pause", &group]).await;
    assert!(again.code == 0 && again.stdout.contains("was paused already"), "{again:?}");
    let hears = || consumer.log().contains("nothing more is started: paused by");
    eventually("it hears", PATIENCE, async || hears()).await;
    for n in 0..5 {
        produce(&format!("k{n}"), "good").await;
    }
    eventually("they wait", PATIENCE, async || line().await["lag"] == 5).await;
    assert!(line().await["paused_by"].is_string());
    let table = reader.run(&["groups", "list"]).await;
    assert!(table.stdout.contains("PAUSED") && table.stdout.contains("by "), "{table:?}");
    assert_eq!(database.count("select count(*) from outboxd.handled").await, 2);
    let resumed = operator.run(&["groups", "resume", &group]).await;
    assert!(resumed.code == 0 && resumed.stdout.contains("goes on"), "{resumed:?}");
    eventually("they are handled", PATIENCE, async || {
        let now = line().await;
        now["lag"] == 0 && now["rate"].as_f64() > Some(0.0)
    })
    .await;
    let shown = operator.run(&["groups", "show", &group]).await;
    assert!(
        shown.code == 0 && shown.stdout.contains("1 behind 1 keys") && shown.stdout.contains("lag"),
        "{shown:?}"
    );
    assert_eq!(operator.run(&["groups", "pause", "no-such"]).await.code, 4);
    let orders = "select count(*) from outboxd.operations where command in ('groups pause', 'groups resume')";
    assert_eq!(database.count(orders).await, 3);
}

#[tokio::test]
async fn a_message_tells_what_became_of_it_in_every_group() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let topic = kafka.topic(1).await;
    let [quick, again, hopeless] =
        ["quick", "again", "hopeless"].map(|name| format!("{name}-{:08x}", fastrand::u32(..)));
    let exec = |script: &str| format!("kind = \"exec\"\ncommand = [\"sh\", \"-c\", \"{script}\"]");
    let outboxd = Outboxd::new(&database, kafka)
        .set("agent.name = \"ann\"")
        .set(&format!("groups.{again}.retry.backoff = \"1h\""))
        .set(&format!("groups.{hopeless}.retry.max_attempts = 1"))
        .group(&quick, &topic, "kind = \"log\"")
        .group(&again, &topic, &exec("echo not now >&2; exit 75"))
        .group(&hopeless, &topic, &exec("echo never >&2; exit 1"));
    let id: uuid::Uuid =
        database.query_one("select outboxd.enqueue($1, 'x'::text, key => 'k')", &[&topic]).await.get(0);
    let _daemons = (outboxd.producer(), outboxd.consumer(&[&quick, &again, &hopeless]));
    let operator = Outboxd::without_kafka(&database).postgres_url(&database.operator_url());
    let show = async || -> Value {
        let shown = operator.run(&["messages", "show", &id.to_string(), "--json"]).await;
        assert_eq!(shown.code, 0, "{shown:?}");
        serde_json::from_str(&shown.stdout).unwrap()
    };
    eventually("every group has had it", PATIENCE, async || {
        let story = show().await;
        let count = |what: &str| story[what].as_array().map_or(0, Vec::len);
        (count("handled"), count("failing"), count("failed_attempts")) == (1, 2, 2)
    })
    .await;
    let story = show().await;
    assert_eq!(
        (&story["handled"][0]["group"], &story["handled"][0]["agent"]),
        (&quick.as_str().into(), &"ann".into())
    );
    let of_group = |what: &str, group: &str| {
        story[what].as_array().unwrap().iter().find(|one| one["group"] == group).cloned().unwrap_or_default()
    };
    assert_eq!(of_group("failing", &again)["state"], "due", "{story}");
    assert_eq!(of_group("failing", &hopeless)["state"], "dead", "{story}");
    for (group, error) in [(&again, "not now"), (&hopeless, "never")] {
        let attempt = of_group("failed_attempts", group);
        assert!(attempt["agent"] == "ann" && attempt["error"].as_str().unwrap().contains(error), "{attempt}");
    }
    assert!(story["publication"]["places"][0]["partition"].is_number(), "{story}");
}
