//! A program as it is named: found before the first message, run without a shell.

use std::ffi::OsString;
use std::io;
use std::path::Path;

use rustix::fs::{Access, access};
use tokio::process::Command;

use super::SetupError;

/// What overrides the configuration may hold secrets, and is outboxd's own.
const OVERRIDES: &str = "OUTBOXD__";

/// Where a program is looked for if `PATH` is not set, as the C library does.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

pub struct Program {
    pub name: String,
    arguments: Vec<String>,
    /// Variables of the daemon that are not for the program.
    pub withheld: Vec<OsString>,
}

impl Program {
    pub fn new(command: &[String]) -> Result<Self, SetupError> {
        let (program, arguments) =
            command.split_first().filter(|(program, _)| !program.is_empty()).ok_or(SetupError::NoCommand)?;
        find(program).map_err(|problem| SetupError::Program { program: program.clone(), problem })?;
        let withheld = std::env::vars_os()
            .map(|(name, _)| name)
            .filter(|name| name.as_encoded_bytes().starts_with(OVERRIDES.as_bytes()))
            .collect();
        Ok(Self { name: program.clone(), arguments: arguments.to_vec(), withheld })
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.name);
        command.args(&self.arguments);
        for name in &self.withheld {
            command.env_remove(name);
        }
        command
    }

    /// Why it could not be run.
    pub fn explain(&self, error: &io::Error) -> String {
        let hint = if error.kind() == io::ErrorKind::NotFound {
            " (is it still there, and the interpreter that its first line names?)"
        } else {
            ""
        };
        format!("program `{}` could not be run: {error}{hint}", self.name)
    }
}

/// Looks a program up as `execvp` will.
fn find(program: &str) -> Result<(), &'static str> {
    if program.contains('/') {
        return check(Path::new(program));
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    let mut found = Err("is not in PATH");
    for candidate in
        std::env::split_paths(&path).map(|folder| folder.join(program)).filter(|path| path.exists())
    {
        found = check(&candidate);
        if found.is_ok() {
            break;
        }
    }
    found
}

fn check(path: &Path) -> Result<(), &'static str> {
    if !path.exists() {
        return Err("does not exist");
    }
    if !path.is_file() {
        return Err("is not a file");
    }
    access(path, Access::EXEC_OK).map_err(|_| "is not executable by the daemon's user")
}
