//! A database for one test.

use std::time::Duration;

use outboxd::config::Config;
use outboxd::pg::{Connector, Pool};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Row};

use super::eventually;

/// Of the roles `app`, `agent`, `operator` and `reader`; nothing that outboxd prints may contain it.
pub const PASSWORD: &str = "hush-hush";

const PATIENCE: Duration = Duration::from_secs(60);

type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

pub struct Database {
    pub name: String,
    /// As the superuser, who needs no password.
    pub url: String,
    port: u16,
    kept: bool,
}

impl Database {
    pub(super) async fn create(port: u16, template: Option<&str>) -> Self {
        Self::create_named(port, &format!("test_{:016x}", fastrand::u64(..)), template).await
    }

    pub(super) async fn create_named(port: u16, name: &str, template: Option<&str>) -> Self {
        let template = template.unwrap_or("template0");
        let admin = connect(&url("postgres", port, "postgres")).await;
        admin.batch_execute(&format!("create database {name} template {template}")).await.unwrap();
        Self { name: name.to_owned(), url: url("postgres", port, name), port, kept: false }
    }

    /// The one of the same name at another port.
    pub(super) fn at(&self, port: u16) -> Self {
        Self { name: self.name.clone(), url: url("postgres", port, &self.name), port, kept: true }
    }

    pub(super) fn keep(&mut self) {
        self.kept = true;
    }

    /// As an application: a member of `outboxd_app`.
    pub fn app_url(&self) -> String {
        self.url_as("app")
    }

    /// As a daemon: a member of `outboxd_agent`.
    pub fn agent_url(&self) -> String {
        self.url_as("agent")
    }

    /// The same, for parts of the daemon that run in a test.
    pub fn agent_pool(&self) -> Pool {
        let text = format!("postgres.url = \"{}\"", self.agent_url());
        let config = Config::parse(&text, None, []).unwrap().config;
        Pool::new(&Connector::new(&config.postgres, "outboxd/test")).unwrap()
    }

    /// As whoever operates it: a member of `outboxd_operator`.
    pub fn operator_url(&self) -> String {
        self.url_as("operator")
    }

    /// As whoever only looks: a member of `outboxd_reader`.
    pub fn reader_url(&self) -> String {
        self.url_as("reader")
    }

    fn url_as(&self, role: &str) -> String {
        url(&format!("{role}:{PASSWORD}"), self.port, &self.name)
    }

    /// A session of the superuser.
    pub async fn connect(&self) -> Client {
        connect(&self.url).await
    }

    /// A session of an application.
    pub async fn connect_app(&self) -> Client {
        connect(&self.app_url()).await
    }

    /// One statement of the superuser, in a session of its own, as all of these.
    pub async fn execute(&self, sql: &str, params: Params<'_>) -> u64 {
        self.connect().await.execute(sql, params).await.unwrap()
    }

    pub async fn query(&self, sql: &str, params: Params<'_>) -> Vec<Row> {
        self.connect().await.query(sql, params).await.unwrap()
    }

    pub async fn query_one(&self, sql: &str, params: Params<'_>) -> Row {
        self.connect().await.query_one(sql, params).await.unwrap()
    }

    /// `select count(*)` and the like.
    pub async fn count(&self, sql: &str) -> i64 {
        self.query_one(sql, &[]).await.get(0)
    }

    /// How many messages of a topic are in that state.
    pub async fn in_state(&self, topic: &str, state: &str) -> i64 {
        let sql = "select count(*) from outboxd.message_states where topic = $1 and state = $2";
        self.query_one(sql, &[&topic, &state]).await.get(0)
    }

    /// Waits until so many messages of a topic are in that state.
    pub async fn reach(&self, topic: &str, state: &str, expected: i64) {
        eventually(&format!("{expected} of {topic} are {state}"), PATIENCE, async || {
            self.in_state(topic, state).await == expected
        })
        .await;
    }

    /// Several statements.
    pub async fn batch(&self, sql: &str) {
        self.connect().await.batch_execute(sql).await.unwrap();
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // On a thread of its own, not waited for: it waits for a checkpoint, and the test has something better to do.
        let (admin, name) = (url("postgres", self.port, "postgres"), self.name.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                if let Ok(client) = try_connect(&admin).await {
                    let _ =
                        client.batch_execute(&format!("drop database if exists {name} with (force)")).await;
                }
            });
        });
    }
}

pub(super) fn url(user: &str, port: u16, database: &str) -> String {
    format!("postgres://{user}@127.0.0.1:{port}/{database}")
}

/// A session, without TLS.
pub async fn connect(url: &str) -> Client {
    try_connect(url).await.expect("Postgres lets us in")
}

pub async fn try_connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}
