//! A private Postgres cluster from installed binaries: on a socket only, ended with this process even if it is killed.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tempfile::TempDir;
use tokio::process::{Child, ChildStdin, Command};

use crate::config::{Postgres, Roles};
use crate::pg::Connector;

const DATABASE: &str = "app";
const USER: &str = "outboxd";

/// Where the data is in its folder, and the file that makes it data of Postgres.
const DATA: &str = "postgres";
const VERSION: &str = "PG_VERSION";

/// Debian's place for versions; elsewhere the search path is asked.
const DEBIAN: &str = "/usr/lib/postgresql";

/// For the first answer, and for the end; both take a second or two.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a server until its standard input ends, which it does when our process does, however it does, and removes the
/// folder. It ends when the server does.
const KEEPER: &str = r#"
folder=$1; shift
exec 3<&0
"$@" 3<&- & server=$!
{ read -r _ <&3; kill -INT $server; } & lifeline=$!
wait $server; status=$?
kill $lifeline
rm -rf "$folder"
exit $status
"#;

/// A running cluster.
pub(super) struct EmbeddedPostgres {
    /// Holds the socket; gone at the end. The data too, unless the operator named a place for it.
    folder: TempDir,
    keeper: Child,
    lifeline: Option<ChildStdin>,
}

/// Whom the server runs as: ourselves, or a user of its own if we are root, as Postgres demands.
#[derive(Clone, Copy)]
struct ServerUser(Option<(u32, u32)>);

impl EmbeddedPostgres {
    /// Starts it in `data_dir`, or in a temporary folder.
    pub(super) async fn start(data_dir: Option<&Path>) -> anyhow::Result<Self> {
        let binaries = binaries()?;
        let user = ServerUser::find()?;
        let folder = tempfile::Builder::new().prefix("outboxd-dev-").tempdir()?;
        user.own(folder.path())?;
        let home = match data_dir {
            Some(dir) => ours(dir).with_context(|| format!("--data-dir {}", dir.display()))?,
            None => folder.path().to_owned(),
        };
        let data = home.join(DATA);
        if !data.join(VERSION).exists() {
            user.own(&data)?;
            let mut initdb = user.command(&binaries.join("initdb"));
            initdb.args(["--username", USER, "--auth", "trust", "--encoding", "UTF8", "--locale", "C.UTF-8"]);
            initdb.args(["--no-sync", "-D"]).arg(&data).process_group(0);
            let output = initdb.output().await.context("initdb")?;
            if !output.status.success() {
                bail!("initdb failed: {}", String::from_utf8_lossy(&output.stderr).trim());
            }
        }
        let mut keeper = user.command(Path::new("/bin/sh"));
        keeper.args(["-c", KEEPER, "sh"]).arg(folder.path()).arg(binaries.join("postgres"));
        keeper.arg("-D").arg(&data).arg("-k").arg(folder.path());
        keeper.args([
            "-c",
            "listen_addresses=",
            "-c",
            "unix_socket_permissions=0700",
            "-c",
            "log_min_messages=fatal",
        ]);
        keeper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // A Ctrl-C is for us: the server goes last.
        let mut keeper = keeper.process_group(0).spawn().context("postgres cannot be started")?;
        let lifeline = keeper.stdin.take();
        let mut postgres = Self { folder, keeper, lifeline };
        postgres.create_database().await?;
        Ok(postgres)
    }

    async fn create_database(&mut self) -> anyhow::Result<()> {
        let url = self.url("postgres").parse()?;
        let settings = Postgres {
            url,
            password_file: None,
            pool_size: 1,
            prepared_statements: true,
            roles: Roles::default(),
        };
        let connector = Connector::new(&settings, "outboxd/dev");
        let started = Instant::now();
        let client = loop {
            match connector.connect().await {
                Ok(client) => break client,
                Err(error) if started.elapsed() > PATIENCE => return Err(error.into()),
                Err(_) => {}
            }
            if let Some(status) = self.keeper.try_wait()? {
                bail!("postgres ended at once ({status}): is another one running on the same --data-dir?");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        if client.query_opt("select from pg_database where datname = $1", &[&DATABASE]).await?.is_none() {
            client.batch_execute(&format!("create database {DATABASE}")).await?;
        }
        Ok(())
    }

    fn url(&self, database: &str) -> String {
        format!("postgres:///{database}?host={}&user={USER}", self.folder.path().display())
    }

    /// The application's database, as a connection string.
    pub(super) fn app_url(&self) -> String {
        self.url(DATABASE)
    }

    /// How `psql` gets there.
    pub(super) fn psql(&self) -> String {
        format!("psql -h {} -U {USER} {DATABASE}", self.folder.path().display())
    }

    /// Ends it, and waits for that.
    pub(super) async fn stop(mut self) {
        drop(self.lifeline.take());
        if tokio::time::timeout(PATIENCE, self.keeper.wait()).await.is_err() {
            tracing::warn!("postgres does not stop");
        }
    }
}

/// The folder, made if it is not there. One that holds anything but data of ours is somebody else's.
fn ours(dir: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(dir)?;
    if fs::read_dir(dir)?.next().is_some() && !dir.join(DATA).join(VERSION).exists() {
        bail!("the folder is not empty and not of an earlier `outboxd dev`: name another one");
    }
    Ok(fs::canonicalize(dir)?)
}

impl ServerUser {
    fn find() -> anyhow::Result<Self> {
        if procfs::process::Process::myself()?.uid()? != 0 {
            return Ok(Self(None));
        }
        let passwd = fs::read_to_string("/etc/passwd")?;
        let ids = passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
            (name == "postgres").then_some((uid, gid))
        });
        match ids {
            Some(ids) => Ok(Self(Some(ids))),
            None => bail!(
                "Postgres refuses to run as root, and there is no user `postgres`: run this as another user"
            ),
        }
    }

    fn own(self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        match self.0 {
            Some((uid, gid)) => chown(dir, Some(uid), Some(gid)),
            None => Ok(()),
        }
    }

    fn command(self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir("/").env("LC_ALL", "C.UTF-8");
        if let Some((uid, gid)) = self.0 {
            command.uid(uid).gid(gid);
        }
        command
    }
}

/// The folder of the newest installed version's programs.
fn binaries() -> anyhow::Result<PathBuf> {
    let complete = |dir: &PathBuf| dir.join("initdb").exists() && dir.join("postgres").exists();
    let newest = fs::read_dir(DEBIAN)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin")))
        })
        .filter(|(_, dir)| complete(dir))
        .max();
    if let Some((_, dir)) = newest {
        return Ok(dir);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).find(complete).context(
        "`outboxd dev` needs PostgreSQL's programs (initdb, postgres): on Debian, apt install postgresql",
    )
}
