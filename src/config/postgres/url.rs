//! `[postgres] url`: a connection string with libpq's meaning.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tokio_postgres::config::Host;

use super::options::{ConnectionString, quoted};
use super::tls::{Tls, TlsOptions};
use crate::config::mask::mask;
use crate::config::nearest::did_you_mean;
use crate::config::setting::{Problem, Setting, Written};

const DEFAULT_PORT: u16 = 5432;

/// Where Debian's and Red Hat's packages put the server's socket.
const SOCKETS: &str = "/var/run/postgresql";

/// Options of the driver.
const OPTIONS: [&str; 19] = [
    "user",
    "password",
    "dbname",
    "options",
    "application_name",
    "sslnegotiation",
    "host",
    "hostaddr",
    "port",
    "connect_timeout",
    "tcp_user_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "target_session_attrs",
    "channel_binding",
    "load_balance_hosts",
    "sslmode",
];

/// Options of libpq that mean nothing here.
const UNSUPPORTED: [&str; 17] = [
    "passfile",
    "require_auth",
    "client_encoding",
    "fallback_application_name",
    "replication",
    "gssencmode",
    "sslcompression",
    "sslpassword",
    "sslcertmode",
    "sslcrl",
    "sslcrldir",
    "sslsni",
    "requirepeer",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "krbsrvname",
    "service",
];

/// A connection string with libpq's meaning.
#[derive(Clone)]
pub struct PostgresUrl {
    client: tokio_postgres::Config,
    tls: Tls,
    address: String,
    /// As it was written.
    written: SecretString,
    /// The same without the password.
    masked: String,
}

impl PostgresUrl {
    /// Problems never quote the text: it may hold a password.
    fn parse(text: &str, home: Option<&Path>) -> Result<Self, Problem> {
        if text.trim().is_empty() {
            return Err(
                "must not be empty: a connection string such as \"postgres://outboxd@localhost/app\"".into(),
            );
        }
        let ConnectionString { url, options } = ConnectionString::parse(text)?;
        let mut tls = TlsOptions::default();
        let mut rest = Vec::new();
        for (name, value) in options {
            match name.as_str() {
                "sslmode" => tls.sslmode = Some(value),
                "sslrootcert" => tls.sslrootcert = Some(value),
                "sslcert" => tls.sslcert = Some(value),
                "sslkey" => tls.sslkey = Some(value),
                // As JDBC writes it, and libpq takes in a URL.
                "ssl" if url.is_some() && value == "true" => tls.sslmode = Some("require".into()),
                "keepalives_count" => rest.push(("keepalives_retries".into(), value)),
                "target_session_attrs" => rest.push((name, session(&value)?.into())),
                option if OPTIONS.contains(&option) => rest.push((name, value)),
                option if UNSUPPORTED.contains(&option) => {
                    return Err(format!("has the option `{option}`, which outboxd does not support"));
                }
                option => {
                    return Err(format!("has an option that there is not{}", did_you_mean(option, OPTIONS)));
                }
            }
        }
        let tls = tls.resolve(home)?;
        let mut client = driver_config(url.as_deref(), &rest)?;
        if client.get_hosts().is_empty() && client.get_hostaddrs().is_empty() {
            client.host_path(SOCKETS);
        }
        check_counts(&client)?;
        Ok(Self { address: address(&client), client, tls, written: text.into(), masked: mask(text) })
    }

    /// For the driver, without TLS settings.
    pub fn client_config(&self) -> tokio_postgres::Config {
        self.client.clone()
    }

    pub fn tls(&self) -> &Tls {
        &self.tls
    }

    /// As it was written, for another configuration file.
    pub fn written(&self) -> &SecretString {
        &self.written
    }

    /// Another database of the same server, for the same user.
    pub fn of_database(&self, database: &str) -> Result<Self, PostgresUrlError> {
        let written = ConnectionString::parse(self.written.expose_secret()).map_err(PostgresUrlError)?;
        // Of an option that is named twice, the last counts.
        let options = [written.options, vec![("dbname".to_owned(), database.to_owned())]].concat();
        rendered(written.url.as_deref(), &options).parse()
    }

