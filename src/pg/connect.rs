//! Connections: TLS with libpq's meaning of `sslmode`, the password read anew each time, a pool, and single connections.

mod connection;

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use deadpool_postgres::{Connect, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use openssl::ssl::{SslConnector, SslFiletype, SslMethod, SslVerifyMode};
use openssl::x509::X509;
use openssl::x509::store::X509StoreBuilder;
use postgres_openssl::MakeTlsConnector;
use secrecy::ExposeSecret;
use tokio::task::JoinHandle;
use tokio_postgres::config::SslMode as WireSslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Config as ClientConfig, NoTls};

pub use self::connection::{Connection, Prepared};
use self::connection::{ParameterTypes, Unnamed};
use crate::config::{Postgres, SslMode, Tls};
use crate::failure;
use crate::telemetry::metrics::count_db_error;

/// How long to wait for a connection: long enough for a busy server, short enough to be told about a dead one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What went wrong with the database, sorted by what the caller does about it.
#[derive(Debug, thiserror::Error)]
pub enum PgError {
    #[error("PostgreSQL at {address} cannot be reached: {source}")]
    Unreachable { address: String, source: anyhow::Error },
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error("{0}")]
    Setup(String),
}

/// A statement that failed; shows the server's own words, which `tokio_postgres::Error` leaves to its source.
#[derive(Debug, thiserror::Error)]
#[error("{}", describe(.0))]
pub struct QueryError(#[from] pub tokio_postgres::Error);

impl From<tokio_postgres::Error> for PgError {
    fn from(error: tokio_postgres::Error) -> Self {
        // A conflict is nobody's failure.
        if !is_conflict(&error) {
            count_db_error();
        }
        Self::Query(QueryError(error))
    }
}

impl PgError {
    /// The connection is gone or was never there: the same call may succeed on another one.
    pub fn is_connection(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Query(QueryError(error)) => is_connection(error),
            Self::Setup(_) => false,
        }
    }

    /// A row with the same key is there already.
    pub fn is_duplicate(&self) -> bool {
        matches!(self, Self::Query(QueryError(error)) if error.code() == Some(&SqlState::UNIQUE_VIOLATION))
    }

    /// A conflict between transactions (serialization, deadlock): nobody's failure, to be tried again.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Query(QueryError(error)) if is_conflict(error))
    }
}

/// See `PgError::is_conflict`.
pub fn is_conflict(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| matches!(code.code(), "40001" | "40P01"))
}

/// True if the error says nothing about the statement, only that the server or the way to it is gone.
pub fn is_connection(error: &tokio_postgres::Error) -> bool {
    match error.code() {
        // 08: connection; 57P01-57P05: shut down, crashed, starting up; 53: out of a resource (too many connections).
        Some(code) => {
            let code = code.code();
            code.starts_with("08") || code.starts_with("57P") || code.starts_with("53") || code == "25006"
        }
        None => true,
    }
}

/// True if the connection ended while it was asked something: by force, by a crash of the server, or on the way.
pub fn is_cut(error: &tokio_postgres::Error) -> bool {
    match error.code() {
        Some(code) => matches!(code.code(), "57P01" | "57P02"),
        None => error.is_closed() || is_of_the_way(error),
    }
}

/// What cannot be put into a message is an I/O error too, of an invalid input.
fn is_of_the_way(error: &tokio_postgres::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    source.is_some_and(|error| error.kind() != std::io::ErrorKind::InvalidInput)
}

/// The server's message with its detail and constraint, or the client's error with its causes.
pub fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        let mut text = format!("{} (SQLSTATE {})", db.message(), db.code().code());
        if let Some(hint) = db.hint() {
            text.push_str(". ");
            text.push_str(hint);
        }
        return text;
    }
    failure::words(failure::chain(error))
}

/// Makes connections to the one database of this process.
#[derive(Clone)]
pub struct Connector {
    settings: Arc<Postgres>,
    application_name: String,
    /// `None`: statements are prepared.
    types: Option<Arc<ParameterTypes>>,
}

