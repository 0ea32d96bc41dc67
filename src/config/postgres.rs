//! `[postgres]`: where the outbox is.

mod options;
mod tls;
mod url;

use std::path::{Path, PathBuf};

use secrecy::SecretString;

pub use self::tls::{SslMode, Tls};
pub use self::url::{PostgresUrl, PostgresUrlError};
use super::error::ConfigError;
use super::section::{Section, Unset};
use super::setting::{Problem, Setting, any, within};
use super::sources::Source;

pub const POOL_SIZE: usize = 8;

/// What systemd's `LoadCredential=` calls the password.
const CREDENTIAL: &str = "postgres-password";

#[derive(Clone, Debug)]
pub struct Postgres {
    pub url: PostgresUrl,
    /// The operator's, or the credential that systemd hands to the service.
    pub password_file: Option<PathBuf>,
    pub pool_size: usize,
    /// False behind a pooler that gives each transaction another session.
    pub prepared_statements: bool,
    pub roles: Roles,
}

impl Postgres {
    pub(super) fn read(section: &mut Section<'_>, credentials: Option<&Path>) -> Result<Self, ConfigError> {
        Ok(Self {
            url: section.required("url", any)?,
            password_file: password_file(section, credentials)?,
            pool_size: section.or("pool_size", POOL_SIZE, within(1..=200))?,
            prepared_statements: section.or("prepared_statements", true, any)?,
            roles: section.table("roles", Roles::read)?,
        })
    }

    /// From the file, read again at each connection; the URL's own is in its `client_config`.
    pub fn password(&self) -> Result<Option<SecretString>, std::io::Error> {
        let Some(path) = &self.password_file else { return Ok(None) };
        let text = std::fs::read_to_string(path).map_err(|error| {
            std::io::Error::new(error.kind(), format!("password_file {}: {error}", path.display()))
        })?;
        Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned().into()))
    }
}

fn password_file(
    section: &mut Section<'_>,
    credentials: Option<&Path>,
) -> Result<Option<PathBuf>, ConfigError> {
    let name = "password_file";
    let credential = credentials.map(|folder| folder.join(CREDENTIAL)).filter(|path| path.exists());
    match credential {
        Some(credential) if !section.has(name) => {
            let what = PathBuf::what();
            section.note(name, &what, Unset::Nothing, Some(credential.show()), Source::Credential);
            Ok(Some(credential))
        }
        _ => section.optional(name, any),
    }
}

/// `[postgres.roles]`: the names of the roles that `migrate` makes.
#[derive(Clone, Debug)]
pub struct Roles {
    pub app: String,
    pub agent: String,
    pub operator: String,
    pub reader: String,
}

impl Roles {
    fn read(section: &mut Section<'_>) -> Result<Self, ConfigError> {
        let default = Self::default();
        let check = |name: &String| check_role(name);
        let roles = Self {
            app: section.or("app", default.app, check)?,
            agent: section.or("agent", default.agent, check)?,
            operator: section.or("operator", default.operator, check)?,
            reader: section.or("reader", default.reader, check)?,
        };
        let named = [
            ("app", &roles.app),
            ("agent", &roles.agent),
            ("operator", &roles.operator),
            ("reader", &roles.reader),
        ];
        for (index, (key, name)) in named.iter().enumerate() {
            if let Some((other, _)) = named[..index].iter().find(|(_, other)| other == name) {
                return Err(section.wrong(
                    key,
                    &format!("is `{name}`, the same as `{other}`: each role has rights of its own"),
                ));
            }
        }
        Ok(roles)
    }
}

/// PostgreSQL cuts longer names, and keeps `pg_` and `public` for itself.
fn check_role(name: &str) -> Result<(), Problem> {
    if !(1..=63).contains(&name.len()) || name.contains(char::is_control) {
        return Err("must be the name of a role, 1 to 63 bytes".into());
    }
    if name.starts_with("pg_") || matches!(name, "public" | "none") {
        return Err(format!("cannot be `{name}`: PostgreSQL keeps that name for itself"));
    }
    Ok(())
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
