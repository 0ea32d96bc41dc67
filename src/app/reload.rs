//! SIGHUP: the file is read again, checked as at a start, and what can change under way is changed. A file that is wrong
//! changes nothing.

use super::DaemonOptions;
use crate::config::{Config, Loaded, is_live};
use crate::jobs::own::{self, Prepared};

/// What is in force, and where it came from.
pub(super) struct Reload {
    loaded: Box<Loaded>,
    options: DaemonOptions,
    role: &'static str,
}

/// What is in force from now on.
pub(super) struct Reloaded {
    pub(super) config: Config,
    pub(super) own_jobs: Vec<Prepared>,
    pub(super) applied: Vec<String>,
    /// Keys that were changed and are the old ones until a restart.
    pub(super) waiting: Vec<String>,
}

impl Reload {
    pub(super) fn new(loaded: &Loaded, options: &DaemonOptions, role: &'static str) -> Self {
        Self { loaded: Box::new(loaded.clone()), options: options.clone(), role }
    }

    /// Reads the file again; an error leaves everything as it is.
    pub(super) fn read(&mut self) -> anyhow::Result<Reloaded> {
        let loaded = Config::load(self.loaded.path.as_deref())?;
        let own_jobs = own::prepare(&loaded.config.jobs, self.role)?;
        let changed = self.loaded.differences(&loaded);
        let (applied, waiting) = changed.into_iter().partition(|key| is_live(key));
        let config = self.options.clone().over(loaded.config.clone());
        // What waits is compared with what the process has, also by the next reload.
        *self.loaded = if Vec::is_empty(&waiting) { loaded } else { self.loaded.keeping(loaded, is_live) };
        Ok(Reloaded { config, own_jobs, applied, waiting })
    }
}
