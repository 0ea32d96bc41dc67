//! A Postgres cluster of the tests' own, from Debian's binaries.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use outboxd::config::Roles;
use outboxd::pg::Connector;
use outboxd::pg::migrate::migrate;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::sync::OnceCell;

use super::database::{self, Database, PASSWORD};
use super::process::Process;
use super::unprivileged::User;
use super::{eventually, port, tls, watchdog};

const TEMPLATE: &str = "outboxd_template";
const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(60);

/// Everyone but the superuser comes with a password.
const HBA: &str = "\
local all all trust
host all postgres 127.0.0.1/32 trust
host all all 127.0.0.1/32 scram-sha-256
host replication postgres 127.0.0.1/32 trust
";

const SETTINGS: &[&str] = &[
    "listen_addresses=127.0.0.1",
    "fsync=on",
    "wal_level=logical",
    "max_connections=300",
    "max_prepared_transactions=20",
    "shared_buffers=64MB",
    "max_wal_size=256MB",
    "ssl=on",
    "ssl_cert_file=server.crt",
    "ssl_key_file=server.key",
];

/// Over these, for measurements: room as on a small server, and no checkpoint in the middle of a run.
const FOR_LOAD: &[&str] = &["shared_buffers=1GB", "max_wal_size=8GB", "checkpoint_timeout=30min"];

/// Over these, to count statements.
const COUNTING: &[&str] = &["shared_preload_libraries=pg_stat_statements"];

pub struct Postgres {
    process: Mutex<Option<Process>>,
    more_settings: &'static [&'static str],
    port: u16,
    directory: TempDir,
    bin: PathBuf,
    user: User,
}

