//! Postgres refuses to run as root: where the tests do, it runs as the user that Debian's package made.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Who Postgres runs as.
pub struct User {
    ids: Option<(u32, u32)>,
}

impl User {
    /// The user `postgres` if this is root, else whoever this is.
    pub fn for_postgres() -> Self {
        let ids = rustix::process::geteuid().is_root().then(|| look_up("postgres"));
        Self { ids }
    }

    pub fn own(&self, path: &Path) {
        if let Some((uid, gid)) = self.ids {
            chown(path, Some(uid), Some(gid)).unwrap();
        }
    }

    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if let Some((uid, gid)) = self.ids {
            command.uid(uid).gid(gid);
        }
        command
    }
}

fn look_up(name: &str) -> (u32, u32) {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let fields =
        passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == name);
    let fields = fields.unwrap_or_else(|| panic!("there is no user {name}: run `make setup`"));
    (fields[2].parse().unwrap(), fields[3].parse().unwrap())
}
