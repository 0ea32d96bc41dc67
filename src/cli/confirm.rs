//! Asking before something is changed for good.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::failure::{Failure, Kind};

/// Asks on a terminal, unless `yes`; anything but a yes is an error, and so is nobody there to ask.
pub fn confirm(question: &str, yes: bool) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    let refused = |what: &str| Failure::new(Kind::Refused, what);
    let (stdin, mut stderr) = (io::stdin(), io::stderr());
    if !stdin.is_terminal() || !stderr.is_terminal() {
        return Err(refused("nothing is changed: without a terminal to ask at, it takes --yes").into());
    }
    write!(stderr, "{question} [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(refused("nothing is changed").into()),
    }
}
