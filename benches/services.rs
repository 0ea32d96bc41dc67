//! Measures the built program on a Postgres and a Kafka of its own, which are gone at the end.
//!
//!     cargo bench --bench services -- relay --rounds 1    any `outboxd bench ...`

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a measurement that cannot be made says so")]

#[path = "../tests"]
mod tests {
    #[allow(dead_code, unused_imports, reason = "the tests use the rest")]
    pub mod support;
}

use std::process::{Command, ExitCode};

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
    let status = services.bench(&arguments).status().unwrap();
    ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1))
}

/// A server, a broker, and a configuration that names them.
struct Services {
    _postgres: Postgres,
    _kafka: Kafka,
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
        Self { _postgres: postgres, _kafka: kafka, directory }
    }

    /// `outboxd bench` on these services.
    fn bench(&self, arguments: &[String]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outboxd"));
        command.arg("bench").args(arguments).arg("--config").arg(self.directory.path().join("outboxd.toml"));
        command
    }
}
