//! `outboxd groups show`.

use clap::Args;

use super::find;
use crate::cli::global::{Global, connect_to_look};
use crate::cli::output::{self, maybe};
use crate::pg::groups::{self, Shown};

/// One group: who works for it, what failed, where it stands
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  outboxd groups show orders")]
pub(super) struct Show {
    group: String,
    /// One object
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(super) async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let config = global.load()?.config;
        let client = connect_to_look(&config, "groups").await?;
        let found = find(&client, &self.group, config.agent.inactive_after).await?;
        let shown = groups::show(&client, found).await?;
        if self.json {
            output::json(&shown)?;
        } else {
            show(&shown)?;
        }
        Ok(())
    }
}

fn show(shown: &Shown) -> Result<(), output::OutputError> {
    let group = &shown.group;
    let paused = group
        .paused_at
        .map(|at| format!("{} by {}", output::time(at), group.paused_by.as_deref().unwrap_or("an operator")));
    let breaker = shown.breaker_open_until.map(|until| {
        format!("open until {}: {}", output::time(until), shown.breaker_reason.as_deref().unwrap_or_default())
    });
    let facts = vec![
        ("group", group.name.clone()),
        ("topics", group.topics.join(",")),
        ("kafka group", group.kafka_group.clone()),
        ("lag", maybe(group.lag.as_ref())),
        ("rate", maybe(group.rate.map(|rate| format!("{rate:.1}/s")).as_ref())),
        ("paused", paused.unwrap_or_default()),
        ("paused partitions", maybe(group.paused_partitions.as_ref())),
        ("breaker", breaker.unwrap_or_default()),
        ("failures", group.failures.to_string()),
        ("held", format!("{} behind {} keys", shown.held, group.held_keys)),
        ("dead letters", group.dead_letters.to_string()),
    ];
    output::line(&output::facts(facts))?;
    let agents = shown.at_work.iter().map(|agent| {
        let rate = format!("{:.0} %", agent.error_rate * 100.0);
        [agent.agent.clone(), agent.in_flight.to_string(), rate]
    });
    output::table(["AGENT", "IN FLIGHT", "FAILED"], agents)?;
    let partitions = shown.partitions.iter().map(|at| {
        [format!("{}[{}]", at.topic, at.partition), at.next_offset.to_string(), output::time(at.updated_at)]
    });
    output::table(["PARTITION", "NEXT", "SINCE"], partitions)
}
