//! What strangers, mistakes and malice send.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::producer;
use crate::support::http::request;
use crate::support::{Kafka, Outboxd, Postgres, eventually, port};

#[tokio::test]
async fn what_is_malformed_has_a_problem_for_an_answer() {
    let (database, _, daemon) = producer(&[]).await;
    let to = daemon.listen;
    for body in [
        "",
        "{",
        "[1",
        "7",
        "null",
        "{\"topic\":1}",
        "{\"topic\":\"t\"}",
        "{\"topci\":\"t\",\"payload\":1}",
        "\u{0}",
    ] {
        let answer = request(to, "POST /api/messages").json(body).send().await;
        assert!(answer.is_problem(400, ""), "{body:?}: {answer:?}");
    }
    let deep = "[".repeat(200_000);
    assert!(request(to, "POST /api/messages").json(&deep).send().await.is_problem(400, ""));
    let unnamed = request(to, "POST /api/messages").body("{}").send().await;
    assert!(unnamed.is_problem(415, "application/json"), "{unnamed:?}");
    let form = request(to, "POST /api/messages").form("topic=t").send().await;
    assert!(form.is_problem(415, "application/json"), "{form:?}");
    for (line, status) in [
        ("GET /api/messages?limit=x", 400),
        ("GET /api/messages?limit=0", 400),
        ("GET /api/messages?limit=100000", 400),
        ("GET /api/messages?after=99999999999999999999", 400),
        ("GET /api/messages?colour=red", 400),
        ("GET /api/messages?key=%00", 400),
        ("GET /api/messages/7", 400),
        ("GET /api/messages/00000000-0000-7000-8000-000000000000", 404),
        ("GET /api/retry/00000000-0000-0000-0000-000000000000", 404),
        ("GET /api/retry?state=lost", 400),
        ("GET /api/groups/%00", 404),
        ("GET /api/operations/-1", 404),
        ("GET /api/nothing", 404),
        ("GET /../../etc/passwd", 404),
        ("DELETE /api/messages", 405),
        ("POST /healthz", 405),
        ("GET /api/retry/run", 405),
    ] {
        let answer = request(to, line).send().await;
        assert!(answer.is_problem(status, ""), "{line}: {answer:?}");
    }
    assert_eq!(database.count("select count(*) from outboxd.messages").await, 0);
    assert!(!daemon.log().contains("panicked"));
}

#[tokio::test]
async fn what_is_malformed_has_a_page_for_an_answer_on_the_dashboard() {
    let (_database, _, daemon) = producer(&[]).await;
    for (line, form, status) in [
        ("GET /messages?key=%00", "", 400),
        ("GET /messages?after=-9999999999999999999", "", 400),
        ("GET /failures?error=%00", "", 400),
        ("GET /failures/decide", "", 400),
        ("GET /failures/decide?decision=replay&id=7", "", 400),
        ("POST /failures/decide", "", 400),
        ("POST /failures/decide", "decision=replay&state=bogus", 422),
        ("POST /failures/decide", "decision=%00", 400),
        ("POST /failures/decide", "decision=replay&topic=%00", 400),
        ("POST /operations/1/cancel", "", 409),
        ("POST /groups/%00/pause", "", 404),
        ("POST /groups/none/forget", "", 404),
        ("POST /agents/7/drain", "", 400),
        ("POST /jobs/%3Cscript%3E/run", "", 404),
    ] {
        let answer = request(daemon.listen, line).form(form).send().await;
        assert!(
            answer.status == status && answer.is_page("Back to the overview"),
            "{line} {form}: {answer:?}"
        );
        assert!(!answer.body.contains("<script>"), "{line}: {answer:?}");
    }
    let huge = format!("token={}", "x".repeat(10_000));
    let huge = request(daemon.listen, "POST /login").form(&huge).send().await;
    assert!(huge.status == 413 && huge.is_page("Back to the overview"), "{huge:?}");
    // Whatever bytes a name has, it is looked for.
    for line in ["GET /messages?topic=%ff", "GET /messages?key=%27%3B--", "GET /failures?error=%25_%5C"] {
        assert_eq!(request(daemon.listen, line).send().await.status, 200, "{line}");
    }
    assert!(!daemon.log().contains("panicked") && daemon.is_running());
}

