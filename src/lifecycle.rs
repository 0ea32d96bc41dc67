//! From the first signal to the end: the first drains, a second or a deadline aborts. systemd is told on the way.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
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
    second_signal: watch::Sender<Option<i32>>,
}

impl Lifecycle {
    /// Without signals: `dev` and tests drain it themselves.
    pub fn manual() -> Self {
        Self {
            drain: CancellationToken::new(),
            abort: CancellationToken::new(),
            second_signal: watch::Sender::default(),
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
        let second = tokio::select! {
            () = tokio::time::sleep(drain_timeout) => None,
            signal = next(&mut terminate, &mut interrupt) => Some(signal),
        };
        if second.is_none() {
            tracing::error!("the drain has not ended in time: stopping now");
            self.abort.cancel();
        }
        let (number, name) = match second {
            Some(signal) => signal,
            None => next(&mut terminate, &mut interrupt).await,
        };
        tracing::error!("{name} again: stopping now");
        self.abort.cancel();
        self.second_signal.send_replace(Some(number));
    }

    /// Waits for the second signal, and returns its number: nothing is worth waiting for any more.
    pub async fn second_signal(&self) -> i32 {
        let mut signal = self.second_signal.subscribe();
        let number = signal.wait_for(Option::is_some).await.ok().and_then(|number| *number);
        // The sender is ours: it is never gone.
        number.unwrap_or_default()
    }
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> (i32, &'static str) {
    tokio::select! {
        _ = terminate.recv() => (SignalKind::terminate().as_raw_value(), "SIGTERM"),
        _ = interrupt.recv() => (SignalKind::interrupt().as_raw_value(), "SIGINT"),
    }
}

/// SIGHUP: the configuration is to be read again. Whoever listens is not ended by it.
pub struct Reloads(Signal);

impl Reloads {
    pub fn listen() -> std::io::Result<Self> {
        signal(SignalKind::hangup()).map(Self)
    }

    /// The next one; systemd is told that it is under way.
    pub async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(error) => tracing::debug!("systemd cannot be told: {error}"),
        }
    }

    /// It is over, however it went.
    pub fn done(&self) {
        tell(&[NotifyState::Ready]);
    }
}

/// Tells systemd that the start is over, then how it stands, and feeds its watchdog while the loops turn.
pub async fn keep_systemd_informed(report: impl Fn() -> Report) {
    tell(&[NotifyState::Ready]);
    let every = sd_notify::watchdog_enabled().map_or(TELL_EVERY, |interval| (interval / 3).min(TELL_EVERY));
    loop {
        tell(&standing(&report()));
        tokio::time::sleep(every).await;
    }
}

fn standing(report: &Report) -> Vec<NotifyState<'_>> {
    let mut states = vec![NotifyState::Status(report.problem().unwrap_or("working"))];
    if report.alive {
        states.push(NotifyState::Watchdog);
    }
    states
}

/// Without systemd there is nobody to tell.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("systemd cannot be told: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::health::Check;

    #[test]
    fn the_watchdog_is_fed_while_it_waits_and_starves_when_a_loop_is_stuck() {
        let report = |alive| {
            let problem = Some("PostgreSQL cannot be reached".to_owned());
            Report { checks: vec![Check { name: "database", problem }], alive }
        };
        let told = |alive| standing(&report(alive)).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(told(true), ["STATUS=PostgreSQL cannot be reached", "WATCHDOG=1"]);
        assert_eq!(told(false), ["STATUS=PostgreSQL cannot be reached"]);
    }
}
