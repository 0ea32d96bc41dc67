//! What the runner knows of one job: what it wants of the board now, and what became of its runs.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::job::{Hears, Job, Order, Work};
use super::run::{Result, Run};
use super::status::{Event, Observer};
use crate::domain::firings::{Gone, Misfire, Past, REST, Scope, Step};
use crate::domain::schedule::Schedule;
use crate::pg::jobs::{Entry, Standing};

pub(super) struct Slot {
    pub(super) job: Arc<Job>,
    pub(super) run: Option<Run>,
    /// The board has it; what is wanted at a start was asked for.
    pub(super) is_entered: bool,
    /// It is not configured any more, and goes when its run has ended.
    pub(super) is_leaving: bool,
    /// There was nothing to do up to this firing, which no claim has used up.
    pub(super) looked_until: Option<DateTime<Utc>>,
    /// Of a job that each agent runs for itself: what has been here, and the last order that was obeyed.
    own: Option<(Past, DateTime<Utc>)>,
    /// The same before the present run, which may not come about.
    before: Option<(Past, DateTime<Utc>)>,
    /// What did not come about is not tried again sooner.
    rests_until: Option<DateTime<Utc>>,
    /// When the present run was started, by the database's clock.
    started_at: DateTime<Utc>,
    /// Given what has been, nothing is due before then: the calendar need not be asked every second.
    waits: Option<(Past, DateTime<Utc>)>,
    failures: u32,
}

/// What is to be done about a job.
pub(super) enum Want {
    Nothing {
        until: Option<DateTime<Utc>>,
    },
    Pass {
        to: DateTime<Utc>,
        gone: Gone,
    },
    Start {
        firing: DateTime<Utc>,
        last_firing: DateTime<Utc>,
        requested: Option<DateTime<Utc>>,
        gone: Gone,
    },
    /// Once more, for a run that was not heard of any more.
    Redo {
        firing: DateTime<Utc>,
        last_firing: DateTime<Utc>,
        lost: Uuid,
    },
}

impl Slot {
    pub(super) fn new(job: Job) -> Self {
        Self {
            job: Arc::new(job),
            run: None,
            is_entered: false,
            is_leaving: false,
            looked_until: None,
            own: None,
            before: None,
            rests_until: None,
            started_at: DateTime::UNIX_EPOCH,
            waits: None,
            failures: 0,
        }
    }

    /// The same job as it is configured now.
    pub(super) fn with(self, job: Job) -> Self {
        Self { job: Arc::new(job), waits: None, is_leaving: false, ..self }
    }

