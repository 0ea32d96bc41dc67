//! `outboxd completions`.

use std::io::{self, Write};

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;
use super::output::OutputError;
use crate::failure::Exit;

/// Print completions for a shell
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  outboxd completions bash > /usr/share/bash-completion/completions/outboxd\n  outboxd completions zsh > \"${fpath[1]}/_outboxd\"\n  outboxd completions fish > ~/.config/fish/completions/outboxd.fish"
)]
pub struct Options {
    #[arg(value_enum)]
    shell: Shell,
}

impl Options {
    pub fn run(&self) -> anyhow::Result<Exit> {
        // Made in memory: the generator panics where it cannot write.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "outboxd", &mut script);
        io::stdout().lock().write_all(&script).map_err(OutputError)?;
        Ok(Exit::Done)
    }
}
