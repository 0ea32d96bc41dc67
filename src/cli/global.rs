//! Options of every command.

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::config::log::LogLevel;
use crate::config::{Config, Loaded};
use crate::pg::connect::{Connection, Connector};
use crate::pg::inspect;

#[derive(Args, Debug)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The configuration [default: the first of ./outboxd.toml, /etc/outboxd/outboxd.toml]
    #[arg(long, global = true, value_name = "PATH", env = "OUTBOXD_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// How much to log: error, warn, info, debug, trace, or filters as in RUST_LOG
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log: Option<LogLevel>,
    /// How to log [default: text on a terminal, json otherwise]
    #[arg(long, global = true, value_enum)]
    log_format: Option<LogFormat>,
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, hide_default_value = true)]
    /// Colors in what goes to standard error [default: auto, on a terminal]
    color: Color,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Color {
    Auto,
    Always,
    Never,
}

impl Global {
    pub fn load(&self) -> anyhow::Result<Loaded> {
        Ok(Config::load(self.config.as_deref())?)
    }

    pub fn logs_are_json(&self) -> bool {
        match self.log_format {
            Some(format) => format == LogFormat::Json,
            None => !io::stderr().is_terminal(),
        }
    }

    pub fn colors_stderr(&self) -> bool {
        match self.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                io::stderr().is_terminal()
                    && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            }
        }
    }
}

/// A connection for one command.
pub async fn connect(config: &Config, command: &str) -> anyhow::Result<Connection> {
    Ok(Connector::new(&config.postgres, format!("outboxd/cli/{command}")).connect().await?)
}

/// A connection to look through: no statement of it runs for long.
pub async fn connect_to_look(config: &Config, command: &str) -> anyhow::Result<Connection> {
    let client = connect(config, command).await?;
    inspect::bound(&client).await?;
    Ok(client)
}