    pub(super) fn entry(&self) -> Entry<'_> {
        let Job { name, scope, role, rules, enabled, at_start, .. } = &*self.job;
        Entry {
            name,
            scope: scope.name(),
            role,
            schedule: rules.schedule.to_string(),
            timezone: rules.schedule.timezone(),
            enabled: *enabled && !self.is_leaving,
            at_start: *at_start && *enabled && !self.is_entered,
        }
    }

    pub(super) fn want(&mut self, standing: &Standing, now: DateTime<Utc>) -> Want {
        let rests = self.rests_until.is_some_and(|until| now < until && until <= now + REST);
        if !self.job.enabled || self.is_leaving || self.run.is_some() || rests {
            return Want::Nothing { until: None };
        }
        let (past, requested) = match self.job.scope {
            Scope::Cluster if standing.is_running => return Want::Nothing { until: standing.busy_until },
            Scope::Cluster => {
                let looked_until = self.looked_until.filter(|until| *until <= now);
                let last = looked_until.map_or(standing.last_firing, |until| until.max(standing.last_firing));
                (Past { last, busy: standing.started_at.zip(standing.busy_until) }, standing.run_requested_at)
            }
            Scope::Agent => {
                let first = (Past { last: now, busy: None }, standing.run_requested_at.unwrap_or(now));
                let (past, obeyed) = *self.own.get_or_insert(first);
                (past, standing.run_requested_at.filter(|requested| *requested > obeyed))
            }
        };
        // What was promised comes first: a run by order would take its place on the board.
        if self.is_redone()
            && !standing.is_paused
            && let (Some(firing), Some(lost)) = (standing.firing, standing.lease)
        {
            return Want::Redo { firing, last_firing: standing.last_firing, lost };
        }
        if let Some(at) = requested {
            let last_firing = standing.last_firing;
            return Want::Start { firing: at, last_firing, requested, gone: Gone::default() };
        }
        if standing.is_paused {
            return Want::Nothing { until: None };
        }
        if let Some((_, until)) =
            self.waits.filter(|(known, until)| *known == past && now < *until && past.last <= now)
        {
            return Want::Nothing { until: Some(until) };
        }
        match self.job.rules.step(&self.job.name, past, now) {
            Step::Wait(until) => {
                self.waits = until.map(|until| (past, until));
                Want::Nothing { until }
            }
            Step::Pass { to, gone } => Want::Pass { to, gone },
            Step::Start { firing, gone } => {
                Want::Start { firing, last_firing: firing, requested: None, gone }
            }
        }
    }

    /// What a program or a server was asked to do is asked again, if nobody knows whether it was done.
    fn is_redone(&self) -> bool {
        self.job.scope == Scope::Cluster && matches!(self.job.work, Work::Within { then: Some(_), .. })
    }

    /// Tells a service of its firing; when the next one is.
    pub(super) fn let_run(
        &mut self,
        standing: &Standing,
        now: DateTime<Utc>,
        hears: &Hears,
    ) -> Option<DateTime<Utc>> {
        match self.want(standing, now) {
            // It runs anyway.
            _ if self.job.rules.schedule == Schedule::Continuous => None,
            Want::Nothing { until } => until,
            Want::Pass { to, .. } => {
                self.passed(to);
                self.job.rules.schedule.next_after(now)
            }
            Want::Start { last_firing, requested, .. } => {
                self.started(last_firing, requested, now);
                hears(Order::Run);
                self.job.rules.schedule.next_after(now)
            }
            Want::Redo { .. } => None,
        }
    }

    /// Of what each agent runs for itself.
    pub(super) fn passed(&mut self, to: DateTime<Utc>) {
        if let Some((past, _)) = &mut self.own {
            past.last = to;
        }
    }

    pub(super) fn started(
        &mut self,
        last_firing: DateTime<Utc>,
        requested: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) {
        self.started_at = now;
        self.before = self.own;
        let Some((past, obeyed)) = &mut self.own else { return };
        match requested {
            Some(requested) => *obeyed = requested,
            None => past.last = last_firing,
        }
    }

    /// One that did not come about leaves its firing as it was.
    pub(super) fn ended(&mut self, took: Duration, is_still_due: bool) {
        let (began, ended) =
            (self.started_at, self.started_at + TimeDelta::from_std(took).unwrap_or_default());
        if is_still_due {
            (self.own, self.rests_until) = (self.before, Some(ended + REST));
        } else if let Some((past, _)) = &mut self.own {
            past.busy = Some((began, ended));
        }
    }

    /// Of firings that get no start, how many were missed, and a line for the history.
    pub(super) fn words_of(&self, gone: Gone) -> (u32, Option<String>) {
        let Gone { missed, overlapped } = gone;
        let mut words = Vec::new();
        if missed > 0 {
            words.push(format!("{missed} firings were missed (misfire = \"{}\")", self.policy()));
        }
        if overlapped > 0 {
            words.push(format!("{overlapped} fell into a run (overlap = \"skip\")"));
        }
        (missed, (!words.is_empty()).then(|| words.join(", ")))
    }

    /// Counts and logs them, once they are ours to tell.
    pub(super) fn tell_gone(&self, gone: Gone, observer: &Observer) {
        let job = self.job.name.as_str();
        let told = [(self.policy(), gone.missed), ("overlap", gone.overlapped)];
        for (policy, firings) in told.into_iter().filter(|(_, firings)| *firings > 0) {
            observer(Event::Missed { job, policy, firings });
        }
        if let (_, Some(note)) = self.words_of(gone) {
            tracing::warn!(job, "{note}");
        }
    }

    fn policy(&self) -> &'static str {
        match self.job.rules.misfire {
            Misfire::Skip => "skip",
            Misfire::Once => "once",
            Misfire::All => "all",
        }
    }

    /// Says once how a run went; a failure that goes on, at growing distances.
    pub(super) fn tell_result(&mut self, result: &Result) {
        let job = self.job.name.as_str();
        match result {
            Result::Done(done) => {
                self.failures = 0;
                if let Some(words) = &done.words {
                    tracing::info!(job, "{words}");
                }
            }
            Result::Skipped | Result::Nothing => {}
            Result::Away(why) => {
                self.failures += 1;
                if self.failures.is_power_of_two() {
                    let failures = self.failures;
                    tracing::warn!(job, failures, "its firing stays due, and is tried again: {why}");
                }
            }
            Result::Failed(why) | Result::Cut(why) => {
                self.failures += 1;
                let failures = self.failures;
                if failures.is_power_of_two() {
                    tracing::warn!(job, failures, "the job failed and runs again at its next firing: {why}");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
