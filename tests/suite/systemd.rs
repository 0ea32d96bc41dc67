//! What systemd is told, and the units that it is given.

use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::{TcpListener, UnixDatagram};

use crate::support::{Daemon, Kafka, Outboxd, Postgres};

const SOON: Duration = Duration::from_secs(30);

const BITES: Duration = Duration::from_secs(4);

/// Stands in for systemd.
struct Systemd {
    socket: UnixDatagram,
    directory: TempDir,
}

impl Systemd {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        Self { socket, directory }
    }

    /// With a watchdog that bites after that time.
    fn starts(&self, outboxd: Outboxd) -> Outboxd {
        let socket = self.directory.path().join("notify");
        outboxd
            .env("NOTIFY_SOCKET", socket.to_str().unwrap())
            .env("WATCHDOG_USEC", &BITES.as_micros().to_string())
    }

    async fn next(&self) -> String {
        let mut buffer = [0; 4096];
        let received = tokio::time::timeout(SOON, self.socket.recv(&mut buffer)).await;
        let length = received.expect("systemd is told something").unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    /// All that it is told until a line begins so, that line included.
    async fn until(&self, begin: &str) -> Vec<String> {
        let mut told: Vec<String> = Vec::new();
        while !told.iter().any(|line| line.starts_with(begin)) {
            told.extend(self.next().await.lines().map(str::to_owned));
        }
        told
    }

    fn has_been_told_nothing(&self) -> bool {
        self.socket.try_recv(&mut [0; 16]).is_err()
    }
}

async fn feeds_its_watchdog(systemd: &Systemd, daemon: &Daemon) {
    for _ in 0..3 {
        let fed = tokio::time::timeout(BITES, systemd.until("WATCHDOG=1"));
        assert!(fed.await.is_ok(), "the watchdog bites:\n{}", daemon.log());
    }
}

#[tokio::test]
async fn systemd_is_told_of_start_standing_and_end() {
    let (postgres, kafka) = (Postgres::private().await, Kafka::shared().await);
    let database = postgres.database().await;
    postgres.stop().await;
    let systemd = Systemd::new();
    let daemon = systemd.starts(Outboxd::new(&database, kafka)).producer();
    assert_eq!(systemd.until("READY=1").await, ["READY=1"], "ready comes first, without a database too");
    daemon.get("/healthz").await.expect("the listener is bound by then");
    systemd.until("STATUS=PostgreSQL at").await;
    feeds_its_watchdog(&systemd, &daemon).await;

    postgres.start().await;
    systemd.until("STATUS=working").await;
    feeds_its_watchdog(&systemd, &daemon).await;

    daemon.terminate();
    systemd.until("STOPPING=1").await;
    assert_eq!(daemon.wait_exit().await, Some(0));
}

#[tokio::test]
async fn systemd_is_not_told_ready_by_a_daemon_that_cannot_start() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let database = postgres.database().await;
    let systemd = Systemd::new();
    let wrong = systemd.starts(Outboxd::with_config("producer.leese = \"2s\"")).run(&["producer"]).await;
    assert_eq!(wrong.code, 2, "{wrong:?}");
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let outboxd = systemd.starts(Outboxd::new(&database, kafka));
    let refused = outboxd.run(&["producer", "--listen", &listen]).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains(&listen), "{refused:?}");
    assert!(systemd.has_been_told_nothing());
}

#[tokio::test]
async fn systemd_is_told_of_a_reload_also_of_one_that_changes_nothing() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let systemd = Systemd::new();
    let outboxd = systemd.starts(Outboxd::new(&database, kafka));
    let daemon = outboxd.producer();
    daemon.ready().await;
    systemd.until("STATUS=working").await;
    for text in [None, Some("what is no configuration")] {
        if let Some(text) = text {
            std::fs::write(outboxd.config(), text).unwrap();
        }
        daemon.reload();
        let told = systemd.until("READY=1").await;
        let begin = told.iter().position(|line| line == "RELOADING=1").expect("it says that it reloads");
        assert!(told[begin + 1].starts_with("MONOTONIC_USEC="), "{told:?}");
    }
    assert!(daemon.is_running());
}

#[test]
fn the_units_are_valid_and_confined() {
    let checked =
        Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/check-units.sh")).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}
