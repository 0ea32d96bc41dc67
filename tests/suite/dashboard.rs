//! The dashboard in a real browser: every page, a replay clicked through, by keyboard, dark, on a phone; and what
//! strangers write is shown, never run.

use serde_json::json;

use crate::support::browser::Browser;
use crate::support::http::request;
use crate::support::{Daemon, Database, Kafka, Outboxd, Postgres, eventually};

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

const SCRIPT: &str = "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\">";

struct Scene {
    database: Database,
    topic: String,
    group: String,
    producer: Daemon,
    _consumer: Daemon,
    _handler: tempfile::TempDir,
    /// While it is there, the handler fails.
    broken: std::path::PathBuf,
}

/// A shop whose handler refuses some messages, with one that Kafka refused.
async fn scene(settings: &[&str]) -> Scene {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = format!("orders-{:08x}", fastrand::u32(..));
    kafka.create_topic(&topic, 3, &[]).await;
    let group = format!("shop-{:08x}", fastrand::u32(..));
    let directory = tempfile::TempDir::new().unwrap();
    let broken = directory.path().join("broken");
    std::fs::write(&broken, "").unwrap();
    let script = directory.path().join("handle");
    let text = format!(
        "#!/bin/sh\nread -r line\ncase $line in *refuse*) test ! -e {} || {{ echo 'the card of this customer is refused <b>' >&2; exit 1; }} ;; esac\n",
        broken.display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let outboxd = Outboxd::new(&database, kafka)
        .group(&group, &topic, &format!("kind = \"exec\"\ncommand = [\"{}\"]", script.display()))
        .set(&format!("groups.{group}.retry.max_attempts = 1"))
        .set("agent.heartbeat = \"1s\"")
        .set("http.environment = \"production\"")
        .set("kafka.producer.\"message.max.bytes\" = 20000");
    let outboxd = settings.iter().fold(outboxd, |outboxd, line| outboxd.set(line));
    let (producer, consumer) = (outboxd.producer(), outboxd.consumer(&[&group]));
    producer.ready().await;
    consumer.ready().await;
    let sql = "insert into outboxd.messages (topic, key, payload, type)
        select $1, 'customer-' || n, convert_to(case when n % 5 = 0 then 'refuse' else '{\"order\": ' || n || '}' end, 'UTF8'), 'OrderPlaced'
        from generate_series(1, 20) n";
    database.execute(sql, &[&topic]).await;
    let parked = "insert into outboxd.messages (topic, key, payload, headers) values ($1, $2, convert_to($2 || repeat('x', 30000), 'UTF8'), jsonb_build_object('x', $2))";
    database.execute(parked, &[&topic, &SCRIPT]).await;
    database.reach(&topic, "parked", 1).await;
    let dead = "select count(*) from outboxd.failures where state = 'dead'";
    eventually("four are dead letters", PATIENCE, async || database.count(dead).await == 4).await;
    Scene { database, topic, group, producer, _consumer: consumer, _handler: directory, broken }
}

#[tokio::test]
async fn every_page_is_there_by_keyboard_dark_and_on_a_phone() {
    let scene = scene(&[]).await;
    let site = format!("http://{}", scene.producer.listen);
    let mut browser = Browser::start().await;
    browser.resize(1280, 900).await;
    let sql = "select id::text from outboxd.message_states where topic = $1 and key = 'customer-5'";
    let id: String = scene.database.query_one(sql, &[&scene.topic]).await.get(0);
    // A decision on record, about what Kafka refused.
    let discard = format!("decision=discard&state=parked&topic={}", scene.topic);
    let decided = request(scene.producer.listen, "POST /failures/decide").form(&discard).send().await;
    let operation = decided.header("location").unwrap().to_owned();
    let pages = [
        ("overview", "/".to_owned(), vec!["oldest pending", scene.group.as_str(), "refused <b>"]),
        ("messages", format!("/messages?topic={}", scene.topic), vec!["customer-20", "published"]),
        (
            "message",
            format!("/messages/{id}"),
            vec!["Time line", "failed, attempt 1", "Show headers and payload"],
        ),
        ("failures", "/failures".to_owned(), vec!["Replay all that fit", "dead", "Replay…"]),
        (
            "preview",
            format!("/failures/decide?decision=replay&group={}", scene.group),
            vec!["Replay 4 messages", "Send again"],
        ),
        ("operation", operation, vec!["retry discard", "1 message; done."]),
        ("problem", "/messages/none".to_owned(), vec!["Bad Request", "Back to the overview"]),
        ("groups", "/groups".to_owned(), vec![scene.group.as_str(), "Pause"]),
        ("agents", "/agents".to_owned(), vec!["producer", "resident"]),
        ("jobs", "/jobs".to_owned(), vec!["cleanup", "Run now"]),
    ];
    for (name, path, shown) in pages {
        browser.open(&format!("{site}{path}")).await;
        let text = browser.text().await;
        for part in shown {
            assert!(text.contains(part), "{name}: no {part:?} in {text}");
        }
        let title = browser.evaluate("document.title").await;
        assert!(!title.as_str().unwrap().contains("run"), "{name}");
        browser.screenshot(name).await;
        assert_eq!(browser.without_a_name().await, Vec::<String>::new(), "{name}");
        assert_eq!(browser.out_of_reach().await, Vec::<String>::new(), "{name}");
        browser.resize(390, 844).await;
        let wide = browser.evaluate("document.documentElement.scrollWidth").await;
        assert!(wide.as_u64().unwrap() <= 390, "{name} is {wide} wide on a phone");
        browser.screenshot(&format!("{name}-phone")).await;
        browser.resize(1280, 900).await;
        browser.colour_scheme("dark").await;
        browser.screenshot(&format!("{name}-dark")).await;
        browser.colour_scheme("light").await;
    }
    // A payload is shown when it is asked for.
    browser.open(&format!("{site}/messages/{id}")).await;
    assert!(!browser.text().await.contains("refuse\n"));
    browser.follow("a.button").await;
    assert!(browser.evaluate("document.querySelector('pre').innerText").await == json!("refuse"));
}

#[tokio::test]
async fn a_replay_is_clicked_through_and_a_script_is_only_text() {
    let scene = scene(&[]).await;
    let site = format!("http://{}", scene.producer.listen);
    std::fs::remove_file(&scene.broken).unwrap();
    let mut browser = Browser::start().await;
    // All of it works without the one script.
    browser.run_no_scripts().await;
    browser.open(&format!("{site}/failures?group={}&state=dead", scene.group)).await;
    browser.follow("a[href*='decision=replay'].button").await;
    assert!(browser.text().await.contains("Replay 4 messages"));
    browser.follow("main button").await;
    assert!(browser.text().await.contains("4 messages; done."), "{}", browser.text().await);
    let handled = "select count(*) from outboxd.handled";
    eventually("all are handled", PATIENCE, async || scene.database.count(handled).await == 20).await;
    let recorded = scene
        .database
        .query_one("select os_user, messages from outboxd.operations where command = 'retry run'", &[])
        .await;
    assert_eq!((recorded.get::<_, String>(0), recorded.get::<_, i64>(1)), ("http".to_owned(), 4));

    // Out of service, which asks twice, and back.
    let producer = "select id::text, status from outboxd.agents where role = 'producer'";
    let id: String = scene.database.query_one(producer, &[]).await.get(0);
    for (press, becomes) in [("details button", "draining"), (".actions button", "active")] {
        browser.open(&format!("{site}/agents")).await;
        let unfold = format!("document.querySelector(\"article[id='{id}'] summary\")?.click()");
        browser.evaluate(&unfold).await;
        browser.follow(&format!("article[id='{id}'] {press}")).await;
        eventually(becomes, PATIENCE, async || {
            scene.database.query_one(producer, &[]).await.get::<_, String>(1) == becomes
        })
        .await;
    }

    let sql = "select id::text from outboxd.message_states where state = 'parked'";
    let id: String = scene.database.query_one(sql, &[]).await.get(0);
    for path in [
        format!("/messages/{id}?payload=show"),
        "/failures".to_owned(),
        "/messages".to_owned(),
        format!("/messages?key={}", "%3Cscript%3Ealert(1)%3C%2Fscript%3E"),
    ] {
        browser.open(&format!("{site}{path}")).await;
        assert!(browser.text().await.contains("<script>") || path.contains("alert"), "{path}");
        assert!(!browser.evaluate("document.title").await.as_str().unwrap().contains("run"), "{path}");
        assert_eq!(
            browser.evaluate("document.querySelectorAll('main script, main img').length").await,
            json!(0)
        );
    }
    let page = request(scene.producer.listen, "GET /failures").send().await;
    assert!(page.header("content-security-policy").unwrap().contains("default-src 'none'"));
}

#[tokio::test]
async fn a_browser_signs_in_with_the_token_and_a_site_that_only_reads_offers_nothing_to_press() {
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, "open-sesame").unwrap();
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let producer = Outboxd::new(&database, kafka)
        .set(&format!("http.token_file = \"{}\"", file.display()))
        .set("http.read_only = true")
        .producer();
    producer.ready().await;
    let site = format!("http://{}", producer.listen);
    let mut browser = Browser::start().await;
    browser.open(&format!("{site}/jobs")).await;
    assert!(browser.text().await.contains("Sign in"));
    browser.screenshot("login").await;
    assert_eq!(browser.without_a_name().await, Vec::<String>::new());
    assert_eq!(browser.out_of_reach().await, Vec::<String>::new());
    browser.evaluate("document.querySelector('input').value = 'wrong'").await;
    browser.follow("button").await;
    assert!(browser.text().await.contains("That is not the token."));
    browser.evaluate("document.querySelector('input').value = 'open-sesame'").await;
    browser.follow("button").await;
    assert!(browser.text().await.contains("read only"));
    for path in ["/", "/jobs", "/groups", "/failures", "/agents"] {
        browser.open(&format!("{site}{path}")).await;
        assert_eq!(
            browser.evaluate("document.querySelectorAll('form[method=post]').length").await,
            json!(0),
            "{path}"
        );
    }
    let forged =
        request(producer.listen, "POST /jobs/cleanup/run").header("cookie", "outboxd=x").send().await;
    assert_eq!(forged.status, 401, "{forged:?}");
    let foreign = request(producer.listen, "POST /jobs/cleanup/run")
        .header("origin", "http://evil.example")
        .send()
        .await;
    assert_eq!(foreign.status, 403, "{foreign:?}");
}
