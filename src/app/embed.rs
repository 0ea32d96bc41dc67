//! outboxd's consumer as a part of a program of your own, with handlers in Rust.
//!
//! The program is an agent like any other: it registers, beats, reports its health over HTTP, shares the partitions of
//! its groups with whoever else consumes for them, and keeps every promise of `outboxd consumer`. A group that it
//! handles is declared with `kind = "embedded"`. `examples/embedded.rs` is a whole program.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use super::run_consumer;
use crate::config::Handler as Declared;
use crate::consumer::handler::{Embedded, Handler as Prepared};
use crate::failure::{Failure, Kind};
use crate::lifecycle::Lifecycle;

pub use crate::config::Config;
pub use crate::consumer::handler::EmbeddedHandler as Handler;
pub use crate::domain::delivery::{Delivery, Outcome, Record};
pub use crate::failure::Exit;

/// Groups with their handlers, ready to run.
pub struct Consumer {
    config: Config,
    handlers: BTreeMap<String, Prepared>,
}

impl Consumer {
    /// `Config::parse(text, ...)` and `Config::load(path)` make a configuration.
    pub fn new(config: Config) -> Self {
        Self { config, handlers: BTreeMap::new() }
    }

    /// Consumes for this group with this handler. An error if the configuration does not declare the group with
    /// `kind = "embedded"`.
    pub fn group(mut self, name: &str, handler: impl Handler) -> anyhow::Result<Self> {
        let problem = match self.config.groups.get(name).map(|group| &group.handler) {
            Some(Declared::Embedded { timeout }) => {
                let handler = Embedded { handler, timeout: *timeout };
                self.handlers.insert(name.to_owned(), Prepared::Outside(Box::new(handler)));
                return Ok(self);
            }
            Some(_) => format!("group `{name}` is not declared with kind = \"embedded\""),
            None => format!("there is no group `{name}`"),
        };
        Err(Failure::new(Kind::Configuration, problem).into())
    }

    /// Until SIGTERM or SIGINT: then it takes on nothing new and finishes what is under way, within `drain_timeout`.
    /// Postgres and Kafka are waited for.
    pub async fn run(self) -> anyhow::Result<Exit> {
        let lifecycle = Lifecycle::on_signals(self.config.agent.drain_timeout)?;
        run_consumer(self.config, self.handlers, lifecycle, None).await
    }

    /// The same, until `stop` is there, for a program with signals of its own.
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> anyhow::Result<Exit> {
        let lifecycle = Lifecycle::manual();
        let limit: Duration = self.config.agent.drain_timeout;
        let running = run_consumer(self.config, self.handlers, lifecycle.clone(), None);
        let stopping = async {
            stop.await;
            lifecycle.drain.cancel();
            tokio::time::sleep(limit).await;
            lifecycle.abort.cancel();
            std::future::pending().await
        };
        tokio::select! {
            exit = running => exit,
            never = stopping => never,
        }
    }
}
