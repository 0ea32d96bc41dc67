//! Agents, producers and brokers that fail in the middle of a retry.

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use outboxd::domain::dispatch;

use super::{Handler, PATIENCE, Scene};
use crate::support::batch::Batch;
use crate::support::{Kafka, eventually, until_none_is_left};

#[tokio::test]
async fn silence_counts_as_a_failed_attempt_and_another_agent_goes_on() {
    let scene = Scene::new().await;
    let (hangs, works) = (Handler::stuck(), Handler::answering(StatusCode::OK));
    let quick = ["retry.backoff = \"10ms\""];
    let dies = scene.consumer("dies", &hangs, &quick).await;
    let _lives = scene.consumer("lives", &works, &quick).await;
    let _producer = scene.producer(&quick);
    scene.takers_are(2).await;
    let id = scene.failure(b"m", Some(scene.agent("lives").await)).await;
    eventually("it is tried", PATIENCE, async || hangs.count() == 1).await;
    dies.kill();
    scene.expire().await;
    scene.all_done().await;
    assert_eq!(scene.evidence().await, [(id, "lives".to_owned(), 3)]);
    let attempt = scene.database.query_one("select attempt, agent, error from outboxd.attempts", &[]).await;
    assert_eq!((attempt.get(0), attempt.get(1)), (2, "dies"));
    assert!(attempt.get::<_, &str>(2).starts_with("silence"));
}

#[tokio::test]
async fn one_that_was_slow_beyond_its_lease_and_its_successor_may_both_finish() {
    let scene = Scene::new().await;
    let (slow, works) = (Handler::stuck(), Handler::answering(StatusCode::OK));
    let freezes = scene.consumer("freezes", &slow, &["retry.backoff = \"10ms\""]).await;
    let _lives = scene.consumer("lives", &works, &[]).await;
    let _producer = scene.producer(&["retry.backoff = \"10ms\""]);
    scene.takers_are(2).await;
    let id = scene.failure(b"m", Some(scene.agent("lives").await)).await;
    eventually("it is tried", PATIENCE, async || slow.count() == 1).await;
    freezes.pause();
    scene.expire().await;
    scene.all_done().await;
    slow.let_go();
    freezes.resume();
    scene.takers_are(2).await;
    freezes.terminate();
    assert_eq!(freezes.wait_exit().await, Some(0));
    assert_eq!((slow.count(), works.count()), (1, 1));
    assert_eq!(scene.evidence().await, [(id, "lives".to_owned(), 3)]);
    assert_eq!(scene.failures().await, 0);
}

#[tokio::test]
async fn a_dispatch_that_is_not_started_in_time_is_anothers_and_costs_no_attempt() {
    let scene = Scene::new().await;
    let handlers = [Handler::answering(StatusCode::OK), Handler::answering(StatusCode::OK)];
    let freezes = scene.consumer("freezes", &handlers[0], &[]).await;
    let _lives = scene.consumer("lives", &handlers[1], &[]).await;
    let _producer = scene.producer(&["retry.deadline = \"3s\""]);
    scene.takers_are(2).await;
    freezes.pause();
    let id = scene.failure(b"m", Some(scene.agent("lives").await)).await;
    scene.all_done().await;
    assert_eq!(scene.evidence().await, [(id, "lives".to_owned(), 2)]);
    freezes.resume();
    scene.takers_are(2).await;
    assert_eq!((handlers[0].count(), handlers[1].count()), (0, 1), "what comes late is not started");
}

#[tokio::test]
async fn while_all_agents_of_the_group_are_dead_retries_wait_and_cost_nothing() {
    let scene = Scene::new().await;
    let handlers = [Handler::answering(StatusCode::OK), Handler::answering(StatusCode::OK)];
    let dies = scene.consumer("dies", &handlers[0], &[]).await;
    scene.takers_are(1).await;
    dies.kill();
    let heard_of = "select count(*) from outboxd.members where seen_at > now() - interval '6 s'";
    eventually("nobody is heard of", PATIENCE, async || scene.database.count(heard_of).await == 0).await;
    let _producer = scene.producer(&["retry.deadline = \"3s\""]);
    scene.many_are_due(20).await;
    let untouched = "select count(*) from outboxd.failures
        where state = 'due' and dispatch = 0 and attempts = 1 and next_attempt_at < now() - interval '6 s'";
    eventually("time passes", PATIENCE, async || scene.database.count(untouched).await == 20).await;
    let _lives = scene.consumer("lives", &handlers[1], &[]).await;
    scene.all_done().await;
    assert!(
        scene.evidence().await.iter().all(|(_, agent, attempt)| (agent.as_str(), *attempt) == ("lives", 2))
    );
    assert_eq!((handlers[0].count(), handlers[1].count()), (0, 20));
}

