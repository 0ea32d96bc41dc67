//! A PgBouncer of a test's own in front of the tests' Postgres, in transaction mode, from Debian's package.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use super::database::{self, PASSWORD};
use super::process::Process;
use super::unprivileged::User;
use super::{eventually, port, watchdog};

const PROGRAM: &str = "/usr/sbin/pgbouncer";
const START: Duration = Duration::from_secs(30);

/// Fewer than the clients of one daemon, and given out in turn: nobody meets the same session twice in a row.
const SERVER_CONNECTIONS: u16 = 3;

pub struct PgBouncer {
    port: u16,
    /// Ended when dropped.
    process: Process,
    _directory: TempDir,
}

impl PgBouncer {
    /// Before a server on 127.0.0.1.
    pub async fn to(upstream: u16) -> Self {
        let directory = TempDir::with_prefix("outboxd-pgbouncer-").unwrap();
        watchdog::remove(directory.path());
        let port = port::free();
        let user = User::for_postgres();
        let (ini, people) = (directory.path().join("pgbouncer.ini"), directory.path().join("users.txt"));
        std::fs::write(&ini, settings(port, upstream, &people)).unwrap();
        let people_lines = ["postgres", "app", "agent", "operator", "reader"].iter().fold(
            String::new(),
            |mut lines, name| {
                writeln!(lines, "\"{name}\" \"{PASSWORD}\"").unwrap();
                lines
            },
        );
        std::fs::write(&people, people_lines).unwrap();
        for path in [directory.path(), &ini, &people] {
            user.own(path);
        }
        assert!(Path::new(PROGRAM).exists(), "PgBouncer is missing: run `make setup`");
        let mut command = user.command(Path::new(PROGRAM));
        let log = directory.path().join("log");
        let process = Process::start("PgBouncer", command.arg(&ini), &log, "KILL");
        let bouncer = Self { port, process, _directory: directory };
        eventually("PgBouncer answers", START, async || {
            assert!(bouncer.process.exited().is_none(), "it ended. {}", bouncer.process.last_words());
            database::try_connect(&bouncer.console()).await.is_ok()
        })
        .await;
        bouncer
    }

    /// On 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The same URL by way of this PgBouncer.
    pub fn reroute(&self, url: &str) -> String {
        let (before, after) = url.split_once("127.0.0.1:").expect("a URL of a test server");
        let (_, database) = after.split_once('/').expect("a URL with a database");
        format!("{before}127.0.0.1:{}/{database}", self.port)
    }

    /// Other clients of that database and user, who keep all its server connections in turn, until dropped.
    pub async fn crowd(&self, url: &str) -> JoinSet<()> {
        let mut crowd = JoinSet::new();
        for _ in 0..SERVER_CONNECTIONS {
            let url = self.reroute(url);
            let client = database::connect(&url).await;
            client.batch_execute("begin").await.unwrap();
            crowd.spawn(async move {
                // Not waits: work that keeps a server connection busy, so that each next transaction meets another.
                let _ = client.batch_execute("select pg_sleep(0.2); commit").await;
                let mut client = Some(client);
                loop {
                    match &client {
                        Some(busy) if busy.batch_execute("select pg_sleep(0.005)").await.is_ok() => {}
                        _ => client = database::try_connect(&url).await.ok(),
                    }
                    // A client that thinks, and leaves the connection to others meanwhile.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
        }
        crowd
    }

    fn console(&self) -> String {
        database::url(&format!("postgres:{PASSWORD}"), self.port, "pgbouncer")
    }

    /// Its administration console, which speaks the simple protocol only.
    pub async fn admin(&self) -> Client {
        database::connect(&self.console()).await
    }

    /// Frees the server connections as soon as they are idle, and makes new ones.
    pub async fn reconnect(&self) {
        self.admin().await.batch_execute("RECONNECT").await.unwrap();
    }

    /// Drops all connections of that database, of clients and to the server, in the middle of whatever they do; then
    /// it lets them in again.
    pub async fn kill_connections(&self, database: &str) {
        let admin = self.admin().await;
        admin.batch_execute(&format!("KILL {database}")).await.unwrap();
        admin.batch_execute(&format!("RESUME {database}")).await.unwrap();
    }
}

fn settings(port: u16, upstream: u16, people: &Path) -> String {
    format!(
        "[databases]
* = host=127.0.0.1 port={upstream}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {people}
admin_users = postgres
pool_mode = transaction
default_pool_size = {SERVER_CONNECTIONS}
server_round_robin = 1
max_client_conn = 200
",
        people = people.display()
    )
}
