//! `outboxd consumer`.

use clap::Args;

use super::global::Global;
use super::producer::Daemon;
use crate::app;
use crate::config::Config;
use crate::failure::{Exit, Failure, Kind};

/// Consume: calls the handlers of the groups, in the foreground, until SIGTERM
///
/// The first SIGTERM or SIGINT drains and ends with 0, the second cuts that short. It waits for a database or a broker
/// that does not answer, and says so.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  outboxd consumer --group orders --group invoices\n  outboxd consumer --all"
)]
pub struct Options {
    #[command(flatten)]
    groups: Groups,
    #[command(flatten)]
    daemon: Daemon,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct Groups {
    /// A group that the configuration declares as [groups.NAME]; repeat it for several
    #[arg(long = "group", value_name = "NAME")]
    names: Vec<String>,
    /// Every group that the configuration declares
    #[arg(long)]
    all: bool,
}

impl Options {
    pub async fn run(&self, global: &Global) -> anyhow::Result<Exit> {
        let loaded = global.load()?;
        let groups = self.groups.choose(&loaded.config)?;
        app::consumer(loaded, groups, self.daemon.options()).await
    }
}

impl Groups {
    /// Declared ones, each once.
    fn choose(&self, config: &Config) -> Result<Vec<String>, Failure> {
        if config.groups.is_empty() {
            let what = "the configuration declares no group: add [groups.NAME]";
            return Err(Failure::new(Kind::Configuration, what));
        }
        if let Some(unknown) = self.names.iter().find(|name| !config.groups.contains_key(*name)) {
            let declared: Vec<_> = config.groups.keys().map(|name| format!("`{name}`")).collect();
            let what = format!("no group `{unknown}` is declared; declared: {}", declared.join(", "));
            return Err(Failure::new(Kind::Configuration, what));
        }
        Ok(config.groups.keys().filter(|name| self.all || self.names.contains(name)).cloned().collect())
    }
}
