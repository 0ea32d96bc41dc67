//! What is not ours: programs that are started, and servers that are called over HTTP, by handlers and jobs alike.

pub mod http;
pub mod process;
pub mod program;
pub mod words;

use std::io;
use std::path::PathBuf;

/// Why it cannot be called: always something for the operator to change.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error(
        "`command` is empty: name a program and its arguments, as in command = [\"./handle-order\", \"--fast\"]"
    )]
    NoCommand,
    #[error("program `{program}` {problem}: correct `command`, or install it")]
    Program { program: String, problem: &'static str },
    #[error("`{key}` {path} cannot be read: {source}: correct the path, or let the daemon's user read it")]
    File { key: &'static str, path: PathBuf, source: io::Error },
    #[error("`{key}` {problem}")]
    Setting { key: &'static str, problem: String },
}
