//! `[postgres]`: where the outbox is.

use std::path::PathBuf;

use secrecy::SecretString;

pub const POOL_SIZE: usize = 8;

#[derive(Clone, Debug)]
pub struct Postgres {
    pub url: PostgresUrl,
    pub password_file: Option<PathBuf>,
    pub pool_size: usize,
    pub roles: Roles,
}

impl Postgres {
    /// From the file, read again at each connection; the URL's own is in its `client_config`.
    pub fn password(&self) -> Result<Option<SecretString>, std::io::Error> {
        let Some(path) = &self.password_file else { return Ok(None) };
        let text = std::fs::read_to_string(path).map_err(|error| {
            std::io::Error::new(error.kind(), format!("password_file {}: {error}", path.display()))
        })?;
        Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned().into()))
    }
}

/// A connection string with libpq's meaning.
#[derive(Clone)]
pub struct PostgresUrl {
    client: tokio_postgres::Config,
    tls: Tls,
    address: String,
}

impl PostgresUrl {
    /// For the driver, without TLS settings.
    pub fn client_config(&self) -> tokio_postgres::Config {
        self.client.clone()
    }

    pub fn tls(&self) -> &Tls {
        &self.tls
    }

    /// `user@host:port/database`, for messages; never a password.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl std::fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.address)
    }
}

/// libpq's `sslmode` and the files that go with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    pub mode: SslMode,
    pub root_cert: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SslMode {
    Disable,
    Allow,
    #[default]
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// `[postgres.roles]`: the names of the roles that `migrate` makes.
#[derive(Clone, Debug)]
pub struct Roles {
    pub app: String,
    pub agent: String,
    pub operator: String,
    pub reader: String,
}

impl Default for Roles {
    fn default() -> Self {
        Self {
            app: "outboxd_app".into(),
            agent: "outboxd_agent".into(),
            operator: "outboxd_operator".into(),
            reader: "outboxd_reader".into(),
        }
    }
}
