//! `outboxd groups pause` and `resume`.

use clap::Args;

use super::find;
use crate::cli::global::{Global, connect_to_look};
use crate::cli::output;
use crate::pg::control;

/// Start nothing more of a group until it is resumed; what runs is finished
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  outboxd groups pause orders")]
pub(super) struct Pause {
    group: String,
}

/// Let a paused group go on, and close its breaker
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  outboxd groups resume orders")]
pub(super) struct Resume {
    group: String,
}

impl Pause {
    pub(super) async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let config = global.load()?.config;
        let client = connect_to_look(&config, "groups").await?;
        let group = find(&client, &self.group, config.agent.inactive_after).await?.name;
        let what = if control::pause(&*client, &group, &who()).await? {
            "is paused: its agents start nothing more within a second"
        } else {
            "was paused already"
        };
        output::line(&format!("group {group} {what}"))?;
        Ok(())
    }
}

impl Resume {
    pub(super) async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let config = global.load()?.config;
        let client = connect_to_look(&config, "groups").await?;
        let group = find(&client, &self.group, config.agent.inactive_after).await?.name;
        let what = if control::resume(&*client, &group).await? { "goes on" } else { "was not paused" };
        output::line(&format!("group {group} {what}"))?;
        Ok(())
    }
}

/// For those who wonder who it was.
fn who() -> String {
    let user = ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    user.filter(|user| !user.is_empty()).unwrap_or_else(|| "an operator".into())
}
