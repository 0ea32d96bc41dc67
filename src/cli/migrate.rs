//! `outboxd migrate`.

use clap::{Args, Subcommand};
use serde::Serialize;

use super::global::{Global, connect};
use super::output::{self, maybe};
use crate::config::Config;
use crate::failure::Exit;
use crate::pg::migrate::{self, Applied, Fit, MIGRATIONS};

/// Bring the schema up: makes or upgrades schema `outboxd`, and the roles that may use it
///
/// It may run while daemons and applications do, and two at once are safe. Run it as the owner of the schema; to make
/// roles it needs CREATEROLE.
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Example:
  outboxd migrate
  outboxd migrate --dry-run | less
  outboxd migrate --no-roles > grants.sql   for someone who may create roles
  outboxd migrate status --check            exit 1 if there is something to do"
)]
pub struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    /// Print the SQL that would run, and run nothing
    #[arg(long)]
    dry_run: bool,
    /// Leave roles alone, and print the SQL that makes them and grants what each needs
    #[arg(long)]
    no_roles: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Where the schema stands: the versions, and when each was applied
    #[command(after_help = "Example:\n  outboxd migrate status --json")]
    Status {
        /// Exit 1 if `outboxd migrate` has something to do, or the schema is too new
        #[arg(long)]
        check: bool,
        /// One array of objects
        #[arg(long)]
        json: bool,
    },
}

impl Options {
    pub async fn run(&self, global: &Global) -> anyhow::Result<Exit> {
        let config = global.load()?.config;
        match self.command {
            Some(Command::Status { check, json }) => status(&config, check, json).await,
            None if self.dry_run => dry_run(&config, self.no_roles).await,
            None => bring_up(&config, self.no_roles).await,
        }
    }
}

async fn bring_up(config: &Config, no_roles: bool) -> anyhow::Result<Exit> {
    let mut client = connect(config, "migrate").await?;
    let roles = &config.postgres.roles;
    let report = migrate::migrate(&mut client, (!no_roles).then_some(roles)).await?;
    let applied = report.applied.iter().map(|name| format!("applied {name}"));
    let created = report.roles_created.iter().map(|role| format!("created role {role}"));
    let mut lines: Vec<_> = applied.chain(created).collect();
    lines.push(format!("the schema is at version {}", migrate::fit(&client).await?.version()));
    if no_roles {
        // All of it can be run as a script.
        let lines: Vec<_> = lines.iter().map(|line| format!("-- {line}")).collect();
        output::line(&lines.join("\n"))?;
        output::line(&migrate::roles_plan(&client, roles).await?)?;
    } else {
        output::line(&lines.join("\n"))?;
    }
    Ok(Exit::Done)
}

async fn dry_run(config: &Config, no_roles: bool) -> anyhow::Result<Exit> {
    let client = connect(config, "migrate").await?;
    let plan = migrate::plan(&client, &config.postgres.roles).await?;
    output::line(if plan.schema.is_empty() { "-- The schema is up to date." } else { &plan.schema })?;
    output::line(if no_roles { "\n-- Left to you by --no-roles:" } else { "\n-- Roles:" })?;
    output::line(&plan.roles)?;
    Ok(Exit::Done)
}

/// A line of `migrate status`.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Line {
    version: i32,
    name: String,
    /// `applied`, `pending`, or `newer`: by a newer outboxd.
    state: &'static str,
    applied_at: Option<String>,
}

async fn status(config: &Config, check: bool, json: bool) -> anyhow::Result<Exit> {
    let client = connect(config, "migrate").await?;
    let applied = migrate::applied(&client).await?;
    let versions = versions(&applied);
    if json {
        output::json(&versions)?;
    } else {
        let row = |line: &Line| {
            [
                line.version.to_string(),
                line.name.clone(),
                line.state.to_owned(),
                maybe(line.applied_at.clone()),
            ]
        };
        output::table(["VERSION", "NAME", "STATE", "APPLIED"], versions.iter().map(row))?;
    }
    let verdict = match migrate::judge(&applied) {
        Fit::Fits { .. } => return Ok(Exit::Done),
        Fit::Behind { .. } => "the schema is behind: run `outboxd migrate`".to_owned(),
        Fit::TooNew { version, oldest_compatible } => migrate::too_new(version, oldest_compatible),
    };
    eprintln!("{verdict}");
    Ok(if check { Exit::Failed } else { Exit::Done })
}

fn versions(applied: &[Applied]) -> Vec<Line> {
    let known = |version: i32| MIGRATIONS.iter().any(|migration| migration.version == version);
    let done = applied.iter().map(|line| Line {
        version: line.version,
        name: line.name.clone(),
        state: if known(line.version) { "applied" } else { "newer" },
        applied_at: Some(output::time(line.applied_at)),
    });
    let last = applied.last().map_or(0, |last| last.version);
    let pending = MIGRATIONS.iter().filter(|migration| migration.version > last).map(|migration| Line {
        version: migration.version,
        name: migration.name.to_owned(),
        state: "pending",
        applied_at: None,
    });
    done.chain(pending).collect()
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    #[test]
    fn every_version_is_listed_once_with_its_state() {
        let applied = |version: i32| Applied {
            version,
            name: format!("{version}"),
            checksum: String::new(),
            oldest_compatible: 1,
            applied_at: DateTime::UNIX_EPOCH,
        };
        let states = |lines: &[Applied]| versions(lines).iter().map(|line| line.state).collect::<Vec<_>>();
        let newest = migrate::newest();
        assert_eq!(states(&[]), vec!["pending"; MIGRATIONS.len()]);
        let mut some: Vec<_> = (1..newest).map(applied).collect();
        assert_eq!(states(&some).last(), Some(&"pending"));
        some.extend([applied(newest), applied(newest + 1)]);
        assert_eq!(states(&some).last(), Some(&"newer"));
        assert_eq!(states(&some).len(), MIGRATIONS.len() + 1);
    }
}
