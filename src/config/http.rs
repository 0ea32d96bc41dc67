//! `[http]`: where a daemon answers health checks.

use std::net::SocketAddr;

use super::error::ConfigError;
use super::section::Section;
use super::setting::any;

/// Taken if the file names no address; if it is in use, the next free port is.
pub const LISTEN: &str = "127.0.0.1:9464";

#[derive(Clone, Debug)]
pub struct Http {
    /// `None`: the default, or the next free port.
    pub listen: Option<SocketAddr>,
}

impl Http {
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, ConfigError> {
        Ok(Self { listen: section.optional("listen", any)? })
    }
}
