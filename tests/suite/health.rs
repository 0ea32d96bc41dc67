//! `outboxd health`, completions and manual pages: what a container, a shell and a reader of manuals get.

use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::{Kafka, Outboxd, Postgres, port};

#[tokio::test]
async fn health_tells_a_ready_daemon_from_one_that_waits_and_from_nobody() {
    let (postgres, kafka) = (Postgres::private().await, Kafka::shared().await);
    let database = postgres.database().await;
    let outboxd = Outboxd::new(&database, kafka).set("agent.name = \"relay\"");
    let daemon = outboxd.producer();
    daemon.ready().await;
    let url = format!("http://{}", daemon.listen);

    let ready = outboxd.run(&["health", "--url", &url]).await;
    assert_eq!((ready.code, ready.stderr.as_str()), (0, ""), "{ready:?}");
    assert!(ready.stdout.contains("[+] database ok"), "{ready:?}");
    let named = outboxd.run(&["health", "--name", "relay", "--json"]).await;
    let document: Value = serde_json::from_str(&named.stdout).unwrap();
    assert_eq!((named.code, &document["status"]), (0, &"ready".into()), "{named:?}");
    assert_eq!(outboxd.run(&["health", "--name", "nobody"]).await.code, 4);
    // As in a container, whose daemon listens everywhere.
    let listen = format!("http.listen = \"0.0.0.0:{}\"", daemon.listen.port());
    let by_file = Outboxd::new(&database, kafka).set(&listen).run(&["health"]).await;
    assert_eq!(by_file.code, 0, "{by_file:?}");

    postgres.stop().await;
    crate::support::eventually("it is not ready", std::time::Duration::from_secs(60), async || {
        let waits = outboxd.run(&["health", "--url", &url]).await;
        waits.code == 1 && waits.stdout.contains("[-] ")
    })
    .await;

    daemon.kill();
    for arguments in [&["health", "--url", &url][..], &["health", "--url", &url, "--json"]] {
        let nobody = outboxd.run(arguments).await;
        assert_eq!(nobody.code, 1, "{nobody:?}");
        assert!(nobody.stdout.contains(&url), "{nobody:?}");
    }
}

#[tokio::test]
async fn health_does_not_wait_for_one_who_says_nothing_and_takes_no_strangers_word() {
    let outboxd = Outboxd::with_config("postgres.url = \"postgres://nowhere/app\"");
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let waited = outboxd.run(&["health", "--url", &url, "--timeout", "200ms"]).await;
    assert_eq!(waited.code, 1, "{waited:?}");
    assert!(waited.stdout.contains("no answer within 200ms"), "{waited:?}");

    let stranger = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", stranger.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = stranger.accept().await {
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n\x1b[2Jhello").await;
        }
    });
    let answer = outboxd.run(&["health", "--url", &url, "--json"]).await;
    assert_eq!(answer.code, 1, "{answer:?}");
    assert!(!answer.stdout.contains('\u{1b}'), "{answer:?}");
    assert_eq!(outboxd.run(&["health", "--url", "https://127.0.0.1:1"]).await.code, 2);
    let nobody = Outboxd::with_config(&format!(
        "postgres.url = \"postgres://nowhere/app\"\nhttp.listen = \"127.0.0.1:{}\"",
        port::free()
    ));
    assert_eq!(nobody.run(&["health"]).await.code, 1);
}

#[tokio::test]
async fn each_shell_gets_completions_that_it_can_read() {
    let outboxd = Outboxd::with_config("");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let made = outboxd.run(&["completions", shell]).await;
        assert_eq!((made.code, made.stderr.as_str()), (0, ""), "{shell}");
        assert!(made.stdout.contains("doctor"), "{shell}");
    }
    let directory = TempDir::new().unwrap();
    let script = directory.path().join("outboxd");
    std::fs::write(&script, outboxd.run(&["completions", "bash"]).await.stdout).unwrap();
    let complete = "source \"$1\"; COMP_WORDS=(outboxd do); COMP_CWORD=1; _outboxd outboxd do outboxd; echo \"${COMPREPLY[@]}\"";
    let completed = Command::new("bash").args(["-c", complete, "bash"]).arg(&script).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&completed.stdout).trim(), "doctor", "{completed:?}");
    assert_eq!(outboxd.run(&["completions", "tcsh"]).await.code, 2);
}

#[tokio::test]
async fn each_command_has_a_manual_page_with_its_options() {
    let outboxd = Outboxd::with_config("");
    let one = outboxd.run(&["man"]).await;
    assert_eq!((one.code, one.stderr.as_str()), (0, ""));
    assert!(one.stdout.contains(".TH OUTBOXD 1"), "{}", one.stdout);

    let directory = TempDir::new().unwrap();
    let written = outboxd.run(&["man", "--directory", directory.path().to_str().unwrap()]).await;
    assert_eq!((written.code, written.stdout.as_str()), (0, ""), "{written:?}");
    let page = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
    assert!(page("outboxd-producer.1").contains("SIGTERM"));
    assert!(page("outboxd-groups-forget.1").contains("\\-\\-yes"));
    assert_eq!(page("outboxd.1"), one.stdout);
    let nowhere = outboxd.run(&["man", "--directory", "/nonexistent/there"]).await;
    assert!(nowhere.code == 1 && nowhere.stderr.contains("/nonexistent/there"), "{nowhere:?}");
}
