//! Members that come and go: what their partitions' messages suffer, and what the others notice.

use std::collections::HashSet;

use outboxd::domain::dispatch;
use outboxd::kafka::subscribe::{Polled, Rebalance, Subscription};
use rdkafka::mocking::{MockCluster, MockCoordinator};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::{Consumer, PATIENCE, Receiver, evidence, posting, unique};
use crate::support::log::Log;
use crate::support::{Kafka, Outboxd, Postgres, eventually};

#[tokio::test]
async fn a_static_member_that_restarts_has_its_partitions_as_before_and_the_others_notice_nothing() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let (topic, group) = (kafka.topic(4).await, unique("orders"));
    let receiver = Receiver::default();
    let handler = format!("kind = \"http\"\nurl = \"{}\"", receiver.clone().listen().await);
    let named = |name: &str| {
        Outboxd::new(&database, kafka)
            .set(&format!("agent.name = \"{name}\""))
            .set(&format!("groups.{group}.static_membership = true"))
            .group(&group, &topic, &handler)
    };
    let (first, other) = (named("first.of-two"), named("the-other"));
    let daemon = first.consumer(&[&group]);
    daemon.wait_for_line("assigned").await;
    let beside = other.consumer(&[&group]);
    beside.wait_for_line("assigned").await;
    let partitions = |log: &str| -> HashSet<String> {
        let last = log.lines().rfind(|line| line.contains("assigned") && line.contains("partitions"));
        let named = |word: &&str| word.starts_with(&topic);
        last.into_iter()
            .flat_map(|line| line.split([' ', '"', ',', '=']).filter(named))
            .map(str::to_owned)
            .collect()
    };
    let of_other = partitions(&beside.log());
    assert_eq!(of_other.len(), 2, "{}", beside.log());
    let rebalances = || beside.log().matches("assigned").count() + beside.log().matches("revoked").count();
    let before = rebalances();
    daemon.terminate();
    assert_eq!(daemon.wait_exit().await, Some(0));
    for n in 0..40 {
        kafka.produce(&topic, Some(&format!("k{n}")), Some(format!("m{n}").as_bytes()), &[]).await;
    }
    let again = first.consumer(&[&group]);
    again.wait_for_line("assigned").await;
    eventually("all are handled", PATIENCE, async || evidence(&database).await == 40).await;
    assert!(partitions(&again.log()).is_disjoint(&of_other), "{}", again.log());
    assert_eq!(partitions(&again.log()).len(), 2);
    assert_eq!(rebalances(), before, "{}", beside.log());
    assert!(receiver.handled().values().all(|times| *times == 1));
}

/// Its client has left with the first answer that it gets while it closes, and must not be asked another thing.
#[tokio::test]
async fn a_static_member_leaves_whenever_it_is_asked() {
    let kafka = Kafka::shared().await;
    let (topic, group) = (kafka.topic(1).await, unique("orders"));
    let config = kafka.settings();
    for _ in 0..40 {
        let topics = std::slice::from_ref(&topic);
        let mut member = Subscription::new(&config, "test", &group, Some("the-same"), topics).unwrap();
        let assigned = async {
            loop {
                if let Polled::Rebalance(Rebalance::Assigned(partitions)) = member.next().await {
                    break partitions;
                }
            }
        };
        let partitions = tokio::time::timeout(PATIENCE, assigned).await.expect("it joins");
        let starts: Vec<_> = partitions.into_iter().map(|at| (at, 0)).collect();
        assert_eq!(starts.len(), 1);
        member.assign(&starts).unwrap();
        tokio::time::timeout(PATIENCE, member.leave()).await.expect("it leaves");
    }
}

