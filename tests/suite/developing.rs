//! `outboxd dev`: it shows what it promises, to any user, and leaves nothing behind however it ends.

use std::fs::Permissions;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Signal, geteuid};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::process::Process;
use crate::support::{eventually, eventually_some};

const PATIENCE: Duration = Duration::from_secs(60);

/// Where an `outboxd dev` keeps everything that is temporary.
struct Ground(TempDir);

impl Ground {
    fn new() -> Self {
        let directory = TempDir::with_prefix("outboxd-ground-").unwrap();
        // Like /tmp: any user makes folders there, and removes those that are its own.
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o1777)).unwrap();
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("TMPDIR", self.path()).current_dir(self.path());
        command
    }

    fn start(&self, arguments: &[&str]) -> Process {
        let mut command = self.command(env!("CARGO_BIN_EXE_outboxd"));
        command.arg("dev").args(arguments);
        // Its last signal is one after which it cleans up.
        Process::start("outboxd dev", &mut command, &self.log(), "TERM")
    }

    /// Outside of what must be empty in the end.
    fn log(&self) -> PathBuf {
        self.path().with_extension("log")
    }

    fn folders(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.to_string_lossy().contains("outboxd-dev-")).collect()
    }

    /// Processes that were told of this place.
    fn processes(&self) -> Vec<String> {
        let place = self.path().to_str().unwrap();
        let commands = std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| std::fs::read(entry.unwrap().path().join("cmdline")).ok());
        commands
            .map(|command| String::from_utf8_lossy(&command).replace('\0', " "))
            .filter(|command| command.contains(place))
            .collect()
    }

    async fn is_left_clean(&self) {
        eventually("no process and no folder is left", PATIENCE, async || {
            self.processes().is_empty() && self.folders().is_empty()
        })
        .await;
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.log());
    }
}

async fn up(process: &Process) -> String {
    eventually_some("it is up", PATIENCE, async || {
        let log = process.log();
        assert!(process.exited().is_none(), "it ended: {log}");
        log.contains("Ctrl-C ends it.").then_some(log)
    })
    .await
}

fn assert_account(output: &std::process::Output) {
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text} {}", String::from_utf8_lossy(&output.stderr));
    let count =
        |words: &str| text.lines().filter(|line| line.contains("order ") && line.contains(words)).count();
    assert_eq!(count("rolled back  never published"), 3, "{text}");
    assert_eq!(
        (count("handled once by group orders"), count("skipped: the operation is done")),
        (9, 1),
        "{text}"
    );
    assert!(
        text.contains("10 messages committed: 10 published, 9 handled, 1 skipped. 3 rolled back"),
        "{text}"
    );
}

#[tokio::test]
async fn the_demo_gives_its_account_and_ends() {
    let ground = Ground::new();
    let mut command = tokio::process::Command::from(ground.command(env!("CARGO_BIN_EXE_outboxd")));
    assert_account(&command.args(["dev", "--demo"]).output().await.unwrap());
    ground.is_left_clean().await;
}

#[tokio::test]
async fn the_demo_works_for_users_who_are_not_root() {
    if !geteuid().is_root() {
        // Then the test above has shown it.
        return;
    }
    let ground = Ground::new();
    // The build may lie where others do not get.
    let program = ground.path().join("outboxd");
    std::fs::copy(env!("CARGO_BIN_EXE_outboxd"), &program).unwrap();
    for (user, group) in [("nobody", "nogroup"), ("postgres", "postgres")] {
        let mut command = tokio::process::Command::from(ground.command("setpriv"));
        command.args(["--reuid", user, "--regid", group, "--clear-groups"]).arg(&program);
        assert_account(&command.args(["dev", "--demo"]).output().await.unwrap());
    }
    ground.is_left_clean().await;
}