impl Connector {
    /// `application_name` is what `pg_stat_activity` shows: `outboxd/<role>/<name>`.
    pub fn new(settings: &Postgres, application_name: impl Into<String>) -> Self {
        let types = (!settings.prepared_statements).then(Arc::default);
        Self { settings: Arc::new(settings.clone()), application_name: application_name.into(), types }
    }

    /// Where the database is, for messages; never a password.
    pub fn address(&self) -> String {
        self.settings.url.address().to_owned()
    }

    /// One connection of its own, with its driver.
    pub async fn connect(&self) -> Result<Connection, PgError> {
        let warnings = Arc::new(AtomicU64::new(0));
        let (client, driver) = self.open(&warnings, "").await.map_err(|error| {
            count_db_error();
            self.unreachable(explain(error))
        })?;
        Ok(Connection {
            client,
            warnings,
            driver,
            unnamed: self.types.clone().map(Unnamed::new),
            kept: Mutex::default(),
        })
    }

    /// A pool of at most `pool_size` connections, made when needed.
    pub fn pool(&self) -> Result<Pool, PgError> {
        let manager = Manager::from_connect(
            ClientConfig::new(),
            Pooled(self.clone()),
            ManagerConfig { recycling_method: RecyclingMethod::Fast },
        );
        Pool::builder(manager)
            .max_size(self.settings.pool_size)
            .wait_timeout(Some(CONNECT_TIMEOUT))
            .create_timeout(Some(CONNECT_TIMEOUT))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| PgError::Setup(format!("the connection pool cannot be built: {error}")))
    }

    fn unreachable(&self, source: anyhow::Error) -> PgError {
        PgError::Unreachable { address: self.address(), source }
    }

    fn client_config(&self) -> anyhow::Result<ClientConfig> {
        let mut config = self.settings.url.client_config();
        if let Some(password) = self.settings.password()? {
            config.password(password.expose_secret());
        }
        config
            .application_name(&self.application_name)
            .connect_timeout(CONNECT_TIMEOUT)
            .keepalives_idle(Duration::from_secs(60));
        Ok(config)
    }

    /// Tries what `sslmode` allows, in libpq's order; with these settings of the session beside those of all.
    async fn open(
        &self,
        warnings: &Arc<AtomicU64>,
        settings: &str,
    ) -> anyhow::Result<(Client, JoinHandle<()>)> {
        let config = self.client_config()?;
        let tls = self.settings.url.tls();
        let attempts: &[WireSslMode] = match tls.mode {
            SslMode::Disable => &[WireSslMode::Disable],
            SslMode::Allow => &[WireSslMode::Disable, WireSslMode::Require],
            SslMode::Prefer => &[WireSslMode::Prefer, WireSslMode::Disable],
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[WireSslMode::Require],
        };
        let mut last = None;
        for mode in attempts {
            let mut config = config.clone();
            config.ssl_mode(*mode);
            let opened = async {
                let (client, driver) = if *mode == WireSslMode::Disable {
                    let (client, connection) = config.connect(NoTls).await?;
                    (client, drive(connection, Arc::clone(warnings)))
                } else {
                    let (client, connection) = config.connect(tls_connector(tls)?).await?;
                    (client, drive(connection, Arc::clone(warnings)))
                };
                self.settle_in(&client, settings).await?;
                Ok((client, driver))
            };
            // The driver's own limit ends with the TCP connection: a frozen server accepts it and says nothing.
            match tokio::time::timeout(CONNECT_TIMEOUT, opened).await {
                Ok(Ok(opened)) => return Ok(opened),
                Ok(Err(error)) => last = Some(error),
                Err(_) => {
                    anyhow::bail!("no answer within {}", humantime::format_duration(CONNECT_TIMEOUT));
                }
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("no way to connect")))
    }

    /// Every statement of ours reads little, however dear it looks: before the first analyze the lanes' few rows were
    /// compiled for 0.9 s and read in 0.5 ms. A pooler's session is not ours to set.
    async fn settle_in(&self, client: &Client, more: &str) -> Result<(), tokio_postgres::Error> {
        if self.types.is_some() {
            return Ok(());
        }
        client.batch_execute(&format!("set jit = off; {more}")).await
    }
}

