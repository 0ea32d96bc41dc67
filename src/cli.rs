//! The command line: one file per subcommand, with its options and its `run`.

mod agents;
mod bench;
mod completions;
mod config;
mod confirm;
mod consumer;
mod dev;
mod doctor;
mod global;
mod groups;
mod health;
mod jobs;
mod lanes;
mod man;
mod messages;
mod migrate;
mod output;
mod producer;
mod rebase;
mod report;
mod retry;
mod send;

use clap::{Parser, Subcommand};

use crate::config::log::LogLevel;
use crate::failure::Exit;
use global::Global;

/// Publishes what applications write to their outbox in PostgreSQL to Kafka, and calls handlers once per message.
#[derive(Debug, Parser)]
#[command(version, after_help = HELP)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const HELP: &str = "\
Example:
  outboxd dev --demo                  see it work, without Postgres or Kafka of your own
  outboxd config check                is the configuration right?
  outboxd migrate                     make the schema
  outboxd producer                    publish

Exit codes:
  0  done                                     4  nothing by that name or id
  1  it failed while running                  5  refused without --yes or --all
  2  wrong usage, configuration or input      130, 143  a second signal cut the drain short
  3  Postgres or Kafka cannot be reached

Data is on standard output, everything else on standard error.";

#[derive(Debug, Subcommand)]
enum Command {
    Producer(producer::Options),
    Consumer(consumer::Options),
    Migrate(migrate::Options),
    Rebase(rebase::Options),
    Send(send::Options),
    Messages(messages::Options),
    Retry(retry::Options),
    Agents(agents::Options),
    Groups(groups::Options),
    Jobs(jobs::Options),
    Lanes(lanes::Options),
    Config(config::Options),
    Doctor(doctor::Options),
    Health(health::Options),
    Dev(dev::Options),
    Bench(bench::Options),
    Completions(completions::Options),
    Man(man::Options),
}

impl Cli {
    /// Runs the command; a failure is reported on standard error.
    pub async fn run(&self) -> Exit {
        let global = &self.global;
        let result = match &self.command {
            Command::Producer(options) => options.run(global).await,
            Command::Consumer(options) => options.run(global).await,
            Command::Migrate(options) => options.run(global).await,
            Command::Rebase(options) => options.run(global).await,
            Command::Send(options) => options.run(global).await,
            Command::Messages(options) => options.run(global).await,
            Command::Retry(options) => options.run(global).await,
            Command::Agents(options) => options.run(global).await,
            Command::Groups(options) => options.run(global).await,
            Command::Jobs(options) => options.run(global).await,
            Command::Lanes(options) => options.run(global).await,
            Command::Config(options) => options.run(global),
            Command::Doctor(options) => options.run(global).await,
            Command::Health(options) => options.run(global).await,
            Command::Dev(options) => options.run().await,
            Command::Bench(options) => options.run(global).await,
            Command::Completions(options) => options.run(),
            Command::Man(options) => options.run(),
        };
        result.unwrap_or_else(|error| self.report(&error))
    }

    /// Says on standard error what went wrong and what to do, once.
    pub fn report(&self, error: &anyhow::Error) -> Exit {
        report::report(error, self.colors_stderr())
    }

    /// `None` leaves it to `RUST_LOG`.
    pub fn log_level(&self) -> Option<&LogLevel> {
        self.global.log.as_ref()
    }

    /// Daemons tell what they do; one-shot commands only what is not right.
    pub fn default_log_level(&self) -> &'static str {
        match &self.command {
            Command::Dev(options) if options.tells_by_itself() => "warn",
            Command::Producer(_) | Command::Consumer(_) | Command::Dev(_) => "info",
            _ => "warn",
        }
    }

    pub fn logs_are_json(&self) -> bool {
        self.global.logs_are_json()
    }

    pub fn colors_stderr(&self) -> bool {
        self.global.colors_stderr()
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn each_command(command: &clap::Command, check: &mut impl FnMut(&clap::Command)) {
        check(command);
        command.get_subcommands().for_each(|inner| each_command(inner, check));
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_help_has_an_example_that_parses() {
        let mut examples = 0;
        each_command(&Cli::command(), &mut |command| {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let lines: Vec<_> =
                help.lines().filter(|line| line.starts_with("  ") && line.contains("outboxd ")).collect();
            assert!(!lines.is_empty(), "{} has no example", command.get_name());
            for line in lines {
                let words = shell_words(line);
                assert!(Cli::try_parse_from(&words).is_ok(), "{}: {words:?}", command.get_name());
                examples += 1;
            }
        });
        assert!(examples > 20);
    }

    /// The outboxd call of an example: after a pipe, before a comment set off by spaces or a redirection.
    fn shell_words(line: &str) -> Vec<String> {
        let call = &line[line.find("outboxd ").unwrap()..];
        let call = call.split("   ").next().unwrap().split(" | ").next().unwrap();
        let mut words = vec![String::new()];
        let mut quote = None;
        for character in call.trim().chars() {
            match (quote, character) {
                (Some(open), close) if open == close => quote = None,
                (None, '\'' | '"') => quote = Some(character),
                (None, ' ') => words.push(String::new()),
                _ => words.last_mut().unwrap().push(character),
            }
        }
        if let Some(redirection) = words.iter().position(|word| word == "<" || word == ">") {
            words.truncate(redirection);
        }
        words
    }
}