#[tokio::test]
async fn a_huge_body_and_a_huge_head_are_refused() {
    let (_database, _, daemon) = producer(&[]).await;
    let huge = "x".repeat(17 << 20);
    let answer = request(daemon.listen, "POST /api/messages").json(&huge).send().await;
    assert!(answer.is_problem(413, ""), "{}", answer.head);
    let head = request(daemon.listen, "GET /api/agents").header("x-huge", &"x".repeat(100_000)).send().await;
    assert_eq!(head.status, 431, "{head:?}");
    let mut many = request(daemon.listen, "GET /api/agents");
    for number in 0..200 {
        many = many.header(&format!("x-{number}"), "1");
    }
    assert_eq!(many.send().await.status, 431);
}

#[tokio::test]
async fn a_page_elsewhere_and_a_foreign_name_reach_nothing_but_health() {
    let (_database, _, daemon) = producer(&["http.allowed_hosts = [\"outboxd.example\"]"]).await;
    let to = daemon.listen;
    for host in ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80"] {
        let answer = request(to, "GET /api/agents").header("host", host).send().await;
        assert!(answer.is_problem(403, "allowed_hosts"), "{host}: {answer:?}");
        assert_eq!(request(to, "GET /healthz").header("host", host).send().await.status, 200);
        assert_eq!(request(to, "GET /metrics").header("host", host).send().await.status, 200);
    }
    for host in ["outboxd.example", "outboxd.example:1", "localhost", "127.0.0.1"] {
        let answer = request(to, "GET /api/agents").header("host", host).send().await;
        assert_eq!(answer.status, 200, "{host}: {answer:?}");
    }
    for (name, value) in
        [("origin", "http://evil.example"), ("origin", "null"), ("sec-fetch-site", "cross-site")]
    {
        let body = json!({ "topic": "t", "payload": 1 }).to_string();
        let answer = request(to, "POST /api/messages").header(name, value).json(&body).send().await;
        assert!(answer.is_problem(403, "another site"), "{value}: {answer:?}");
        let read = request(to, "GET /api/agents").header(name, value).send().await;
        assert!(read.is_problem(403, "another site"), "{value}: {read:?}");
    }
    let own = request(to, "GET /api/agents").header("origin", &format!("http://{to}")).send().await;
    assert_eq!(own.status, 200);
}

#[tokio::test]
async fn without_the_token_nobody_gets_in_and_with_it_reading_only_stays_reading() {
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, "open-sesame\n").unwrap();
    let token_file = format!("http.token_file = \"{}\"", file.display());
    let (_database, _, daemon) = producer(&[&token_file, "http.read_only = true"]).await;
    let to = daemon.listen;
    assert_eq!(request(to, "GET /healthz").send().await.status, 200);
    for given in ["", "Bearer", "Bearer ", "Bearer open-sesam", "Bearer open-sesame2", "Basic open-sesame"] {
        let answer = request(to, "GET /api/agents").header("authorization", given).send().await;
        assert!(answer.is_problem(401, "token"), "{given}: {answer:?}");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        assert!(!answer.body.contains("sesame"));
    }
    let get = |given: &'static str| request(to, "GET /api/agents").header("authorization", given).send();
    let answer = get("Bearer open-sesame").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let body = json!({ "topic": "t", "payload": 1 }).to_string();
    let post = request(to, "POST /api/messages").header("authorization", "Bearer open-sesame");
    assert!(post.json(&body).send().await.is_problem(403, "read_only"));
    // It is read each time.
    std::fs::write(&file, "other").unwrap();
    assert_eq!(get("Bearer open-sesame").await.status, 401);
    assert_eq!(get("Bearer other").await.status, 200);
    std::fs::remove_file(&file).unwrap();
    assert!(get("Bearer other").await.is_problem(503, "token_file"));
    assert!(!daemon.log().contains("sesame"));
}