/// They become due while it is away.
#[tokio::test]
async fn ten_thousand_failures_wait_for_a_broker_and_cost_no_attempt_and_no_second_dispatch() {
    const ALL: i64 = 10_000;
    let kafka = Kafka::private().await;
    let scene = Scene::at(&kafka).await;
    let handler = Handler::answering(StatusCode::OK);
    let often = "kafka.client.\"reconnect.backoff.max.ms\" = \"500\"";
    // A place for each that may be out: an agent hands back what has waited for half its deadline.
    let consumer = scene.consumer("a", &handler, &["concurrency = 200"]).await;
    let producer = |settings: &[&str]| {
        let outboxd = scene.outboxd().set("producer.lease = \"1s\"").set(often);
        scene.with(outboxd, "kind = \"log\"", settings).producer()
    };
    let short = producer(&["concurrency = 100", "retry.deadline = \"5s\""]);
    short.ready().await;
    scene.takers_are(1).await;
    kafka.kill();
    scene.many_are_due(i32::try_from(ALL).unwrap()).await;
    let count = async |sql: &str| scene.database.count(sql).await;
    let out =
        "select count(*) from outboxd.failures where state = 'retrying' and dispatch = 1 and attempts = 1";
    eventually("as many are dispatched as may be out", PATIENCE, async || count(out).await == 200).await;
    // Its job goes on: far beyond the deadline, which has not begun.
    let looks = "select (seq_scan + coalesce(idx_scan, 0))::bigint from pg_stat_user_tables where relname = 'members'";
    let looks_before = count(looks).await;
    let long_ago = "select count(*) from outboxd.failures
        where state = 'retrying' and changed_at < clock_timestamp() - interval '7 s'";
    eventually("time passes", PATIENCE, async || count(long_ago).await == 200).await;
    let looked = count(looks).await - looks_before;
    assert!(looked < 150, "while nobody has room it looks seldom: {looked} times in seven seconds");
    assert_eq!(count(out).await, 200);
    let untouched =
        "select count(*) from outboxd.failures where state = 'due' and dispatch = 0 and attempts = 1";
    assert_eq!(count(untouched).await, ALL - 200);
    short.kill();
    kafka.start().await;
    let producer = producer(&["concurrency = 100"]);
    scene.all_done().await;
    let once = "select count(*) from outboxd.handled where attempt = 2";
    assert_eq!((count(once).await, count("select count(*) from outboxd.handled").await), (ALL, ALL));
    assert_eq!(i64::try_from(handler.count()).unwrap(), ALL, "none was called for twice");
    assert_eq!(count("select count(*) from outboxd.messages").await, ALL, "one dispatch for each");
    let peaks = [consumer.peak_memory(), producer.peak_memory()];
    println!("looked {looked} times, {peaks:?} bytes at the most");
    assert!(peaks.iter().all(|peak| *peak < 128 << 20), "{peaks:?}");
}

