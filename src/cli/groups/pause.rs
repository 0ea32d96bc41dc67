//! `outboxd groups pause` and `resume`.

use clap::Args;

use super::find;
use crate::cli::global::{Global, connect_to_look};
use crate::cli::output;
use crate::cli::retry::operator::operator;
use crate::pg::group_orders::GroupOrder;

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
        let mut client = connect_to_look(&config, "groups").await?;
        let group = find(&client, &self.group, config.agent.inactive_after).await?.name;
        let what = if GroupOrder::Pause.carry_out(&mut client, &group, &operator()).await? {
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
        let mut client = connect_to_look(&config, "groups").await?;
        let group = find(&client, &self.group, config.agent.inactive_after).await?.name;
        let is_changed = GroupOrder::Resume.carry_out(&mut client, &group, &operator()).await?;
        let what = if is_changed { "goes on" } else { "was not paused" };
        output::line(&format!("group {group} {what}"))?;
        Ok(())
    }
}
