//! `outboxd doctor`.

mod brokers;
mod database;

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::global::Global;
use super::output;
use crate::domain::doctor::{Check, Finding, Outcome};
use crate::failure::Exit;

/// Check everything that can be reached, and print what to do about what is not right
///
/// Looks at Postgres (settings, connections, rights, what holds vacuum), the outbox (sequence, partitions, lanes, what left the
/// line), agents and groups, what your jobs ask, and Kafka (brokers, topics). It changes nothing. What cannot be looked at is
/// skipped, with the reason, and counts as nothing found. Exit 0: nothing was found; 1: something was.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  outboxd doctor\n  outboxd doctor --json | jq -r '.[] | select(.state == \"found\") | .fix'"
)]
pub struct Options {
    /// How long a transaction may be open before it is told
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    long: Duration,
    /// One array of objects
    #[arg(long)]
    json: bool,
}

impl Options {
    pub async fn run(&self, global: &Global) -> anyhow::Result<Exit> {
        let config = global.load()?.config;
        let (mut checks, topics) = database::examine(&config, self.long).await;
        checks.extend(brokers::examine(&config, topics).await);
        if self.json {
            output::json(&checks.iter().flat_map(lines).collect::<Vec<_>>())?;
        } else {
            output::line(&report(&checks))?;
        }
        Ok(if checks.iter().any(Check::has_found) { Exit::Failed } else { Exit::Done })
    }
}

/// An object of `--json`: a check that is fine or skipped, or one finding.
#[derive(Debug, Serialize)]
struct Line<'a> {
    name: &'a str,
    /// `ok`, `found`, `skipped`.
    state: &'a str,
    /// What was found, or why it is skipped.
    what: Option<&'a str>,
    fix: Option<&'a str>,
}

fn lines(check: &Check) -> Vec<Line<'_>> {
    let name = check.name;
    match &check.outcome {
        Outcome::Fine => vec![Line { name, state: "ok", what: None, fix: None }],
        Outcome::Skipped(why) => vec![Line { name, state: "skipped", what: Some(why), fix: None }],
        Outcome::Found(findings) => {
            let found = findings.iter();
            found
                .map(|Finding { what, fix }| Line { name, state: "found", what: Some(what), fix: Some(fix) })
                .collect()
        }
    }
}

/// For people: a line for each check, and two for each finding.
fn report(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut text: Vec<String> = Vec::new();
    for Line { name, state, what, fix } in checks.iter().flat_map(lines) {
        let mark = match state {
            "ok" => "ok  ",
            "skipped" => "skip",
            _ => "FIX ",
        };
        let what = output::printable(what.unwrap_or_default());
        text.push(format!("{mark}  {name:width$}  {what}").trim_end().to_owned());
        if let Some(fix) = fix {
            text.push(format!("{:width$}        -> {}", "", output::printable(fix)));
        }
    }
    let findings = checks.iter().flat_map(lines).filter(|line| line.state == "found").count();
    text.push(match findings {
        0 => "\nnothing to mend".to_owned(),
        1 => "\n1 thing to mend".to_owned(),
        n => format!("\n{n} things to mend"),
    });
    text.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_each_finding_with_its_fix_below() {
        let finding = Finding::new("fsync is off", "turn it on");
        let checks = [
            Check::of("settings", vec![finding.clone(), finding]),
            Check::of("schema", Vec::new()),
            Check::skipped("kafka", "no broker"),
        ];
        assert_eq!(
            report(&checks),
            "FIX   settings  fsync is off\n                -> turn it on\n\
             FIX   settings  fsync is off\n                -> turn it on\n\
             ok    schema\nskip  kafka     no broker\n\n2 things to mend"
        );
    }
}