/// Puts the server's words first where there are any.
fn explain(error: anyhow::Error) -> anyhow::Error {
    match error.downcast::<tokio_postgres::Error>() {
        Ok(error) => anyhow::anyhow!("{}", describe(&error)),
        Err(error) => error,
    }
}

fn tls_connector(tls: &Tls) -> anyhow::Result<MakeTlsConnector> {
    let mut builder = SslConnector::builder(SslMethod::tls_client())?;
    if let Some(root) = &tls.root_cert {
        // That file alone is trusted, as libpq has it: the builder would add it to the system's authorities.
        let pem = std::fs::read(root).with_context(|| format!("sslrootcert {}", root.display()))?;
        let mut store = X509StoreBuilder::new()?;
        for authority in
            X509::stack_from_pem(&pem).with_context(|| format!("sslrootcert {}", root.display()))?
        {
            store.add_cert(authority)?;
        }
        builder.set_cert_store(store.build());
    }
    if let Some(cert) = &tls.cert {
        builder.set_certificate_chain_file(cert).with_context(|| format!("sslcert {}", cert.display()))?;
    }
    if let Some(key) = &tls.key {
        builder
            .set_private_key_file(key, SslFiletype::PEM)
            .with_context(|| format!("sslkey {}", key.display()))?;
    }
    // libpq: a root certificate makes any mode verify the chain; only verify-full looks at the host's name.
    let verify_chain = tls.root_cert.is_some() || matches!(tls.mode, SslMode::VerifyCa | SslMode::VerifyFull);
    builder.set_verify(if verify_chain { SslVerifyMode::PEER } else { SslVerifyMode::NONE });
    let mut connector = MakeTlsConnector::new(builder.build());
    let verify_host = tls.mode == SslMode::VerifyFull;
    connector.set_callback(move |ssl, _| {
        ssl.set_verify_hostname(verify_host);
        Ok(())
    });
    Ok(connector)
}

/// Runs a connection until it ends, counting the server's warnings.
///
/// A warning is counted before the answer it came with is handed out: both arrive in order on this one task.
fn drive<S, T>(mut connection: tokio_postgres::Connection<S, T>, warnings: Arc<AtomicU64>) -> JoinHandle<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    tokio::spawn(async move {
        loop {
            match std::future::poll_fn(|context| connection.poll_message(context)).await {
                Some(Ok(AsyncMessage::Notice(notice))) => {
                    if notice.severity() == "WARNING" {
                        warnings.fetch_add(1, Ordering::SeqCst);
                    }
                    tracing::debug!(severity = notice.severity(), "postgres says: {}", notice.message());
                }
                Some(Ok(_)) => {}
                // The client learns of the end from its next call, which is where it is handled and logged.
                Some(Err(_)) | None => return,
            }
        }
    })
}

struct Pooled(Connector);

type Opened = Result<(Client, JoinHandle<()>), tokio_postgres::Error>;

impl Connect for Pooled {
    fn connect(&self, _: &ClientConfig) -> Pin<Box<dyn Future<Output = Opened> + Send + '_>> {
        Box::pin(async move {
            let error = match self.0.open(&Arc::default(), super::pool::SESSION).await {
                Ok(opened) => return Ok(opened),
                Err(error) => error,
            };
            match error.downcast::<tokio_postgres::Error>() {
                Ok(error) => Err(error),
                Err(error) => {
                    // A secret or a certificate that cannot be read. deadpool wants the driver's error, which has no
                    // room for words of ours: they go to the log, and the driver's own refusal of nothing goes up.
                    tracing::error!("no connection can be made: {}", failure::words(error.chain()));
                    match ClientConfig::new().connect(NoTls).await {
                        Ok(_) => unreachable!("a configuration without a host connects nowhere"),
                        Err(error) => Err(error),
                    }
                }
            }
        })
    }
}