impl Postgres {
    /// The one cluster of this run: never stop it.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Postgres> = OnceCell::const_new();
        SHARED.get_or_init(Self::private).await
    }

    /// Another cluster of this run, for databases that move: never stop it.
    pub async fn elsewhere() -> &'static Self {
        static ELSEWHERE: OnceCell<Postgres> = OnceCell::const_new();
        ELSEWHERE.get_or_init(Self::private).await
    }

    /// A cluster for one test, to be stopped, killed or frozen.
    pub async fn private() -> Self {
        Self::made(&[]).await
    }

    /// A cluster to be measured.
    #[allow(dead_code, reason = "only measurements use it")]
    pub async fn for_load() -> Self {
        Self::made(FOR_LOAD).await
    }

    /// A cluster that counts statements, for whoever creates the extension.
    pub async fn counting() -> Self {
        Self::made(COUNTING).await
    }

    async fn made(more_settings: &'static [&'static str]) -> Self {
        let mut postgres = Self::prepare().await;
        postgres.more_settings = more_settings;
        postgres.start().await;
        postgres.make_template().await;
        postgres
    }

    /// A standby that streams from this primary, by way of that port.
    pub async fn standby(&self, port: u16) -> Self {
        let standby = Self::without_data();
        standby
            .run(
                "pg_basebackup",
                &[
                    "--write-recovery-conf",
                    "--checkpoint=fast",
                    "--no-sync",
                    "--host=127.0.0.1",
                    "--username=postgres",
                ],
                &[("--port", port.to_string().as_ref()), ("--pgdata", standby.data().as_ref())],
            )
            .await;
        standby.start().await;
        standby
    }

    /// What `pg_upgrade` makes of it, started: the same transaction ids in a new cluster.
    pub async fn upgraded(self) -> Self {
        let admin = database::connect(&database::url("postgres", self.port, "postgres")).await;
        let open = format!("alter database {TEMPLATE} with allow_connections true");
        admin.batch_execute(&open).await.unwrap();
        drop(admin);
        self.stop().await;
        let upgraded = Self::prepare().await;
        upgraded
            .run(
                "pg_upgrade",
                &["--username=postgres"],
                &[
                    ("--old-bindir", self.bin.as_ref()),
                    ("--new-bindir", upgraded.bin.as_ref()),
                    ("--old-datadir", self.data().as_ref()),
                    ("--new-datadir", upgraded.data().as_ref()),
                    ("--old-port", port::free().to_string().as_ref()),
                    ("--new-port", port::free().to_string().as_ref()),
                ],
            )
            .await;
        upgraded.start().await;
        upgraded
    }

    fn without_data() -> Self {
        let directory = TempDir::with_prefix("outboxd-postgres-").unwrap();
        watchdog::remove(directory.path());
        let user = User::for_postgres();
        user.own(directory.path());
        Self {
            process: Mutex::new(None),
            more_settings: &[],
            port: port::free(),
            directory,
            bin: newest_bin(),
            user,
        }
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Runs one of Postgres' programs to its end; it must go well.
    async fn run(&self, program: &str, arguments: &[&str], options: &[(&str, &OsStr)]) {
        let mut command = self.user.command(&self.bin.join(program));
        command.args(arguments).current_dir(self.directory.path());
        for (option, value) in options {
            command.arg(option).arg(value);
        }
        let output = tokio::process::Command::from(command).output().await;
        let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&said));
    }

    async fn prepare() -> Self {
        let postgres = Self::without_data();
        let data = postgres.data();
        postgres
            .run(
                "initdb",
                &["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"],
                &[("--pgdata", data.as_ref())],
            )
            .await;
        std::fs::write(data.join("pg_hba.conf"), HBA).unwrap();
        let (certificate, key) = (data.join("server.crt"), data.join("server.key"));
        tls::write(&certificate, &key);
        for file in [&certificate, &key] {
            std::fs::set_permissions(file, Permissions::from_mode(0o600)).unwrap();
            postgres.user.own(file);
        }
        postgres
    }

    /// On 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What a client verifies the server's certificate against; it is made out for `localhost`.
    pub fn root_cert(&self) -> PathBuf {
        self.data().join("server.crt")
    }

    /// The database of that name here, where it was moved to; not dropped, the cluster is a test's own.
    pub fn moved(&self, database: &Database) -> Database {
        database.at(self.port)
    }

    /// A migrated database of its own for a test; gone when dropped.
    pub async fn database(&self) -> Database {
        Database::create(self.port, Some(TEMPLATE)).await
    }

    /// A database on which nobody has run `outboxd migrate`.
    pub async fn empty_database(&self) -> Database {
        Database::create(self.port, None).await
    }

    /// Starts it, on the same port and data as before, and waits until it answers.
    pub async fn start(&self) {
        *self.process.lock().unwrap() = Some(self.spawn());
        let url = database::url("postgres", self.port, "postgres");
        eventually("Postgres answers", START, async || {
            self.restart_if_it_met_a_dying_one();
            database::try_connect(&url).await.is_ok()
        })
        .await;
    }

    /// Ends it in good order.
    pub async fn stop(&self) {
        let process = self.process.lock().unwrap().take().expect("it runs");
        process.signal(Signal::INT);
        process.ended(STOP).await;
    }

    /// Ends it as a crash of its machine would, but for what the system still writes.
    pub fn kill(&self) {
        self.process.lock().unwrap().take().expect("it runs").kill();
    }

    /// Freezes the process that takes connections; sessions that are open go on.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        self.process.lock().unwrap().as_ref().expect("it runs").signal(signal);
    }

    fn spawn(&self) -> Process {
        let mut command = self.user.command(&self.bin.join("postgres"));
        command.arg("-D").arg(self.data()).arg("-p").arg(self.port.to_string());
        command.arg("-k").arg(self.directory.path());
        for setting in SETTINGS.iter().chain(self.more_settings) {
            command.args(["-c", setting]);
        }
        // An immediate shutdown: it takes its children and its shared memory along.
        Process::start("Postgres", &mut command, &self.directory.path().join("log"), "QUIT")
    }

    /// After a kill its sessions take a moment to notice, and until then no new server is let in.
    fn restart_if_it_met_a_dying_one(&self) {
        let mut process = self.process.lock().unwrap();
        let running = process.as_ref().expect("it was started");
        if running.exited().is_some() {
            let words = running.last_words();
            assert!(
                words.contains("still in use") || words.contains("already exists"),
                "Postgres ended. {words}"
            );
            *process = Some(self.spawn());
        }
    }

    /// The migrated database that tests get copies of, and the people in it.
    async fn make_template(&self) {
        let mut template = Database::create_named(self.port, TEMPLATE, None).await;
        let settings = outboxd::config::Postgres {
            url: template.url.parse().expect("a URL"),
            password_file: None,
            pool_size: 1,
            prepared_statements: true,
            roles: Roles::default(),
        };
        let connector = Connector::new(&settings, "outboxd/test");
        migrate(&mut connector.connect().await.expect("Postgres lets us in"), Some(&settings.roles))
            .await
            .expect("the template is migrated");
        let admin = database::connect(&database::url("postgres", self.port, "postgres")).await;
        admin
            .batch_execute(&format!(
                "create role app login password '{PASSWORD}' in role outboxd_app;
                 create role agent login password '{PASSWORD}' in role outboxd_agent;
                 create role operator login password '{PASSWORD}' in role outboxd_operator;
                 create role reader login password '{PASSWORD}' in role outboxd_reader;
                 alter database {TEMPLATE} with is_template true allow_connections false;"
            ))
            .await
            .expect("the template is closed");
        template.keep();
    }
}

/// Of the newest version that is installed.
fn newest_bin() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).max();
    let version = newest.expect("Postgres is installed: run `make setup`");
    Path::new("/usr/lib/postgresql").join(version.to_string()).join("bin")
}
