//! `outboxd rebase`.

use clap::{Args, ValueEnum};

use super::confirm::confirm;
use super::global::{Global, connect};
use super::output;
use crate::domain::rebase::{Move, Standing};
use crate::failure::{Exit, Failure, Kind};
use crate::pg::migrate::{self, Fit};
use crate::pg::rebase::{self, LaneCount, Preview, RebaseError};

/// Go on in a database that was restored, copied or upgraded: re-bases the cursors on it, losing nothing
///
/// A cursor speaks of the transaction ids of one database cluster; in another one the producer waits and names this
/// command. Everything committed here that is not published is published next, what is published stays so. Stop the
/// producers first; applications may go on. Run it as the owner of the schema. It is one transaction: if it is cut
/// short, run it again. docs/moving.md has the order of things for each kind of move.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  outboxd rebase --after restore --dry-run   what would be published, and what counts as published
  outboxd rebase --after restore
  outboxd rebase --after upgrade --yes       after pg_upgrade, in a script")]
pub struct Options {
    /// What happened to the database
    #[arg(long, value_enum)]
    after: After,
    /// Show what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum After {
    /// Dump and restore, a logical copy, a restored volume, or a sequence set back
    Restore,
    /// `pg_upgrade`: the transaction ids are the same
    Upgrade,
}

impl From<After> for Move {
    fn from(after: After) -> Self {
        match after {
            After::Restore => Self::Restore,
            After::Upgrade => Self::Upgrade,
        }
    }
}

impl Options {
    pub async fn run(&self, global: &Global) -> anyhow::Result<Exit> {
        let config = global.load()?.config;
        let mut client = connect(&config, "rebase").await?;
        if let Fit::Behind { .. } | Fit::TooNew { .. } = migrate::fit(&client).await? {
            let what =
                "the schema does not fit this outboxd; it is brought up before the cursors are re-based";
            return Err(Failure::new(Kind::SchemaMissing, what).into());
        }
        let moved = self.after.into();
        let preview = rebase::preview(&mut client, moved).await.map_err(explain)?;
        if moved == Move::Upgrade && preview.standing.is_at_home() {
            output::line("the cursors speak of this database cluster already: nothing to do")?;
            return Ok(Exit::Done);
        }
        show(&preview, moved)?;
        if self.dry_run {
            return Ok(Exit::Done);
        }
        confirm("Re-base the cursors on this database?", self.yes)?;
        rebase::rebase(&mut client, moved).await.map_err(explain)?;
        output::line("the cursors are re-based on this database: producers may start")?;
        Ok(Exit::Done)
    }
}

fn show(preview: &Preview, moved: Move) -> anyhow::Result<()> {
    let Preview { standing, lanes, last_seq, raised_to } = preview;
    output::line(&format!("cluster   {}", cluster(standing)))?;
    if moved == Move::Upgrade {
        output::line("messages  as they are: the transaction ids are the same")?;
        return Ok(());
    }
    let raised = if raised_to > last_seq { format!(", is raised to {raised_to}") } else { String::new() };
    output::line(&format!("sequence  stands at {last_seq}{raised}\n"))?;
    let row =
        |count: &LaneCount| [count.lane.to_string(), count.to_publish.to_string(), count.passed.to_string()];
    Ok(output::table(["LANE", "TO PUBLISH", "PUBLISHED OR SET ASIDE"], lanes.iter().map(row))?)
}

fn cluster(standing: &Standing) -> String {
    let Standing { written_in, cluster, .. } = standing;
    if standing.is_at_home() {
        format!("{cluster}, the one that the cursors were written in")
    } else {
        format!("{cluster}; the cursors were written in {written_in}")
    }
}

fn explain(error: RebaseError) -> anyhow::Error {
    match error {
        RebaseError::Pg(error) if error.is_conflict() => {
            let what = format!(
                "something else changed the outbox meanwhile, and nothing is re-based: run it again ({error})"
            );
            Failure::new(Kind::Other, what).into()
        }
        RebaseError::Pg(error) => error.into(),
        RebaseError::Refused(refusal) => Failure::new(Kind::Other, refusal.to_string()).into(),
    }
}
