//! A program that has outboxd's consumer inside keeps its promises.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outboxd::embed::{Config, Consumer, Delivery, Exit, Handler, Outcome};
use tokio::sync::oneshot;

use crate::support::{Kafka, Postgres, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

/// Fails each message once, and one of them by a panic.
#[derive(Clone, Default)]
struct Orders {
    tries: Arc<Mutex<HashMap<String, u32>>>,
}

impl Handler for Orders {
    async fn handle(&self, delivery: &Delivery) -> Outcome {
        let payload = String::from_utf8(delivery.record.payload.as_deref().unwrap().to_vec()).unwrap();
        let tries = {
            let mut all = self.tries.lock().unwrap();
            let tries = all.entry(payload.clone()).or_default();
            *tries += 1;
            *tries
        };
        assert!(tries > 1 || payload != "o-0", "a panic of the handler");
        if tries > 1 { Outcome::Done } else { Outcome::Retry { reason: "not yet".into(), after: None } }
    }
}

#[tokio::test]
async fn an_embedded_handler_gets_each_message_until_it_is_done_and_then_never_again() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let topic = kafka.topic(2).await;
    let group = format!("orders-{:08x}", fastrand::u32(..));
    let text = format!(
        "[postgres]\nurl = \"{}\"\n[kafka]\nbrokers = \"{}\"\n[http]\nlisten = \"127.0.0.1:0\"\n[groups.{group}]\n\
         topics = [\"{topic}\"]\nhandler.kind = \"embedded\"\nretry.backoff = \"10ms\"\n\
         retry.inline_attempts = 5\n",
        database.agent_url(),
        kafka.brokers()
    );
    let config = Config::parse(&text, None, []).unwrap().config;
    for n in 0..5 {
        kafka.produce(&topic, Some(&format!("k{n}")), Some(format!("o-{n}").as_bytes()), &[]).await;
    }
    assert!(Consumer::new(config.clone()).group("other", Orders::default()).is_err());
    let orders = Orders::default();
    let evidence = "select count(*) from outboxd.handled";
    for runs in 1..=2 {
        let (stop, stopped) = oneshot::channel::<()>();
        let consumer = Consumer::new(config.clone()).group(&group, orders.clone()).unwrap();
        let running = tokio::spawn(consumer.run_until(async { stopped.await.unwrap() }));
        kafka.produce(&topic, None, Some(format!("run-{runs}").as_bytes()), &[]).await;
        eventually("all are handled", PATIENCE, async || database.count(evidence).await == 5 + runs).await;
        stop.send(()).unwrap();
        let exit = tokio::time::timeout(PATIENCE, running).await.expect("it drains").unwrap().unwrap();
        assert_eq!(exit, Exit::Done);
    }
    let tries = orders.tries.lock().unwrap();
    assert!(tries.len() == 7 && tries.values().all(|tries| *tries == 2), "{tries:?}");
}
