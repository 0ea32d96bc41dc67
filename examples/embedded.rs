//! outboxd's consumer inside of a program of one's own: takes orders, each once.
//!
//!     cargo run --example embedded -- embedded.toml
//!
//! `outboxd migrate` has made the schema, `outboxd producer` runs, and `embedded.toml` is at least
//!
//!     [postgres]
//!     url = "postgres://outboxd@localhost/app"
//!     [kafka]
//!     brokers = "localhost:9092"
//!     [groups.orders]
//!     topics = ["orders"]
//!     [groups.orders.handler]
//!     kind = "embedded"
//!
//! `outboxd send --topic orders --key customer-7 --type OrderPlaced '{"id":42}'` gives it something to do; Ctrl-C ends it.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use outboxd::embed::{Config, Consumer, Delivery, Handler, Outcome};

struct Orders;

impl Handler for Orders {
    async fn handle(&self, delivery: &Delivery) -> Outcome {
        // The same in every try: look it up before you act, if acting twice would do harm.
        let operation = delivery.idempotency_key.clone().unwrap_or_else(|| delivery.message_id.to_string());
        let Some(payload) = &delivery.record.payload else {
            println!("{operation}: gone");
            return Outcome::Done;
        };
        match serde_json::from_slice::<serde_json::Value>(payload) {
            Ok(order) => {
                println!("{operation}: {order}");
                Outcome::Done
            }
            Err(error) => Outcome::Permanent { reason: format!("not an order: {error}") },
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let path = std::env::args().nth(1).context("usage: embedded CONFIG")?;
    let config = Config::load(Some(Path::new(&path)))?.config;
    let exit = Consumer::new(config).group("orders", Orders)?.run().await?;
    Ok(exit.into())
}
