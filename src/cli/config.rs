//! `outboxd config`.

use chrono::Utc;
use clap::{Args, Subcommand};

use super::global::Global;
use super::output;
use crate::config::job::ASK_EVERY;
use crate::config::{self, Config, Handler, Job, Loaded};
use crate::domain::schedule::Schedule;
use crate::failure::Exit;

/// Firings of a job that `check` shows.
const NEXT: usize = 5;

/// Look at the configuration, without connecting to anything
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  outboxd --config ./outboxd.toml config check")]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Is it valid, and what does it declare? If not: exit 2, with line and caret
    #[command(after_help = "Example:\n  outboxd config check --config /etc/outboxd/outboxd.toml")]
    Check,
    /// The effective values and where each comes from, secrets masked
    #[command(after_help = "Example:\n  outboxd config dump")]
    Dump {
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Every key there is, with its kind, default and meaning, as Markdown
    #[command(after_help = "Example:\n  outboxd config reference | less")]
    Reference,
}

impl Options {
    pub fn run(&self, global: &Global) -> anyhow::Result<Exit> {
        match self.command {
            Command::Check => output::line(&summary(&global.load()?))?,
            Command::Dump { json: true } => output::json(&global.load()?.dump_json())?,
            Command::Dump { json: false } => output::line(&global.load()?.dump())?,
            Command::Reference => output::line(&config::reference()?)?,
        }
        Ok(Exit::Done)
    }
}

fn summary(loaded: &Loaded) -> String {
    let Config { postgres, kafka, groups, jobs, .. } = &loaded.config;
    let path = loaded.path.as_ref().map_or("no file".to_owned(), |path| path.display().to_string());
    let mut facts = vec![("postgres", postgres.url.address().to_owned()), ("kafka", kafka.brokers.clone())];
    for (name, group) in groups {
        facts.push(("group", format!("{name}: {} -> {}", group.topics.join(", "), handler(&group.handler))));
    }
    for (name, job) in jobs {
        facts.push(("job", format!("{name}: {}", when(job))));
    }
    format!("valid: {path}\n{}", output::facts(facts))
}

/// The schedule, and by this host's clock the next firings of it.
fn when(job: &Job) -> String {
    let own = job.own.as_ref().and_then(|own| own.on.as_ref().map(|_| Schedule::Every(ASK_EVERY)));
    let schedule = match (&job.schedule, own) {
        _ if !job.enabled => return "switched off".to_owned(),
        (Some(schedule), _) => schedule.clone(),
        (None, Some(asked)) => asked,
        (None, None) => return "by its own schedule".to_owned(),
    };
    let zone = match schedule.timezone() {
        "UTC" => String::new(),
        zone => format!(" {zone}"),
    };
    let next: Vec<String> = schedule.after(Utc::now()).take(NEXT).map(output::time).collect();
    match schedule {
        Schedule::Continuous => schedule.to_string(),
        _ if next.is_empty() => format!("{schedule}{zone}, never due any more"),
        _ => format!("{schedule}{zone}, next {}", next.join(", ")),
    }
}

fn handler(handler: &Handler) -> String {
    match handler {
        Handler::Log => "log".to_owned(),
        Handler::Exec { command, .. } => format!("exec {}", command.join(" ")),
        Handler::Embedded { .. } => "embedded".to_owned(),
        Handler::Http(http) => format!("http {}", http.url),
        Handler::Sql { function, .. } => format!("sql {function}"),
    }
}
