//! `outboxd man`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Command, CommandFactory};
use clap_mangen::Man;

use super::Cli;
use super::output::OutputError;
use crate::failure::Exit;

/// Print the manual page, or write one for each command
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  outboxd man | man -l -\n  outboxd man --directory /usr/local/share/man/man1"
)]
pub struct Options {
    /// Write a page for each command into this directory: outboxd.1, outboxd-producer.1, ...
    #[arg(long, value_name = "PATH")]
    directory: Option<PathBuf>,
}

impl Options {
    pub fn run(&self) -> anyhow::Result<Exit> {
        let mut command = Cli::command();
        // Global options and subcommands know their full names only then.
        command.build();
        match &self.directory {
            Some(directory) => write_all(&command, "outboxd", directory)?,
            None => io::stdout().lock().write_all(&page(&command, "outboxd")?).map_err(OutputError)?,
        }
        Ok(Exit::Done)
    }
}

/// The page of this command and those of its subcommands.
fn write_all(command: &Command, name: &str, directory: &Path) -> anyhow::Result<()> {
    let path = directory.join(format!("{name}.1"));
    std::fs::write(&path, page(command, name)?).with_context(|| path.display().to_string())?;
    for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
        write_all(inner, &format!("{name}-{}", inner.get_name()), directory)?;
    }
    Ok(())
}

fn page(command: &Command, name: &str) -> io::Result<Vec<u8>> {
    // Its name on the page is that of the page; how it is called stands in the synopsis.
    let command = command.clone().display_name(name.to_owned());
    let mut page = Vec::new();
    Man::new(command).title(name.to_uppercase()).render(&mut page)?;
    Ok(page)
}
