//! `[http]`: where a daemon answers health checks, its API and its dashboard, and whom.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::error::ConfigError;
use super::section::Section;
use super::setting::{Problem, any};

/// Taken if the file names no address; if it is in use, the next free port is.
pub const LISTEN: &str = "127.0.0.1:9464";

#[derive(Clone, Debug)]
pub struct Http {
    /// `None`: the default, or the next free port.
    pub listen: Option<SocketAddr>,
    /// What whoever asks for more than health and metrics must know; off loopback nobody may without it.
    pub token_file: Option<PathBuf>,
    /// Names, with a port or without, that API and dashboard may be asked by, besides addresses and `localhost`.
    pub allowed_hosts: Vec<String>,
    /// Nothing may be changed over HTTP.
    pub read_only: bool,
    /// Shown on the dashboard.
    pub environment: Option<String>,
}

impl Http {
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, ConfigError> {
        Ok(Self {
            listen: section.optional("listen", any)?,
            token_file: section.optional("token_file", any)?,
            allowed_hosts: section.list_or_empty("allowed_hosts", check_host)?,
            read_only: section.or("read_only", false, any)?,
            environment: section.optional("environment", |name: &String| check_environment(name))?,
        })
    }
}

fn check_host(host: &str) -> Result<(), Problem> {
    if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c.is_control() || "/@*".contains(c)) {
        return Err("must be names of hosts, like \"outboxd.example\" or \"outboxd.example:9464\"".into());
    }
    Ok(())
}

fn check_environment(name: &str) -> Result<(), Problem> {
    if (1..=32).contains(&name.chars().count()) && !name.contains(char::is_control) {
        return Ok(());
    }
    Err("must be 1 to 32 characters".into())
}