    /// `user@host:port/database`, for messages; never a password.
    pub fn address(&self) -> &str {
        &self.address
    }
}

/// A daemon that writes has no use for a standby.
fn session(wanted: &str) -> Result<&'static str, Problem> {
    match wanted {
        "any" => Ok("any"),
        "read-write" | "primary" => Ok("read-write"),
        _ => Err("must have target_session_attrs=any, read-write or primary: outboxd writes".into()),
    }
}

fn driver_config(url: Option<&str>, options: &[(String, String)]) -> Result<tokio_postgres::Config, Problem> {
    rendered(url, options).parse().map_err(|error: tokio_postgres::Error| {
        match std::error::Error::source(&error) {
            Some(source) => format!("is not a connection string: {source}"),
            None => "is not a connection string".into(),
        }
    })
}

/// A connection string in the form that it was written in.
fn rendered(url: Option<&str>, options: &[(String, String)]) -> String {
    let encoded = |text: &str| {
        percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
    };
    match url {
        None => quoted(options),
        Some(url) if options.is_empty() => url.to_owned(),
        Some(url) => {
            let query: Vec<String> =
                options.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
            // The driver looks for the query behind the path.
            let path =
                if url.split_once("://").is_some_and(|(_, rest)| rest.contains('/')) { "" } else { "/" };
            format!("{url}{path}?{}", query.join("&"))
        }
    }
}

fn check_counts(client: &tokio_postgres::Config) -> Result<(), Problem> {
    let (hosts, addresses, ports) =
        (client.get_hosts().len(), client.get_hostaddrs().len(), client.get_ports().len());
    if hosts > 0 && addresses > 0 && hosts != addresses {
        return Err(format!("has {hosts} hosts but {addresses} in hostaddr"));
    }
    let hosts = hosts.max(addresses);
    if ports > 1 && ports != hosts {
        return Err(format!("has {hosts} hosts but {ports} ports"));
    }
    Ok(())
}

fn address(client: &tokio_postgres::Config) -> String {
    let ports = client.get_ports();
    let port = |index: usize| ports.get(index).or(ports.first()).copied().unwrap_or(DEFAULT_PORT);
    let hosts: Vec<String> = if client.get_hosts().is_empty() {
        client.get_hostaddrs().iter().map(ToString::to_string).collect()
    } else {
        client
            .get_hosts()
            .iter()
            .map(|host| match host {
                Host::Tcp(host) => host.clone(),
                Host::Unix(path) => path.display().to_string(),
            })
            .collect()
    };
    let hosts: Vec<String> = hosts
        .iter()
        .enumerate()
        .map(|(index, host)| {
            if host.contains(':') {
                format!("[{host}]:{}", port(index))
            } else {
                format!("{host}:{}", port(index))
            }
        })
        .collect();
    let user = client.get_user().map_or(String::new(), |user| format!("{user}@"));
    let database = client.get_dbname().or(client.get_user()).map_or(String::new(), |name| format!("/{name}"));
    format!("{user}{}{database}", hosts.join(","))
}

impl FromStr for PostgresUrl {
    type Err = PostgresUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text, std::env::home_dir().as_deref()).map_err(PostgresUrlError)
    }
}

/// Goes on behind the name of what is wrong, such as "has an unknown sslmode".
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct PostgresUrlError(Problem);

impl Setting for PostgresUrl {
    fn what() -> String {
        "a connection string such as \"postgres://user@host/database\"".into()
    }

    fn read(written: Written<'_>) -> Result<Self, Problem> {
        let text = written.text(&Self::what())?;
        text.parse().map_err(|PostgresUrlError(problem)| problem)
    }

    fn show(&self) -> Value {
        self.masked.as_str().into()
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)
    }
}

#[cfg(test)]
mod tests;