#[tokio::test]
async fn off_loopback_nothing_but_health_is_open_without_a_token() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let address = std::net::SocketAddr::from(([0, 0, 0, 0], port::free()));
    let outboxd = Outboxd::new(&database, kafka);
    let mut command = outboxd.command(&["producer"]);
    command.args(["--listen", &address.to_string()]);
    let to = std::net::SocketAddr::from(([127, 0, 0, 1], address.port()));
    let directory = std::sync::Arc::new(tempfile::TempDir::new().unwrap());
    let daemon = crate::support::Daemon::start("a producer off loopback", &mut command, to, directory);
    daemon.ready().await;
    assert_eq!(request(to, "GET /metrics").send().await.status, 200);
    let answer = request(to, "GET /api/agents").send().await;
    assert!(answer.is_problem(403, "token_file"), "{answer:?}");
}

#[tokio::test]
async fn idle_and_slow_clients_neither_stop_the_relay_nor_the_probes() {
    let (database, kafka, daemon) = producer(&[]).await;
    let topic = kafka.topic(1).await;
    let to = daemon.listen;
    let published = async |count: i64| {
        let since = Instant::now();
        let sql =
            "insert into outboxd.messages (topic, payload) select $1, 'x' from generate_series(1, 5000)";
        database.execute(sql, &[&topic]).await;
        database.reach(&topic, "published", count).await;
        since.elapsed()
    };
    // The first ones find everything cold.
    published(5_000).await;
    let before = published(10_000).await;

    let mut idle = Vec::new();
    for _ in 0..1_000 {
        idle.push(TcpStream::connect(to).await.unwrap());
    }
    // A byte now and then never makes a request.
    let mut slow = TcpStream::connect(to).await.unwrap();
    let began = Instant::now();
    let crawl = tokio::spawn(async move {
        for byte in b"GET /api/agents HTTP/1.1\r\nhost: localhost\r\n".iter().cycle() {
            if slow.write_all(&[*byte]).await.is_err() {
                break;
            }
            // The speed of a slow client, not a wait.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        began.elapsed()
    });
    // A body that stops in the middle holds nothing either.
    let mut half = TcpStream::connect(to).await.unwrap();
    half.write_all(b"POST /api/messages HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{")
        .await
        .unwrap();
    for path in ["GET /healthz", "GET /readyz", "GET /metrics", "GET /api/agents"] {
        let asked = Instant::now();
        assert_eq!(request(to, path).send().await.status, 200, "{path}");
        assert!(asked.elapsed() < Duration::from_secs(5), "{path}: {:?}", asked.elapsed());
    }
    let beside = published(15_000).await;
    println!("5,000 messages took {before:?} alone, {beside:?} beside a thousand idle clients and slow ones");
    assert!(beside < before * 5 + Duration::from_secs(5), "{before:?} alone, {beside:?} beside them");

    let lasted = tokio::time::timeout(Duration::from_secs(30), crawl).await.expect("it is cut").unwrap();
    assert!(lasted >= Duration::from_secs(8), "{lasted:?}");
    let mut left = [0; 1];
    let closed = tokio::time::timeout(Duration::from_secs(30), idle[0].read(&mut left)).await;
    assert!(matches!(closed, Ok(Ok(0) | Err(_))), "an idle connection is ended: {closed:?}");
    assert_eq!(request(to, "GET /healthz").send().await.status, 200);
    assert!(!daemon.log().contains("panicked"));
}

#[tokio::test]
async fn without_its_database_it_says_so_and_health_goes_on() {
    let (postgres, kafka) = (Postgres::private().await, Kafka::shared().await);
    let database = postgres.database().await;
    let daemon = Outboxd::new(&database, kafka).producer();
    daemon.ready().await;
    assert_eq!(request(daemon.listen, "GET /api/agents").send().await.status, 200);
    postgres.stop().await;
    let answer = request(daemon.listen, "GET /api/agents").send().await;
    assert!(answer.is_problem(503, ""), "{answer:?}");
    assert!(!answer.body.contains(crate::support::PASSWORD));
    assert_eq!(request(daemon.listen, "GET /healthz").send().await.status, 200);
    assert_eq!(request(daemon.listen, "GET /metrics").send().await.status, 200);
    // Its loops learn of it one after the other.
    eventually("it is not ready", Duration::from_secs(60), async || {
        request(daemon.listen, "GET /readyz").send().await.status == 503
    })
    .await;
    postgres.start().await;
    daemon.ready().await;
    assert_eq!(request(daemon.listen, "GET /api/agents").send().await.status, 200);
}