#[tokio::test]
async fn two_thousand_failures_are_capped_and_fresh_messages_still_flow() {
    let scene = Scene::new().await;
    let handlers = [Handler::taking(Duration::from_millis(20)), Handler::taking(Duration::from_millis(20))];
    let _consumers =
        (scene.consumer("a", &handlers[0], &[]).await, scene.consumer("b", &handlers[1], &[]).await);
    scene.takers_are(2).await;
    scene.many_are_due(2000).await;
    let _producer = scene.producer(&[]);
    let out = "select count(*) from outboxd.failures where state in ('retrying', 'running')";
    eventually("retries are out", PATIENCE, async || scene.database.count(out).await > 0).await;
    for n in 0..20 {
        scene.kafka.produce(&scene.topic, None, Some(format!("fresh {n}").as_bytes()), &[]).await;
    }
    let fresh = "select count(*) from outboxd.handled where attempt = 1";
    eventually("fresh ones are handled", PATIENCE, async || {
        assert!(scene.database.count(out).await <= 64, "two agents of 32 retries each");
        scene.database.count(fresh).await == 20
    })
    .await;
    assert!(scene.failures().await > 0, "they did not wait for the failures");
    let left = async || {
        assert!(scene.database.count(out).await <= 64);
        Some(scene.failures().await)
    };
    until_none_is_left("done with", PATIENCE, left, async || String::new()).await;
    assert_eq!(scene.database.count("select count(*) from outboxd.handled where attempt = 2").await, 2000);
    let calls = handlers.iter().map(Handler::count);
    assert!(calls.clone().min() > Some(500), "both take their part: {:?}", calls.collect::<Vec<_>>());
}

#[tokio::test]
async fn an_agent_that_drains_finishes_what_runs_and_hands_the_rest_back() {
    let scene = Scene::new().await;
    let slow = Handler::stuck();
    let leaves = scene.consumer("leaves", &slow, &[]).await;
    let _producer = scene.producer(&[]);
    scene.takers_are(1).await;
    for _ in 0..40 {
        scene.failure(b"m", None).await;
    }
    eventually("it is at work", PATIENCE, async || slow.count() >= 10).await;
    leaves.terminate();
    leaves.wait_for_line("draining for at most").await;
    slow.let_go();
    assert_eq!(leaves.wait_exit().await, Some(0));
    let left = "select count(*) from outboxd.failures where state <> 'due' or attempts <> 1";
    assert_eq!(scene.database.count(left).await, 0, "what is left is due, and has cost no attempt");
    let _next = scene.consumer("comes", &Handler::answering(StatusCode::OK), &[]).await;
    scene.all_done().await;
    let evidence = scene.evidence().await;
    assert_eq!(evidence.len(), 40);
    assert!(evidence.iter().all(|(_, _, attempt)| *attempt == 2));
    assert!(evidence.iter().any(|(_, agent, _)| agent == "comes"), "there was something to hand back");
}

/// The job that gives it out has chosen the agent before, and commits after.
#[tokio::test]
async fn what_is_given_to_an_agent_that_is_just_leaving_is_handed_back() {
    let scene = Scene::new().await;
    let leaves = scene.consumer("leaves", &Handler::answering(StatusCode::OK), &[]).await;
    scene.takers_are(1).await;
    let mut blocker = scene.database.connect().await;
    let blocker = blocker.transaction().await.unwrap();
    blocker.batch_execute("lock table outboxd.messages in share mode").await.unwrap();
    scene.failure(b"m", None).await;
    let _producer = scene.producer(&[]);
    scene.waits_for_a_lock("insert into outboxd.messages", true).await;
    leaves.terminate();
    scene.waits_for_a_lock("update outboxd.members", true).await;
    blocker.rollback().await.unwrap();
    assert_eq!(leaves.wait_exit().await, Some(0));
    let given =
        "select dispatch from outboxd.failures where state = 'due' and target is null and attempts = 1";
    let given: i64 = scene.database.query_one(given, &[]).await.get(0);
    assert_eq!(given, 1, "it was given out, and nobody waits for its deadline");
}

#[tokio::test]
async fn nothing_is_given_to_an_agent_that_has_left_meanwhile() {
    let scene = Scene::new().await;
    let leaves = scene.consumer("leaves", &Handler::answering(StatusCode::OK), &[]).await;
    scene.takers_are(1).await;
    // It does not say again that it is at work.
    leaves.pause();
    scene.database.batch("update outboxd.members set seen_at = now() + interval '1 hour'").await;
    let mut goodbye = scene.database.connect().await;
    let goodbye = goodbye.transaction().await.unwrap();
    goodbye.batch_execute("delete from outboxd.members").await.unwrap();
    scene.failure(b"m", None).await;
    let producer = scene.producer(&[]);
    scene.waits_for_a_lock("from outboxd.members", true).await;
    goodbye.commit().await.unwrap();
    scene.waits_for_a_lock("from outboxd.members", false).await;
    // Its run comes to its end.
    producer.terminate();
    assert_eq!(producer.wait_exit().await, Some(0));
    let given: i64 = scene.database.query_one("select dispatch from outboxd.failures", &[]).await.get(0);
    assert_eq!(given, 0);
    leaves.kill();
}

