//! The built program, with a configuration: `Outboxd::new(&database, kafka).group(...).producer()`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

use super::{Daemon, Database, Kafka, PASSWORD, port};

const ONE_SHOT: Duration = Duration::from_secs(60);

/// What a one-shot command answered.
#[derive(Debug)]
pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

pub struct Outboxd {
    /// Replaced one by one; the rest of the configuration is in `settings`.
    addresses: Option<Addresses>,
    settings: String,
    environment: Vec<(String, String)>,
    directory: Arc<TempDir>,
    config: OnceLock<PathBuf>,
}

struct Addresses {
    postgres: String,
    brokers: String,
    owner: String,
}

impl Outboxd {
    /// With the rights of a daemon (`outboxd_agent`) on the database, and no more.
    pub fn new(database: &Database, kafka: &Kafka) -> Self {
        let (postgres, owner) = (database.agent_url(), database.url.clone());
        Self {
            addresses: Some(Addresses { postgres, brokers: kafka.brokers(), owner }),
            ..Self::with_config("")
        }
    }

    /// The same for commands that need no broker: nobody answers at the address of this one.
    pub fn without_kafka(database: &Database) -> Self {
        let (postgres, owner) = (database.agent_url(), database.url.clone());
        let addresses = Addresses { postgres, brokers: "127.0.0.1:1".to_owned(), owner };
        Self { addresses: Some(addresses), ..Self::with_config("") }
    }

    /// With that configuration file and nothing else: for files that are wrong on purpose.
    pub fn with_config(text: &str) -> Self {
        let directory = Arc::new(TempDir::with_prefix("outboxd-config-").unwrap());
        let (settings, environment) = (text.to_owned(), Vec::new());
        Self { addresses: None, settings, environment, directory, config: OnceLock::new() }
    }

    /// As the owner of the schema: for `migrate`.
    pub fn owner(mut self) -> Self {
        let addresses = self.addresses();
        addresses.postgres.clone_from(&addresses.owner);
        self
    }

    pub fn postgres_url(mut self, url: &str) -> Self {
        url.clone_into(&mut self.addresses().postgres);
        self
    }

    pub fn brokers(mut self, brokers: &str) -> Self {
        brokers.clone_into(&mut self.addresses().brokers);
        self
    }

    /// As a client of Kafka to whom topics can be forbidden.
    pub fn guarded(self, kafka: &Kafka) -> Self {
        let outboxd = self.brokers(&kafka.guarded_brokers());
        let properties = Kafka::guarded_client();
        properties.iter().fold(outboxd, |outboxd, (property, value)| {
            outboxd.set(&format!("kafka.client.\"{property}\" = \"{value}\""))
        })
    }

    fn addresses(&mut self) -> &mut Addresses {
        self.addresses.as_mut().expect("made by `new`")
    }

    /// A line of the configuration with its whole dotted name: `producer.lease = "2s"`.
    pub fn set(mut self, line: &str) -> Self {
        self.settings.push_str(line);
        self.settings.push('\n');
        self
    }

    /// A group of one topic; each line of `handler` is a key of its handler: `kind = "log"`.
    pub fn group(self, name: &str, topic: &str, handler: &str) -> Self {
        let outboxd = self.set(&format!("groups.{name}.topics = [\"{topic}\"]"));
        let lines = handler.lines().map(str::trim).filter(|line| !line.is_empty());
        lines.fold(outboxd, |outboxd, line| outboxd.set(&format!("groups.{name}.handler.{line}")))
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Dies at that point of the program, or at the count-th passing of it: `"after-window"`, `"after-window:3"`.
    /// Only a build with the feature `failpoints` knows any.
    pub fn failpoint(self, point: &str) -> Self {
        self.env("OUTBOXD_FAILPOINT", point)
    }

    /// The configuration file.
    pub fn config(&self) -> &PathBuf {
        self.config.get_or_init(|| {
            let addresses = self.addresses.as_ref().map(|Addresses { postgres, brokers, .. }| {
                format!("postgres.url = \"{postgres}\"\nkafka.brokers = \"{brokers}\"\n")
            });
            let path = self.directory.path().join("outboxd.toml");
            std::fs::write(&path, addresses.unwrap_or_default() + &self.settings).unwrap();
            path
        })
    }

    /// Starts a producer.
    pub fn producer(&self) -> Daemon {
        self.daemon(&["producer"])
    }

    /// Starts a consumer for those groups.
    pub fn consumer(&self, groups: &[&str]) -> Daemon {
        let groups = groups.iter().flat_map(|group| ["--group", group]);
        self.daemon(&["consumer"].into_iter().chain(groups).collect::<Vec<_>>())
    }

    /// Starts any command that stays, with a listener of its own.
    pub fn daemon(&self, arguments: &[&str]) -> Daemon {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, port::free()));
        let mut command = self.command(arguments);
        command.args(["--listen", &listen.to_string()]);
        Daemon::start(
            &format!("outboxd {}", arguments.join(" ")),
            &mut command,
            listen,
            Arc::clone(&self.directory),
        )
    }

    /// Runs a one-shot command to its end.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        self.run_with_input(arguments, b"").await
    }

    /// Runs a one-shot command to its end, with that on its standard input.
    pub async fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut command = tokio::process::Command::from(self.command(arguments));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let feed = async move {
            // It need not read to the end.
            let _ = stdin.write_all(input).await;
        };
        let ran = async { tokio::join!(feed, child.wait_with_output()).1.unwrap() };
        let output = tokio::time::timeout(ONE_SHOT, ran).await;
        let output =
            output.unwrap_or_else(|_| panic!("outboxd {}: not within {ONE_SHOT:?}", arguments.join(" ")));
        let text = |bytes| String::from_utf8(bytes).expect("what it prints is text");
        let code = output.status.code().expect("it ends by itself");
        let output = Output { code, stdout: text(output.stdout), stderr: text(output.stderr) };
        assert!(
            !output.stdout.contains(PASSWORD) && !output.stderr.contains(PASSWORD),
            "it shows a password: {output:?}"
        );
        output
    }

    /// Not started yet: for what the rest does not cover.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outboxd"));
        let inherited = std::env::vars_os().map(|(name, _)| name);
        for name in
            inherited.filter(|name| name.to_string_lossy().starts_with("OUTBOXD") || name == "RUST_LOG")
        {
            command.env_remove(name);
        }
        command.args(arguments).arg("--config").arg(self.config()).current_dir(self.directory.path());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}