#[tokio::test]
async fn two_static_members_of_one_name_do_not_fence_each_other_for_ever() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let (topic, group) = (kafka.topic(1).await, unique("orders"));
    let outboxd = Outboxd::new(&database, kafka)
        .set("agent.name = \"the-same\"")
        .set(&format!("groups.{group}.static_membership = true"))
        .group(&group, &topic, "kind = \"log\"");
    let first = outboxd.consumer(&[&group]);
    first.wait_for_line("assigned").await;
    let second = outboxd.consumer(&[&group]);
    assert_eq!(first.wait_exit().await, Some(2));
    assert!(first.log().contains("has joined under this agent's name"), "{}", first.log());
    second.wait_for_line("assigned").await;
    kafka.produce(&topic, None, Some(b"m"), &[]).await;
    eventually("it is handled", PATIENCE, async || evidence(&database).await == 1).await;
    second.terminate();
    assert_eq!(second.wait_exit().await, Some(0));
}

/// Rebalances follow so closely that partitions are taken away before anything of them has begun.
#[tokio::test]
async fn in_a_storm_of_rebalances_nothing_is_lost_and_each_operation_is_done_once() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let topic = kafka.topic(6).await;
    let receiver = Receiver { takes: std::time::Duration::from_millis(5), ..Receiver::default() };
    let url = receiver.clone().listen().await;
    let (group, settings) = (unique("orders"), posting(&[&topic], &url));
    let start = || Consumer::start(&database.agent_url(), kafka, &group, &settings);
    let stays = start();
    stays.assigned(1).await;
    let feed = {
        let topic = topic.clone();
        tokio::spawn(async move {
            for n in 0..300 {
                // Every operation is asked for twice.
                let (payload, operation) = (format!("m{n}"), format!("order-{}", n / 2));
                let headers = [("idempotency-key", &*operation)];
                kafka.produce(&topic, Some(&format!("k{n}")), Some(payload.as_bytes()), &headers).await;
            }
        })
    };
    for round in 0..5 {
        let (first, second) = (start(), start());
        // Some leave as soon as they have partitions, others before anything comes of them.
        if round % 2 == 0 {
            first.assigned(1).await;
        }
        tokio::join!(first.drained(), second.drained());
    }
    feed.await.unwrap();
    eventually("all are handled", PATIENCE, async || evidence(&database).await == 300).await;
    stays.drained().await;
    assert_eq!(database.count("select count(*) from outboxd.handled where duplicate_of is null").await, 150);
    let handled = receiver.handled();
    assert_eq!(handled.len(), 150, "one message of each operation");
    assert!(handled.values().all(|times| *times == 1), "whoever leaves finishes what it has begun");
}

/// Longer than a member may be silent, and with more behind it than its partition may take in.
#[tokio::test]
async fn a_message_that_takes_long_costs_no_membership_and_stops_no_other_partition() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let (topic, group) = (kafka.topic(2).await, unique("orders"));
    let receiver = Receiver::default();
    receiver.stuck.lock().unwrap().insert("slow".into());
    let url = receiver.clone().listen().await;
    let (slow, _) = kafka.produce(&topic, Some("slow"), Some(b"slow"), &[]).await;
    let producer: BaseProducer = kafka.client_config().create().unwrap();
    let write = |partition: i32, numbers: std::ops::Range<u32>| {
        for n in numbers {
            let record = BaseRecord::<str, str>::to(&topic).partition(partition);
            producer.send(record.payload(&format!("{partition}:{n}"))).unwrap();
        }
        producer.flush(PATIENCE).unwrap();
    };
    write(slow, 0..3_000);
    let consumer = Outboxd::new(&database, kafka)
        .set("kafka.consumer.\"session.timeout.ms\" = \"6000\"")
        .set("kafka.consumer.\"max.poll.interval.ms\" = \"6000\"")
        .set(&format!("groups.{group}.batch = 100"))
        .group(&group, &topic, &format!("kind = \"http\"\nurl = \"{url}\"\ntimeout = \"5m\""))
        .consumer(&[&group]);
    let full =
        format!("outboxd_partition_paused{{group=\"{group}\",topic=\"{topic}\",partition=\"{slow}\"}} 1");
    eventually("its partition is full", PATIENCE, async || {
        consumer.get("/metrics").await.is_some_and(|(_, metrics)| metrics.contains(&full))
    })
    .await;
    let begun = std::time::Instant::now();
    let longer = std::time::Duration::from_secs(9);
    eventually("longer than a member may be silent", PATIENCE, async || begun.elapsed() > longer).await;
    let before = evidence(&database).await;
    assert!((1_000..3_000).contains(&before), "so many may pass it: {before}");
    write(1 - slow, 0..20);
    let of_other = format!("select count(*) from outboxd.handled where partition = {}", 1 - slow);
    eventually("the other partition goes on", PATIENCE, async || database.count(&of_other).await == 20).await;
    receiver.stuck.lock().unwrap().clear();
    eventually("all are handled", PATIENCE, async || evidence(&database).await == 3_021).await;
    consumer.terminate();
    assert_eq!(consumer.wait_exit().await, Some(0));
    assert!(!consumer.log().contains("lost to another member"), "{}", consumer.log());
    assert!(receiver.handled().values().all(|times| *times == 1));
}

