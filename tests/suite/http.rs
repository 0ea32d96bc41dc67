//! The HTTP server under good and bad requests: each has its documented answer, and none harms the daemon's work.

mod bad_input;
mod fuzzing;

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::http::request;
use crate::support::{Daemon, Database, Kafka, Outboxd, Postgres, eventually};

/// A producer that is ready, and its database.
async fn producer(settings: &[&str]) -> (Database, &'static Kafka, Daemon) {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let outboxd = settings.iter().fold(Outboxd::new(&database, kafka), |outboxd, line| outboxd.set(line));
    let daemon = outboxd.producer();
    daemon.ready().await;
    (database, kafka, daemon)
}

#[tokio::test]
async fn messages_go_in_together_and_are_found_with_their_story() {
    let (database, kafka, daemon) = producer(&[]).await;
    let topic = kafka.topic(1).await;
    let one = json!({ "topic": topic, "key": "k", "payload": { "n": 1 }, "type": "Placed" });
    let sent = request(daemon.listen, "POST /api/messages").json(&one.to_string()).send().await;
    assert_eq!(sent.status, 202, "{sent:?}");
    let id = sent.json()["ids"][0].as_str().unwrap().to_owned();
    database.reach(&topic, "published", 1).await;
    let story = request(daemon.listen, &format!("GET /api/messages/{id}")).send().await.json();
    assert_eq!((&story["state"], &story["payload"]), (&json!("published"), &json!("{\"n\":1}")), "{story}");
    assert_eq!(story["headers"]["content-type"], "application/json");

    let several = json!([
        { "topic": topic, "key": "k", "payload": "two" },
        { "topic": topic, "key": "k", "payload_base64": "AP8=" },
        { "topic": topic, "key": "k", "payload": null },
    ]);
    let sent = request(daemon.listen, "POST /api/messages").json(&several.to_string()).send().await;
    assert_eq!(sent.json()["ids"].as_array().unwrap().len(), 3);
    database.reach(&topic, "published", 4).await;
    // All or none.
    let spoiled = json!([{ "topic": topic, "payload": 1 }, { "topic": "a b", "payload": 1 }]);
    let refused = request(daemon.listen, "POST /api/messages").json(&spoiled.to_string()).send().await;
    assert!(refused.is_problem(400, "message 1"), "{refused:?}");
    assert_eq!(database.count("select count(*) from outboxd.messages").await, 4);

    let mut seen = Vec::new();
    let mut after = String::new();
    loop {
        let line = format!("GET /api/messages?topic={topic}&limit=3{after}");
        let page = request(daemon.listen, &line).send().await.json();
        seen.extend(page["items"].as_array().unwrap().iter().map(|item| item["seq"].as_i64().unwrap()));
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    assert_eq!(seen, [4, 3, 2, 1]);
}

/// A message that Kafka refuses for good.
async fn parked(database: &Database, daemon_topic: &str, keys: &[&str]) -> Vec<String> {
    let mut ids = Vec::new();
    for key in keys {
        let sql = "select outboxd.enqueue($1, repeat('x', 30000), key => $2)::text";
        ids.push(database.query_one(sql, &[&daemon_topic, key]).await.get(0));
    }
    database.reach(daemon_topic, "parked", i64::try_from(keys.len()).unwrap()).await;
    ids
}

#[tokio::test]
async fn a_decision_is_previewed_carried_out_and_on_record() {
    let (database, kafka, daemon) = producer(&["kafka.producer.\"message.max.bytes\" = 20000"]).await;
    let topic = kafka.topic(1).await;
    let ids = parked(&database, &topic, &["a", "b", "c"]).await;
    let get = async |line: &str| request(daemon.listen, line).send().await.json();
    let post =
        async |line: &str, body: Value| request(daemon.listen, line).json(&body.to_string()).send().await;

    let reason: String =
        database.query_one("select upper(reason) from outboxd.set_aside limit 1", &[]).await.get(0);
    let part = reason.split(' ').nth(1).unwrap();
    let listed = get(&format!("GET /api/retry?topic={topic}&error={part}&limit=2")).await;
    assert_eq!(listed["items"].as_array().unwrap().len(), 2, "{listed}");
    let rest = get(&format!("GET /api/retry?topic={topic}&after={}", listed["next"].as_str().unwrap())).await;
    assert_eq!((rest["items"][0]["id"].as_str(), &rest["next"]), (Some(ids[2].as_str()), &Value::Null));
    let shown = get(&format!("GET /api/retry/{}", ids[0])).await;
    assert_eq!(shown["items"][0]["state"], "parked");

    assert!(post("POST /api/retry/discard", json!({})).await.is_problem(409, "`all`"));
    assert!(
        post("POST /api/retry/discard", json!({ "filter": { "state": "dead" } }))
            .await
            .is_problem(409, "`all`")
    );
    let preview = post("POST /api/retry/discard", json!({ "filter": { "key": "a" }, "dry_run": true })).await;
    assert_eq!((preview.status, &preview.json()["messages"]), (200, &json!(1)));
    assert_eq!(database.in_state(&topic, "parked").await, 3);

    let done = post("POST /api/retry/discard", json!({ "filter": { "key": "a" } })).await;
    let operation = done.json();
    assert_eq!((done.status, &operation["result"], &operation["messages"]), (202, &json!("done"), &json!(1)));
    assert_eq!((&operation["command"], &operation["os_user"]), (&json!("retry discard"), &json!("http")));
    let number = operation["id"].as_i64().unwrap();
    assert_eq!(get(&format!("GET /api/operations/{number}")).await["messages"], 1);
    let replayed = post("POST /api/retry/run", json!({ "ids": [ids[0], ids[1], ids[0]] })).await;
    assert_eq!(replayed.json()["messages"], 2, "{replayed:?}");
    let unknown =
        post("POST /api/retry/run", json!({ "ids": ["00000000-0000-0000-0000-000000000000"] })).await;
    assert!(unknown.is_problem(404, "no message"));
    let cancelled = request(daemon.listen, &format!("POST /api/operations/{number}/cancel")).send().await;
    assert!(cancelled.is_problem(409, "not under way"), "{cancelled:?}");
}

#[tokio::test]
async fn a_decision_about_many_comes_to_all_of_them_and_a_preview_to_no_more_than_it_shows() {
    let (database, _kafka, daemon) = producer(&[]).await;
    let dead = "insert into outboxd.failures (consumer_group, message_id, state, reason, topic, partition, \"offset\", header_names, header_values, error)
        select 'group-' || g, ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, 'dead', 'attempts', 't', 0, n, '{}', '{}', 'no'
        from generate_series(1, 2) g, generate_series(1, 5100) n";
    database.execute(dead, &[]).await;
    // As if it had died after the decision began.
    let later = "insert into outboxd.failures (consumer_group, message_id, state, reason, topic, partition, \"offset\", header_names, header_values, error, changed_at)
        select 'group-1', 'ffffffff-0000-7000-8000-000000000000', 'dead', 'attempts', 't', 0, 9999, '{}', '{}', 'no', now() + interval '1 hour'";
    database.execute(later, &[]).await;
    // A page never ends between the groups of one message.
    let (mut seen, mut after) = (0, String::new());
    for _ in 0..3 {
        let page = request(daemon.listen, &format!("GET /api/retry?limit=1{after}")).send().await.json();
        seen += page["items"].as_array().unwrap().len();
        after = format!("&after={}", page["next"].as_str().unwrap());
    }
    assert_eq!(seen, 6);
    let page = request(daemon.listen, "GET /failures/decide?decision=replay&error=no").send().await;
    assert!(page.body.contains("Replay 10,000+ messages"), "{}", page.body);
    let asked = json!({ "filter": { "error": "NO" }, "dry_run": true }).to_string();
    let preview = request(daemon.listen, "POST /api/retry/run").json(&asked).send().await.json();
    assert_eq!((&preview["messages"], preview["items"].as_array().unwrap().len()), (&json!(10_000), 20));

    let asked = json!({ "filter": { "error": "NO" } }).to_string();
    let operation = request(daemon.listen, "POST /api/retry/run").json(&asked).send().await.json();
    let line = format!("GET /api/operations/{}", operation["id"]);
    eventually("it is done", Duration::from_secs(60), async || {
        request(daemon.listen, &line).send().await.json()["result"] == "done"
    })
    .await;
    let done = request(daemon.listen, &line).send().await.json();
    assert_eq!(done["messages"], 10_200);
    assert!(done["selection"]["until"].is_string(), "{done}");
    assert_eq!(database.count("select count(*) from outboxd.failures where state = 'dead'").await, 1);
}

#[tokio::test]
async fn each_list_comes_in_pages_that_leave_nothing_out() {
    let (database, _kafka, daemon) = producer(&[]).await;
    database
        .batch(
            "insert into outboxd.groups (name, kafka_group, cluster_id) select 'Group ' || n, 'g' || n, 'c' from generate_series(1, 7) n;
             insert into outboxd.agents (id, name, role, host, pid, version, heartbeat, status, last_heartbeat_at)
             select gen_random_uuid(), 'gone', 'consumer', 'h', 1, 'v', '1 s', 'stopped', now() - n * interval '10 h' from generate_series(1, 4) n",
        )
        .await;
    let page = request(daemon.listen, "GET /agents").send().await;
    assert_eq!(page.body.matches("<article").count(), 3, "one works, two left today: {page:?}");
    assert!(page.body.contains("2 more have been gone for longer than a day"), "{page:?}");
    for (list, named, least) in [("groups", "name", 7), ("agents", "id", 5), ("jobs", "name", 5)] {
        let page = async |query: &str| {
            request(daemon.listen, &format!("GET /api/{list}?{query}")).send().await.json()
        };
        let names = |page: &Value| -> Vec<String> {
            page["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|item| item[named].as_str().unwrap().to_owned())
                .collect()
        };
        let whole = names(&page("limit=1000").await);
        assert!(whole.len() >= least, "{list}: {whole:?}");
        let (mut seen, mut after) = (Vec::new(), String::new());
        loop {
            let page = page(&format!("limit=2{after}")).await;
            assert!(page["items"].as_array().unwrap().len() <= 2, "{list}: {page}");
            seen.extend(names(&page));
            let Some(next) = page["next"].as_str() else { break };
            after = format!("&after={}", next.replace(' ', "%20"));
        }
        assert_eq!(seen, whole, "{list}");
    }
}

#[tokio::test]
async fn what_an_address_asks_for_and_there_is_not_is_refused_and_not_passed_over() {
    let (_database, _kafka, daemon) = producer(&[]).await;
    let id = "00000000-0000-7000-8000-000000000000";
    for (path, says) in [
        ("/?x=1", "unknown field"),
        ("/agents?x=1", "unknown field"),
        ("/groups?name=a", "unknown field"),
        ("/jobs?x=1", "unknown field"),
        ("/operations/1?x=1", "unknown field"),
        ("/failures?stat=dead", "unknown field"),
        ("/messages?topics=a", "unknown field"),
        ("/failures/decide?decision=replay&topics=a", "unknown field"),
        ("/messages?state=bogus", "unknown variant"),
        ("/failures?state=bogus", "unknown variant"),
        ("/failures?decision=bogus&after=1", "UUID"),
        ("/failures/decide?decision=bogus", "replay or discard"),
        ("/messages?after=x", "invalid digit"),
        ("/messages/xyz", "UUID"),
        ("/operations/x", "i64"),
        (&format!("/messages/{id}?payload=bogus"), "unknown variant"),
    ] {
        let page = request(daemon.listen, &format!("GET {path}")).send().await;
        assert_eq!(page.status, 400, "{path}: {page:?}");
        assert!(page.is_page(says), "{path}: {page:?}");
    }
    for path in [
        "/api/agents?limits=1",
        "/api/groups?name=a",
        "/api/jobs?x=1",
        "/api/messages?topics=a",
        "/api/openapi.json?x=1",
        &format!("/api/messages/{id}?payload=show"),
    ] {
        let answer = request(daemon.listen, &format!("GET {path}")).send().await;
        assert!(answer.is_problem(400, "unknown field"), "{path}: {answer:?}");
    }
    let tried =
        request(daemon.listen, "POST /api/retry/run?dry_run=true").json("{\"all\":true}").send().await;
    assert!(tried.is_problem(400, "unknown field"), "{tried:?}");
    let empty = request(daemon.listen, "GET /messages?topic=&key=&state=").send().await;
    assert_eq!(empty.status, 200, "a form sends the fields that were left empty: {empty:?}");
}

#[tokio::test]
async fn a_browser_is_told_by_a_page_and_a_program_by_a_problem() {
    let (_database, _kafka, daemon) = producer(&["http.read_only = true"]).await;
    let ask = |line: &'static str| request(daemon.listen, line).header("accept", "text/html,*/*;q=0.8");
    for (line, status, says) in [
        ("GET /nothing", 404, "nothing here"),
        ("DELETE /messages", 403, "read_only"),
        ("PUT /login", 405, "not by this method"),
        ("GET /messages/00000000-0000-7000-8000-000000000000", 404, "no message"),
        ("POST /jobs/cleanup/run", 403, "read_only"),
    ] {
        let page = ask(line).send().await;
        assert_eq!(page.status, status, "{line}: {page:?}");
        assert!(page.is_page(says), "{line}: {page:?}");
        assert!(page.header("content-security-policy").is_some(), "{line}: {page:?}");
    }
    let foreign = ask("GET /jobs").header("host", "evil.example").send().await;
    assert!(foreign.status == 403 && foreign.is_page("allowed_hosts"), "{foreign:?}");
    let no_form = ask("POST /login").json("{}").send().await;
    assert!(no_form.status == 415 && no_form.is_page("Content-Type"), "{no_form:?}");
    let other_form = ask("POST /login").form("token=x&next=/").send().await;
    assert!(other_form.status == 422 && other_form.is_page("unknown field"), "{other_form:?}");
    assert!(ask("GET /api/nothing").send().await.is_problem(404, "nothing here"));
    assert!(ask("GET /api/messages/7").send().await.is_problem(400, "UUID"));
    assert!(request(daemon.listen, "GET /nothing").send().await.is_problem(404, "nothing here"));
}

#[tokio::test]
async fn what_the_page_of_jobs_offers_can_be_done() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = kafka.topic(1).await;
    let outboxd = Outboxd::new(&database, kafka)
        .group("orders", &topic, "kind = \"log\"")
        .set("jobs.off = { schedule = \"every 1h\", enabled = false, action = { kind = \"sql\", statement = \"select 1\" } }");
    let (producer, consumer) = (outboxd.producer(), outboxd.consumer(&["orders"]));
    producer.ready().await;
    consumer.ready().await;
    let offers = async || {
        let page = request(producer.listen, "GET /jobs").send().await.body;
        let actions = page.split("action=\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned());
        actions.collect::<Vec<_>>()
    };
    let offered = |offers: &[String], path: &str| offers.iter().any(|offer| offer == path);
    eventually("all jobs are on the board", Duration::from_secs(30), async || {
        let offers = offers().await;
        offered(&offers, "/jobs/off/pause") && offered(&offers, "/jobs/consume-orders/pause")
    })
    .await;
    let first = offers().await;
    for path in ["/jobs/heartbeat/run", "/jobs/heartbeat/pause", "/jobs/consume-orders/run", "/jobs/off/run"]
    {
        assert!(!offered(&first, path), "{path} answers 409");
    }
    assert!(offered(&first, "/jobs/cleanup/run"), "{first:?}");
    for path in &first {
        let done = request(producer.listen, &format!("POST {path}")).send().await;
        assert_eq!(done.status, 303, "{path}: {done:?}");
    }
    let then = offers().await;
    assert!(offered(&then, "/jobs/consume-orders/resume") && !offered(&then, "/jobs/consume-orders/pause"));
}

#[tokio::test]
async fn a_group_is_paused_resumed_and_forgotten_on_record() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = kafka.topic(1).await;
    let group = format!("http-{:08x}", fastrand::u32(..));
    let outboxd = Outboxd::new(&database, kafka).group(&group, &topic, "kind = \"log\"");
    let consumer = outboxd.consumer(&[&group]);
    consumer.ready().await;
    let to = consumer.listen;
    let order = async |what: &str| request(to, &format!("POST /api/groups/{group}/{what}")).send().await;
    assert_eq!(order("pause").await.json()["changed"], true);
    assert_eq!(order("pause").await.json()["changed"], false);
    let shown = request(to, &format!("GET /api/groups/{group}")).send().await.json();
    assert!(shown["paused_by"].as_str().unwrap().starts_with("http from 127.0.0.1"), "{shown}");
    assert_eq!(order("resume").await.json()["changed"], true);
    assert!(order("forget").await.is_problem(409, "agents alive"));
    let agents = request(to, "GET /api/agents").send().await.json();
    assert_eq!(agents["items"][0]["role"], "consumer");
    let id = agents["items"][0]["id"].as_str().unwrap();
    for (order, changed) in [("drain", true), ("drain", false), ("resume", true)] {
        let answer = request(to, &format!("POST /api/agents/{id}/{order}")).send().await;
        assert_eq!(answer.json()["changed"], changed, "{order}: {answer:?}");
    }
    let nobody = "POST /api/agents/00000000-0000-0000-0000-000000000000/drain";
    assert!(request(to, nobody).send().await.is_problem(404, "no agent"));
    assert_eq!(request(to, "GET /api/groups").send().await.json()["items"][0]["name"], group.as_str());
    assert!(request(to, "POST /api/groups/none/pause").send().await.is_problem(404, "no group"));
    let recorded = "
        select string_agg(command || ': ' || result, ', ' order by id) from outboxd.operations where command like 'groups %'";
    assert_eq!(
        database.query_one(recorded, &[]).await.get::<_, String>(0),
        "groups pause: done, groups pause: nothing to do, groups resume: done"
    );
}