/// A server that restarts costs no attempt; a function that ends its connection each time is given up.
#[tokio::test]
async fn a_connection_lost_in_a_function_counts_as_a_start_and_not_as_an_attempt() {
    let scene = Scene::new().await;
    scene
        .database
        .batch(
            "create table outage ();
             insert into outage default values;
             create function on_order(d outboxd.delivery) returns void language plpgsql security definer as $$
             begin
               if convert_from(d.payload, 'UTF8') = 'deadly' or exists (select from public.outage) then
                 perform pg_terminate_backend(pg_backend_pid());
                 perform pg_sleep(5);
               end if;
             end $$",
        )
        .await;
    let settings = ["retry.max_starts = 3", "retry.max_attempts = 2"];
    let function = "kind = \"sql\"\nfunction = \"on_order\"";
    let _consumer = scene.with(scene.outboxd(), function, &settings).consumer(&[&scene.group]);
    let _producer = scene.producer(&settings);
    scene.takers_are(1).await;
    let id = scene.failure(b"m", None).await;
    let lost = "select count(*) from outboxd.starts where starts > 0";
    eventually("its connection is lost", PATIENCE, async || scene.database.count(lost).await == 1).await;
    scene.database.batch("delete from outage").await;
    scene.all_done().await;
    let evidence = scene.evidence().await;
    assert_eq!((evidence[0].0, evidence[0].2), (id, 2), "no attempt was spent");
    assert_eq!(scene.database.count("select count(*) from outboxd.attempts").await, 0);
    assert_eq!(scene.database.count("select count(*) from outboxd.starts").await, 0, "it is cleared");
    scene.failure(b"deadly", None).await;
    let dead = "select count(*) from outboxd.failures where state = 'dead' and reason = 'starts'";
    eventually("it is given up", PATIENCE, async || scene.database.count(dead).await == 1).await;
    assert_eq!(scene.database.count("select count(*) from outboxd.starts").await, 0);
}

#[tokio::test]
async fn retries_keep_to_the_rate_of_their_group() {
    let scene = Scene::new().await;
    let handler = Handler::answering(StatusCode::OK);
    let _consumer = scene.consumer("a", &handler, &["rate = \"5/s\""]).await;
    let producer = scene.producer(&[]);
    scene.takers_are(1).await;
    producer.ready().await;
    // Before any starts: when it is recorded says less, where the first is recorded late.
    let begun = Instant::now();
    scene.many_are_due(40).await;
    scene.all_done().await;
    let took = begun.elapsed();
    let least = Duration::from_millis(6_500);
    assert!(took >= least, "40 at 5 a second, of which one second's worth may come at once: {took:?}");
    assert_eq!(handler.count(), 40);
}

/// A disk that rots: what the dispatch was in comes again, and what is behind it goes on.
#[tokio::test]
async fn a_dispatch_that_cannot_be_decoded_stops_no_other() {
    let scene = Scene::new().await;
    let handler = Handler::answering(StatusCode::OK);
    let consumer = scene.consumer("a", &handler, &[]).await;
    let _producer = scene.producer(&[]);
    scene.takers_are(1).await;
    consumer.pause();
    // What it had asked for before is answered, with nothing.
    let frozen = Instant::now();
    eventually("time passes", PATIENCE, async || frozen.elapsed() > Duration::from_secs(1)).await;
    let topic = dispatch::topic(&scene.group);
    scene.kafka.produce_to(&topic, 0, "a dispatch", &[]).await;
    Batch::at(scene.kafka, &topic, 0, 0).is_compressed_somehow();
    consumer.resume();
    consumer.wait_for_line("passing over what cannot be decoded: its compression is not known").await;
    scene.failure(b"m", None).await;
    scene.all_done().await;
    assert_eq!(handler.count(), 1);
}