/// Whoever gets its partition takes over the claim of that message's operation at once, and it answers late.
#[tokio::test]
async fn what_a_frozen_member_was_doing_is_done_by_another_and_its_late_answer_changes_nothing() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let (topic, group) = (kafka.topic(1).await, unique("orders"));
    let (slow, quick) = (Receiver::default(), Receiver::default());
    slow.stuck.lock().unwrap().insert("m".into());
    let agent = async |name: &str, receiver: &Receiver| {
        let handler =
            format!("kind = \"http\"\nurl = \"{}\"\ntimeout = \"5m\"", receiver.clone().listen().await);
        Outboxd::new(&database, kafka)
            .set(&format!("agent.name = \"{name}\""))
            .set("kafka.consumer.\"session.timeout.ms\" = \"6000\"")
            .set("kafka.consumer.\"max.poll.interval.ms\" = \"6000\"")
            .group(&group, &topic, &handler)
    };
    let freezes = agent("freezes", &slow).await.consumer(&[&group]);
    kafka.produce(&topic, None, Some(b"m"), &[("idempotency-key", "order-1")]).await;
    eventually("it is at work", PATIENCE, async || !slow.running.lock().unwrap().is_empty()).await;
    freezes.pause();
    let other = agent("goes-on", &quick).await.consumer(&[&group]);
    eventually("the other does it", PATIENCE, async || evidence(&database).await == 1).await;
    slow.stuck.lock().unwrap().clear();
    eventually("it answers", PATIENCE, async || slow.tried("m") == 1).await;
    freezes.resume();
    freezes.wait_for_line("lost to another member").await;
    for daemon in [freezes, other] {
        daemon.terminate();
        assert_eq!(daemon.wait_exit().await, Some(0));
    }
    let agents = database.query("select agent from outboxd.handled", &[]).await;
    assert_eq!(agents.iter().map(|row| row.get(0)).collect::<Vec<String>>(), ["goes-on"]);
    assert_eq!(quick.tried("m"), 1);
    let done = "select count(*) from outboxd.idempotency_keys k join outboxd.agents a on a.id = k.owner
        where k.state = 'done' and a.name = 'goes-on'";
    assert_eq!(database.count(done).await, 1);
}

