//! What outboxd takes while there is nothing to do, and what a client takes that only asks as often: waking up is most of
//! both, and costs several times as much on one machine as on another.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;

use super::producing::Producing;
use super::usage::{self, Postmaster};
use super::workbench::Workbench;
use crate::pg::benching;
use crate::pg::connect::Connection;

/// Until its polls have found their rest.
const SETTLING: Duration = Duration::from_secs(3);

/// Between two questions, as an idle relay has it.
const ASK_EVERY: Duration = Duration::from_millis(20);

const NO_PROC: &str = "/proc does not show what a process uses";

#[derive(Debug, Serialize)]
pub struct IdleReport {
    pub bench: &'static str,
    pub seconds: f64,
    /// Of one core.
    pub cpu_percent: f64,
    /// Of one core, of the sessions that serve it; nothing if the server is on another machine.
    pub sessions_cpu_percent: Option<f64>,
    pub peak_memory_bytes: u64,
    /// Of one core, a client of this process that asks for the snapshot as often, and nothing else.
    pub asking_cpu_percent: f64,
    /// The same of its session.
    pub asking_session_cpu_percent: Option<f64>,
}

pub async fn run(bench: &mut Workbench, duration: Duration) -> anyhow::Result<IdleReport> {
    let outbox = bench.outbox().await?;
    let client = outbox.connect().await?;
    let is_local = Postmaster::of(&client).await?.is_some();
    let mut producing = Producing::start(&outbox).await?;
    bench.progress.say("watching a relay that has nothing to do");
    tokio::time::sleep(SETTLING).await;
    producing.begin_counting();
    let before = sessions(&client).await?;
    tokio::time::sleep(duration).await;
    producing.check()?;
    let used = producing.usage().context(NO_PROC)?;
    let after = sessions(&client).await?;
    producing.stop().await?;
    bench.progress.say("asking as often");
    let (session, _) = benching::backend(&client).await?;
    let asking_before = (of_this_process()?, cpu_seconds(session));
    ask(&client, duration).await?;
    let asking = of_this_process()? - asking_before.0;
    let asked = cpu_seconds(session).zip(asking_before.1).map(|(after, before)| after - before);
    let percent = |seconds: f64| seconds * 100.0 / duration.as_secs_f64();
    let of_sessions: f64 =
        after.iter().map(|(pid, seconds)| seconds - before.get(pid).copied().unwrap_or_default()).sum();
    Ok(IdleReport {
        bench: "idle",
        seconds: duration.as_secs_f64(),
        cpu_percent: percent(used.cpu_seconds),
        sessions_cpu_percent: is_local.then(|| percent(of_sessions)),
        peak_memory_bytes: used.peak_memory_bytes,
        asking_cpu_percent: percent(asking),
        asking_session_cpu_percent: asked.filter(|_| is_local).map(percent),
    })
}

async fn ask(client: &Connection, duration: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + duration;
    while Instant::now() < until {
        tokio::time::sleep(ASK_EVERY).await;
        benching::snapshot(client).await?;
    }
    Ok(())
}

fn of_this_process() -> anyhow::Result<f64> {
    cpu_seconds(i32::try_from(std::process::id())?).context(NO_PROC)
}

fn cpu_seconds(pid: i32) -> Option<f64> {
    usage::of_process(pid).map(|usage| usage.cpu_seconds)
}

/// What each session of the relay has used so far.
async fn sessions(client: &Connection) -> anyhow::Result<HashMap<i32, f64>> {
    let pids = benching::sessions(client).await?;
    Ok(pids.into_iter().filter_map(|pid| Some((pid, cpu_seconds(pid)?))).collect())
}
