//! Measures the built program on a Postgres and a Kafka of its own, which are gone at the end.
//!
//!     cargo bench --bench services -- report              everything, into docs/performance.md
//!     cargo bench --bench services -- peers               Debezium's outbox router beside outboxd
//!     cargo bench --bench services -- relay --rounds 1    any `outboxd bench ...`

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a measurement that cannot be made says so")]

mod services {
    pub mod peers;
    pub mod report;
}

#[path = "../tests"]
mod tests {
    #[allow(dead_code, unused_imports, reason = "the tests use the rest")]
    pub mod support;
}

use std::ffi::OsStr;
use std::process::{Command, ExitCode, Stdio};

use serde_json::Value;
use services::{peers, report};
use tempfile::TempDir;
use tests::support::{Kafka, Postgres};

#[tokio::main]
async fn main() -> ExitCode {
    // Cargo adds one of its own.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if arguments.is_empty() {
        eprintln!("nothing to measure: see `make help`");
        return ExitCode::SUCCESS;
    }
    let services = Services::start().await;
    if arguments == ["peers"] {
        return if peers::compare(&services).await { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    if arguments == ["report"] {
        return if report::write(&services) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let status = services.bench(&arguments).status().unwrap();
    ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1))
}

/// A server, a broker, and a configuration that names them.
struct Services {
    postgres: Postgres,
    kafka: Kafka,
    directory: TempDir,
}

impl Services {
    async fn start() -> Self {
        let (postgres, kafka) = tokio::join!(Postgres::for_load(), Kafka::for_load());
        let directory = TempDir::with_prefix("outboxd-services-").unwrap();
        let config = format!(
            "postgres.url = \"postgres://postgres@127.0.0.1:{}/postgres\"\nkafka.brokers = \"{}\"\n",
            postgres.port(),
            kafka.brokers()
        );
        std::fs::write(directory.path().join("outboxd.toml"), config).unwrap();
        Self { postgres, kafka, directory }
    }

    /// `outboxd bench` on these services.
    fn bench(&self, arguments: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outboxd"));
        command.arg("bench").args(arguments).arg("--config").arg(self.directory.path().join("outboxd.toml"));
        command
    }

    /// What it measured; its progress is shown.
    fn measure(&self, arguments: &[&str]) -> Value {
        eprintln!("outboxd bench {}", arguments.join(" "));
        let mut command = self.bench(&[arguments, &["--json"]].concat());
        let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().unwrap();
        serde_json::from_slice(&output.stdout).expect("it tells what it measured")
    }
}