/// It counts as a member meanwhile, so that nobody else gets its partition, and what it was at.
#[tokio::test]
async fn another_message_of_an_operation_waits_until_the_claim_of_a_frozen_member_ends() {
    let (kafka, database) = (Kafka::shared().await, Postgres::shared().await.database().await);
    let (topic, group) = (kafka.topic(2).await, unique("orders"));
    let receiver = Receiver::default();
    receiver.stuck.lock().unwrap().insert("first".into());
    let url = receiver.clone().listen().await;
    let freezes = Outboxd::new(&database, kafka)
        .set("agent.name = \"freezes\"")
        .set("kafka.consumer.\"session.timeout.ms\" = \"300000\"")
        .group(&group, &topic, &format!("kind = \"http\"\nurl = \"{url}\"\ntimeout = \"5m\""))
        .consumer(&[&group]);
    freezes.wait_for_line("assigned").await;
    // Of this thread: the other consumer runs in it.
    let log = Log::of_this_thread();
    let other = Consumer::start(&database.agent_url(), kafka, &group, &posting(&[&topic], &url));
    other.assigned(1).await;
    let order = [("idempotency-key", "order-1")];
    kafka.produce_to(&topic, 0, "whose", &[]).await;
    eventually("somebody has the partition", PATIENCE, async || evidence(&database).await == 1).await;
    let its_own = "select count(*) from outboxd.handled where agent = 'freezes'";
    let (of_frozen, of_other) = if database.count(its_own).await == 1 { (0, 1) } else { (1, 0) };

    kafka.produce_to(&topic, of_frozen, "first", &order).await;
    eventually("it is at work", PATIENCE, async || !receiver.running.lock().unwrap().is_empty()).await;
    freezes.pause();
    kafka.produce_to(&topic, of_other, "second", &order).await;
    eventually("the other waits", PATIENCE, async || log.text().contains("waiting for it, or for its claim"))
        .await;
    assert_eq!(receiver.tried("second"), 0, "the claim holds");
    let end = "update outboxd.idempotency_keys set expires_at = now() where state = 'claimed'
        and owner = (select id from outboxd.agents where name = 'freezes')";
    assert_eq!(database.execute(end, &[]).await, 1);
    eventually("the other does it", PATIENCE, async || evidence(&database).await == 2).await;
    receiver.stuck.lock().unwrap().clear();
    eventually("it answers", PATIENCE, async || receiver.tried("first") == 1).await;
    freezes.resume();
    freezes.wait_for_line("1 idempotency keys had been taken over meanwhile").await;
    eventually("what it did is known", PATIENCE, async || evidence(&database).await == 3).await;
    other.drained().await;
    freezes.terminate();
    assert_eq!(freezes.wait_exit().await, Some(0));
    assert!(receiver.handled().values().all(|times| *times == 1));
    let done = "select count(*) from outboxd.idempotency_keys k join outboxd.handled h using (message_id)
        where k.state = 'done' and h.agent <> 'freezes'";
    assert_eq!(database.count(done).await, 1, "the claim stays that of whom it was lost to");
}

#[tokio::test]
async fn a_coordinator_that_moves_to_another_broker_costs_nothing() {
    let database = Postgres::shared().await.database().await;
    let cluster = MockCluster::new(3).unwrap();
    let (topic, group) = (unique("topic"), unique("orders"));
    // It takes no request to make one.
    for (topic, partitions) in [(topic.clone(), 4), (dispatch::topic(&group), 1)] {
        cluster.create_topic(&topic, partitions, 3).unwrap();
    }
    let brokers = cluster.bootstrap_servers();
    let producer: BaseProducer =
        rdkafka::ClientConfig::new().set("bootstrap.servers", &brokers).create().unwrap();
    let write = |numbers: std::ops::Range<u32>| {
        for n in numbers {
            let (key, payload) = (format!("k{n}"), format!("m{n}"));
            producer.send(BaseRecord::to(&topic).key(&key).payload(&payload)).unwrap();
        }
        producer.flush(PATIENCE).unwrap();
    };
    let receiver = Receiver::default();
    let settings = posting(&[&topic], &receiver.clone().listen().await);
    let of_group = || MockCoordinator::Group(group.clone());
    cluster.coordinator(of_group(), 1).unwrap();
    let start = || {
        Consumer::start_at(&database.agent_url(), &brokers, &group, &settings, outboxd::consumer::PATIENCE)
    };
    let consumers = [start(), start()];
    for consumer in &consumers {
        consumer.assigned(1).await;
    }
    for (round, coordinator) in [(0, 2), (1, 3), (2, 1)] {
        write(round * 50..round * 50 + 25);
        cluster.coordinator(of_group(), coordinator).unwrap();
        write(round * 50 + 25..(round + 1) * 50);
        let all = i64::from(round + 1) * 50;
        eventually("all are handled", PATIENCE, async || evidence(&database).await == all).await;
    }
    for consumer in consumers {
        consumer.drained().await;
    }
    assert_eq!(receiver.handled().len(), 150);
    assert!(receiver.handled().values().all(|times| *times == 1));
}
