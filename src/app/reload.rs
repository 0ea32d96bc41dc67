//! SIGHUP: the file is read again, checked as at a start, and what can change under way is changed. A file that is wrong
//! changes nothing.

use crate::config::{Config, Loaded, is_live};
use crate::failure;
use crate::jobs::own::{self, Prepared};
use crate::lifecycle::Reloads;
use crate::telemetry;

/// What is in force, and where it came from.
pub(super) struct Reload {
    signals: Reloads,
    loaded: Box<Loaded>,
    role: &'static str,
}

/// What is in force from now on.
pub(super) struct Reloaded {
    pub(super) config: Config,
    pub(super) own_jobs: Vec<Prepared>,
}

impl Reload {
    /// From now on the process is not ended by SIGHUP.
    pub(super) fn listen(loaded: &Loaded, role: &'static str) -> std::io::Result<Self> {
        Ok(Self { signals: Reloads::listen()?, loaded: Box::new(loaded.clone()), role })
    }

    /// Waits for the next SIGHUP that finds a file that is right. `config` is what is in force.
    pub(super) async fn next(&mut self, config: &Config) -> Reloaded {
        loop {
            self.signals.next().await;
            match self.read(config) {
                Ok(reloaded) => return reloaded,
                Err(error) => {
                    let problem = failure::words(error.chain());
                    tracing::error!("SIGHUP: the configuration stays as it was: {problem}");
                }
            }
            self.signals.done();
        }
    }

    /// What it brought is in force.
    pub(super) fn done(&self) {
        self.signals.done();
    }

    /// Reads the file again; an error leaves everything as it is.
    fn read(&mut self, config: &Config) -> anyhow::Result<Reloaded> {
        let loaded = Config::load(self.loaded.path.as_deref())?;
        let own_jobs = own::prepare(&loaded.config.jobs, self.role)?;
        let changed = self.loaded.differences(&loaded);
        let (applied, waiting): (Vec<_>, Vec<_>) = changed.into_iter().partition(|path| is_live(path));
        let config = config.with_live(&loaded.config);
        // What waits is compared with what the process has, also by the next reload.
        *self.loaded = if waiting.is_empty() { loaded } else { self.loaded.keeping(loaded) };
        tracing::info!(applied = names(&applied), "SIGHUP: the configuration is read again");
        if !waiting.is_empty() {
            tracing::warn!("changed, and in force after a restart only: {}", names(&waiting));
        }
        if !telemetry::follow(config.log.level.as_ref()) && applied.iter().any(|path| path[0] == "log") {
            tracing::warn!("`[log] level` gives way to --log or RUST_LOG");
        }
        Ok(Reloaded { config, own_jobs })
    }
}

fn names(paths: &[Vec<String>]) -> String {
    paths.iter().map(|path| path.join(".")).collect::<Vec<_>>().join(", ")
}
