//! What a process, or a whole Postgres server, has used, as far as `/proc` shows it.

use procfs::process::{Process, Stat, all_processes};
use serde::Serialize;

use crate::pg::connect::Connection;
use crate::pg::{PgError, benching};

/// Of one process so far.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Usage {
    pub cpu_seconds: f64,
    pub peak_memory_bytes: u64,
}

/// Nothing if it is gone, or if this system has no `/proc`.
pub fn of_process(pid: i32) -> Option<Usage> {
    let process = Process::new(pid).ok()?;
    let stat = process.stat().ok()?;
    let peak_kib = process.status().ok()?.vmhwm?;
    Some(Usage { cpu_seconds: seconds(stat.utime + stat.stime), peak_memory_bytes: peak_kib * 1024 })
}

fn seconds(ticks: u64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "ticks of a benchmark")]
    let seconds = ticks as f64 / procfs::ticks_per_second() as f64;
    seconds
}

/// A Postgres server whose processes we can see: its postmaster.
#[derive(Clone, Copy, Debug)]
pub struct Postmaster(i32);

impl Postmaster {
    /// Nothing if the server is on another machine, or in another container.
    pub async fn of(connection: &Connection) -> Result<Option<Self>, PgError> {
        let (pid, database) = benching::backend(connection).await?;
        Ok(Self::parent_of(pid, &database))
    }

    fn parent_of(pid: i32, database: &str) -> Option<Self> {
        let process = Process::new(pid).ok()?;
        // The number might be another process's here: this one says whom it serves.
        let title = process.cmdline().ok()?.join(" ");
        (title.starts_with("postgres") && title.contains(database))
            .then(|| process.stat().ok().map(|stat| Self(stat.ppid)))?
    }

    /// What all of the server has used, sessions that have ended included.
    pub fn cpu_seconds(self) -> Option<f64> {
        let postmaster = Process::new(self.0).ok()?.stat().ok()?;
        let children = all_processes().ok()?.flatten().filter_map(|process| process.stat().ok());
        let ticks: u64 = children.filter(|stat| stat.ppid == self.0).map(|stat| own(&stat)).sum();
        let reaped = u64::try_from(postmaster.cutime + postmaster.cstime).unwrap_or(0);
        Some(seconds(ticks + own(&postmaster) + reaped))
    }
}

fn own(stat: &Stat) -> u64 {
    stat.utime + stat.stime
}
