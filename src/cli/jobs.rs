//! `outboxd jobs`.

use clap::{Args, Subcommand};

use super::global::{Global, connect, connect_to_look};
use super::output::{self, maybe};
use super::retry::operator::operator;
use crate::config::Config;
use crate::failure::{Exit, Failure};
use crate::pg::connect::Connection;
use crate::pg::jobs::history::{self, Job, Run};
use crate::pg::jobs::orders::{JobOrder, OrderError};

/// Look at what recurs, run a job now, pause one
///
/// Orders reach every agent within a second or two, and those that start later.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  outboxd jobs list")]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Every job: when it runs, how it went last, when it is due next
    ///
    /// States: waiting, running, paused, disabled (in the file, or gone from it), absent (no agent has it any more).
    #[command(after_help = "Example:\n  outboxd jobs list\n  outboxd jobs list --next")]
    List {
        /// One array of objects, with the next 5 firings of each
        #[arg(long)]
        json: bool,
        /// The next 5 firings of each, and nothing else
        #[arg(long, conflicts_with = "json")]
        next: bool,
    },
    /// Run it now, also if it is paused; if it is under way, once more behind that
    #[command(after_help = "Example:\n  outboxd jobs run cleanup")]
    Run { job: String },
    /// Start it by schedule no more, in the whole cluster; what runs goes on
    #[command(after_help = "Example:\n  outboxd jobs pause cleanup")]
    Pause { job: String },
    /// Let it go on with its next firing; what was due meanwhile is not made up for
    #[command(after_help = "Example:\n  outboxd jobs resume cleanup")]
    Resume { job: String },
    /// What became of the last runs, the newest first
    ///
    /// Results: done, failed, cut (by its timeout), lost (with its agent), missed (nobody could start it in time), skipped
    /// (its condition was not true). Jobs that are built in tell only of runs that did something or failed.
    #[command(after_help = "Example:\n  outboxd jobs history month-end --limit 5")]
    History {
        job: Option<String>,
        /// How many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=10_000))]
        limit: i64,
        /// Those before the run of this number: the last one of a page shows the next
        #[arg(long, value_name = "RUN")]
        after: Option<i64>,
        /// One array of objects
        #[arg(long)]
        json: bool,
    },
}

impl Options {
    pub async fn run(&self, global: &Global) -> anyhow::Result<Exit> {
        let config = global.load()?.config;
        match &self.command {
            Command::List { json, next } => {
                let client = connect_to_look(&config, "jobs").await?;
                let jobs = history::list(&*client, None).await?;
                match (json, next) {
                    (true, _) => output::json(&jobs)?,
                    (false, true) => next_table(&jobs)?,
                    (false, false) => table(&jobs)?,
                }
            }
            Command::History { job, limit, after, json } => {
                let client = connect_to_look(&config, "jobs").await?;
                let runs = history::runs(&*client, job.as_deref(), *after, *limit).await?;
                if let (Some(job), true) = (job, runs.is_empty()) {
                    find(&client, job).await?;
                }
                if *json { output::json(&runs)? } else { runs_table(&runs)? }
            }
            Command::Run { job } => order(&config, JobOrder::Run, job).await?,
            Command::Pause { job } => order(&config, JobOrder::Pause, job).await?,
            Command::Resume { job } => order(&config, JobOrder::Resume, job).await?,
        }
        Ok(Exit::Done)
    }
}

async fn order(config: &Config, order: JobOrder, job: &str) -> anyhow::Result<()> {
    let mut client = connect(config, "jobs").await?;
    let job = find(&client, job).await?.name;
    let changed = order.carry_out(&mut client, &job, &operator()).await.map_err(|error| match error {
        OrderError::Refused(reason) => Failure::usage(format!("job `{job}`: {reason}")).into(),
        OrderError::Database(error) => anyhow::Error::new(error).context(format!("job {job}")),
    })?;
    let what = match (order, changed) {
        (JobOrder::Run, _) => "runs within a second or two",
        (JobOrder::Pause, true) => "is paused",
        (JobOrder::Pause, false) => "was paused already",
        (JobOrder::Resume, true) => "goes on with its next firing",
        (JobOrder::Resume, false) => "was not paused",
    };
    Ok(output::line(&format!("job {job} {what}"))?)
}

async fn find(client: &Connection, job: &str) -> anyhow::Result<Job> {
    let unknown = || {
        Failure::not_found(format!(
            "no job `{job}`: it is known once an agent that has it has started; `outboxd jobs list` shows those that are"
        ))
    };
    Ok(history::list(&**client, Some(job)).await?.pop().ok_or_else(unknown)?)
}

fn table(jobs: &[Job]) -> Result<(), output::OutputError> {
    let columns = ["NAME", "SCOPE", "SCHEDULE", "STATE", "LAST", "RESULT", "AGENT", "NEXT"];
    output::table(columns, jobs.iter().map(row))
}

fn next_table(jobs: &[Job]) -> Result<(), output::OutputError> {
    let row = |job: &Job| {
        let next: Vec<String> = job.next.iter().copied().map(output::time).collect();
        [job.name.clone(), schedule(job), job.state.clone(), next.join(", ")]
    };
    output::table(["NAME", "SCHEDULE", "STATE", "NEXT"], jobs.iter().map(row))
}

fn schedule(job: &Job) -> String {
    match job.timezone.as_str() {
        "UTC" => job.schedule.clone(),
        timezone => format!("{} {timezone}", job.schedule),
    }
}

fn row(job: &Job) -> [String; 8] {
    let result = match (&job.result, &job.error) {
        (Some(result), Some(error)) => format!("{result}: {error}"),
        (result, _) => maybe(result.clone()),
    };
    [
        job.name.clone(),
        job.scope.clone(),
        schedule(job),
        job.state.clone(),
        maybe(job.started_at.map(output::time)),
        result,
        maybe(job.agent.clone()),
        maybe(job.next.first().copied().map(output::time)),
    ]
}

fn runs_table(runs: &[Run]) -> Result<(), output::OutputError> {
    let columns = ["RUN", "JOB", "FIRING", "RESULT", "TOOK", "ROWS", "AGENT", "WHY", "ERROR"];
    output::table(
        columns,
        runs.iter().map(|run| {
            let took = run.started_at.map(|began| (run.ended_at - began).as_seconds_f64());
            [
                run.id.to_string(),
                run.job.clone(),
                output::time(run.firing),
                run.result.clone(),
                maybe(took.map(output::age)),
                maybe(run.rows),
                run.agent.clone(),
                run.requested_by.as_ref().map_or_else(|| "due".to_owned(), |by| format!("asked by {by}")),
                maybe(run.error.clone()),
            ]
        }),
    )
}
