//! What is wrong with a configuration.

use std::io;
use std::path::PathBuf;

/// Shows the whole message for the operator, over several lines where there is a place to point at.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("the configuration {} cannot be read: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    /// With the place and what would be right.
    #[error("{0}")]
    Invalid(String),
}
