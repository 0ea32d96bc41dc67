//! From the first signal to the end: the first drains, a second or a deadline aborts. systemd is told on the way.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::domain::health::Report;

/// How often systemd is told how it stands, if its watchdog does not ask for more.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// The two tokens that everything long-lived listens to.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    /// Take on nothing new, finish what is under way.
    pub drain: CancellationToken,
    /// Stop where you are.
    pub abort: CancellationToken,
    cut_short_by: Arc<AtomicI32>,
}

impl Lifecycle {
    /// Without signals: `dev` and tests drain it themselves.
    pub fn manual() -> Self {
        Self {
            drain: CancellationToken::new(),
            abort: CancellationToken::new(),
            cut_short_by: Arc::default(),
        }
    }

    /// Listens to SIGTERM and SIGINT. `drain_timeout` runs from the first of them.
    pub fn on_signals(drain_timeout: Duration) -> std::io::Result<Self> {
        let lifecycle = Self::manual();
        let signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::spawn(lifecycle.clone().listen(signals, drain_timeout));
        Ok(lifecycle)
    }

    async fn listen(self, (mut terminate, mut interrupt): (Signal, Signal), drain_timeout: Duration) {
        let name = next(&mut terminate, &mut interrupt).await.1;
        tracing::info!("{name}: draining for at most {}", humantime::format_duration(drain_timeout));
        tell(&[NotifyState::Stopping]);
        self.drain.cancel();
        tokio::select! {
            () = tokio::time::sleep(drain_timeout) => tracing::error!("the drain has not ended in time: stopping now"),
            (number, name) = next(&mut terminate, &mut interrupt) => {
                tracing::error!("{name} again: stopping now");
                self.cut_short_by.store(number, Ordering::SeqCst);
            }
        }
        self.abort.cancel();
    }

    /// The second signal that cut the drain short, if one did.
    pub fn cut_short_by(&self) -> Option<i32> {
        Some(self.cut_short_by.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
    }
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> (i32, &'static str) {
    tokio::select! {
        _ = terminate.recv() => (SignalKind::terminate().as_raw_value(), "SIGTERM"),
        _ = interrupt.recv() => (SignalKind::interrupt().as_raw_value(), "SIGINT"),
    }
}

/// Tells systemd that the start is over, then how it stands, and feeds its watchdog while the loops turn.
pub async fn keep_systemd_informed(report: impl Fn() -> Report) {
    tell(&[NotifyState::Ready]);
    let every = sd_notify::watchdog_enabled().map_or(TELL_EVERY, |interval| (interval / 3).min(TELL_EVERY));
    loop {
        let report = report();
        tell(&[NotifyState::Status(report.problem().unwrap_or("working"))]);
        if report.alive {
            tell(&[NotifyState::Watchdog]);
        }
        tokio::time::sleep(every).await;
    }
}

/// Without systemd there is nobody to tell.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("systemd cannot be told: {error}");
    }
}