#[tokio::test]
async fn what_it_prints_can_be_copied_into_a_shell() {
    let ground = Ground::new();
    let dev = ground.start(&[]);
    let log = up(&dev).await;
    let lines = log.lines().map(str::trim);
    let script: Vec<_> = lines
        .filter(|line| ["psql ", "export ", "outboxd "].iter().any(|start| line.starts_with(start)))
        .collect();
    assert!(script.len() > 4 && script[0].starts_with("outboxd dev is up"), "{log}");
    let binaries = Path::new(env!("CARGO_BIN_EXE_outboxd")).parent().unwrap();
    let path = format!("{}:{}", binaries.display(), std::env::var("PATH").unwrap());
    let shell = async |script: &str| {
        let mut shell = tokio::process::Command::from(ground.command("sh"));
        let output = shell.args(["-ec", script]).env("PATH", &path).output().await.unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let listed = shell(&script[1..].join("\n")).await;
    assert!(listed.contains("orders") && listed.contains("active"), "{listed}");
    let export = script.iter().find(|line| line.starts_with("export ")).unwrap();
    let messages: Value =
        serde_json::from_str(&shell(&format!("{export}\noutboxd messages list --json")).await).unwrap();
    assert_eq!(messages.as_array().unwrap().len(), 2, "one by SQL, one by `send`");
    for message in messages.as_array().unwrap() {
        let show = format!("{export}\noutboxd messages show {} --json", message["id"].as_str().unwrap());
        eventually("it is handled", PATIENCE, async || {
            let shown: Value = serde_json::from_str(&shell(&show).await).unwrap();
            shown["state"] == "published" && shown["handled"][0]["group"] == "orders"
        })
        .await;
    }
    dev.signal(Signal::INT);
    assert_eq!(dev.ended(PATIENCE).await.code(), Some(0), "{}", dev.log());
    ground.is_left_clean().await;
}

#[tokio::test]
async fn nothing_is_left_of_one_that_was_killed() {
    let ground = Ground::new();
    let dev = ground.start(&[]);
    up(&dev).await;
    assert!(!ground.processes().is_empty() && ground.folders().len() == 1);
    dev.kill();
    ground.is_left_clean().await;
}

#[tokio::test]
async fn nothing_is_left_of_one_that_was_interrupted_while_it_started() {
    let ground = Ground::new();
    let dev = ground.start(&[]);
    eventually("initdb works", PATIENCE, async || {
        ground.folders().iter().any(|folder| folder.join("postgres").exists())
    })
    .await;
    dev.signal(Signal::INT);
    assert_eq!(dev.ended(PATIENCE).await.code(), Some(0), "{}", dev.log());
    ground.is_left_clean().await;
}

#[tokio::test]
async fn data_is_kept_where_it_was_asked_for_and_belongs_to_one_at_a_time() {
    let ground = Ground::new();
    let data = ground.path().join("data");
    let arguments = ["--data-dir", data.to_str().unwrap()];
    let psql = |log: &str, sql: &str| {
        let line = log.lines().map(str::trim).find(|line| line.starts_with("psql ")).unwrap();
        let connect = line.split(" -c ").next().unwrap();
        let output = Command::new("sh").args(["-c", &format!("{connect} -Atc \"{sql}\"")]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let dev = ground.start(&arguments);
    let log = up(&dev).await;
    psql(&log, "select outboxd.enqueue('orders', 'kept')");
    let second = {
        let mut command = tokio::process::Command::from(ground.command(env!("CARGO_BIN_EXE_outboxd")));
        command.arg("dev").args(arguments).output().await.unwrap()
    };
    let words = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{words}");
    assert!(words.contains("--data-dir"), "{words}");
    dev.signal(Signal::TERM);
    assert_eq!(dev.ended(PATIENCE).await.code(), Some(0), "{}", dev.log());
    ground.is_left_clean().await;

    std::fs::remove_file(ground.log()).unwrap();
    let dev = ground.start(&arguments);
    let log = up(&dev).await;
    assert_eq!(psql(&log, "select convert_from(payload, 'UTF8') from outboxd.messages"), "kept");
    dev.signal(Signal::INT);
    assert_eq!(dev.ended(PATIENCE).await.code(), Some(0), "{}", dev.log());
    assert!(data.join("postgres/PG_VERSION").exists());
}

#[tokio::test]
async fn a_folder_that_is_not_its_own_is_refused_and_left_as_it_was() {
    let ground = Ground::new();
    let foreign = ground.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("precious"), "").unwrap();
    let before = std::fs::metadata(&foreign).unwrap();
    let mut command = tokio::process::Command::from(ground.command(env!("CARGO_BIN_EXE_outboxd")));
    let output = command.args(["dev", "--data-dir"]).arg(&foreign).output().await.unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("is not empty"), "{words}");
    let after = std::fs::metadata(&foreign).unwrap();
    assert_eq!((after.mode(), after.uid()), (before.mode(), before.uid()));
    assert_eq!(std::fs::read_dir(&foreign).unwrap().count(), 1);
}
