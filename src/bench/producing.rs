//! A relay at work on an outbox, for measurements of what goes on beside it.

use std::time::{Duration, Instant};

use anyhow::bail;

use super::child::Child;
use super::usage::Usage;
use super::workbench::Outbox;
use crate::domain::priority::Priority;
use crate::pg::benching;

/// To join and to acquire its lanes.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Producing(Child);

impl Producing {
    /// Returns when every lane has an owner.
    pub async fn start(outbox: &Outbox) -> anyhow::Result<Self> {
        let client = outbox.connect().await?;
        let mut child = Child::start(&["producer"], &outbox.file, &outbox.log)?;
        let started = Instant::now();
        while usize::try_from(benching::lanes_owned(&client).await?)? < Priority::ALL.len() {
            child.check()?;
            if started.elapsed() > PATIENCE {
                bail!("the relay has no lanes after {}", humantime::format_duration(PATIENCE));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(Self(child))
    }

    pub fn check(&mut self) -> anyhow::Result<()> {
        self.0.check()
    }

    pub fn begin_counting(&mut self) {
        self.0.begin_counting();
    }

    pub fn usage(&self) -> Option<Usage> {
        self.0.usage()
    }

    pub fn pid(&self) -> i32 {
        self.0.pid()
    }

    pub async fn kill(self) -> anyhow::Result<()> {
        self.0.kill().await
    }

    pub async fn stop(self) -> anyhow::Result<()> {
        self.0.stop().await
    }
}
