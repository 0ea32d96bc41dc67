//! Which firing of a job is to start now, which went by without a start, and when to look again.
//!
//! A firing is a job and an instant of its schedule. What became of it is told by two times alone: the last firing that was
//! claimed, and until when a run was under way. Both stand in the database, so every agent decides alike.

use std::collections::VecDeque;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use xxhash_rust::xxh3::xxh3_64;

use super::schedule::Schedule;

/// How late a firing may start and still count as on time.
pub const ON_TIME: TimeDelta = TimeDelta::seconds(60);

/// Between two runs of a job that is always due.
pub const REST: TimeDelta = TimeDelta::seconds(1);

/// A clock may be set back by so much without a firing being due twice. What lies further ahead was a clock gone wrong.
const SET_BACK: TimeDelta = TimeDelta::hours(2);

/// The same for a job that may run twice.
const SET_BACK_A_LITTLE: TimeDelta = TimeDelta::seconds(5);

/// More firings than this that went by are not counted one by one.
const MOST_COUNTED: u32 = 10_000;

/// What becomes of a firing that is due while a run is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overlap {
    /// It is used up.
    #[default]
    Skip,
    /// It starts behind that run.
    Queue,
}

/// What becomes of firings that nobody could start in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Misfire {
    /// They are used up.
    Skip,
    /// The newest starts, for all of them.
    #[default]
    Once,
    /// Each starts, the oldest first.
    All,
}

/// Who runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every agent, for itself.
    Agent,
    /// One of them at a time, and each firing once.
    Cluster,
}

impl Scope {
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Cluster => "cluster",
        }
    }
}

/// When a job is to run.
#[derive(Clone, Debug)]
pub struct Rules {
    pub schedule: Schedule,
    pub overlap: Overlap,
    pub misfire: Misfire,
    /// With `All` and `Queue`, how many firings wait for their start at most; the oldest beyond are dropped.
    pub most: u32,
    /// A start is put off by up to this, by the same for every agent.
    pub jitter: Duration,
    /// A firing starts once, whatever the clocks do. Else a clock that was set back is followed.
    pub strict: bool,
}

/// What has been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Past {
    /// The last firing that was claimed or passed; at first, when the job was entered.
    pub last: DateTime<Utc>,
    /// When the last run began and ended; of one that was not heard of any more, when its lease did.
    pub busy: Option<(DateTime<Utc>, DateTime<Utc>)>,
}

/// Firings that get no start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gone {
    /// Nobody was there in time.
    pub missed: u32,
    /// Due while a run was under way.
    pub overlapped: u32,
}

/// What to do about a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing before then; `None`: never again.
    Wait(Option<DateTime<Utc>>),
    /// Claim this firing and run.
    Start { firing: DateTime<Utc>, gone: Gone },
    /// Use up everything to there. That may be back in time, after a clock that was wrong.
    Pass { to: DateTime<Utc>, gone: Gone },
}

impl Rules {
    /// Of a job that can run twice without harm, and whose missed firings are made up for by the next.
    pub fn forgiving(schedule: Schedule) -> Self {
        Self {
            schedule,
            overlap: Overlap::Skip,
            misfire: Misfire::Once,
            most: 1,
            jitter: Duration::ZERO,
            strict: false,
        }
    }

    /// Decides, while no run is under way. `name` spreads the jitter.
    pub fn step(&self, name: &str, past: Past, now: DateTime<Utc>) -> Step {
        if self.schedule == Schedule::Continuous {
            let rested = past.busy.filter(|(_, end)| *end <= now).map_or(now, |(_, end)| end + REST);
            return if rested > now {
                Step::Wait(Some(rested))
            } else {
                Step::Start { firing: now, gone: Gone::default() }
            };
        }
        let last = past.last;
        if last > now + if self.strict { SET_BACK } else { SET_BACK_A_LITTLE } {
            return Step::Pass { to: now, gone: Gone::default() };
        }
        let ahead = |next: DateTime<Utc>| next + self.put_off(name, next);
        match self.schedule.next_after(last) {
            None => return Step::Wait(None),
            Some(next) if next > now => return Step::Wait(Some(ahead(next))),
            Some(_) => {}
        }
        let (from, until) = match past.busy {
            Some((from, until)) if (last..=now).contains(&until) => (from.clamp(last, until), until),
            _ => (last, last),
        };
        let waits = match (self.overlap, self.misfire) {
            (Overlap::Queue, _) => self.newest_due(last, until, self.most),
            // Due before that run began, which was not theirs.
            (Overlap::Skip, Misfire::All) => self.newest_due(last, from, self.most),
            (Overlap::Skip, _) => VecDeque::new(),
        };
        if let Some(first) = waits.front().copied() {
            return self.at_its_time(
                name,
                first,
                now,
                Gone { missed: self.count(last, first), overlapped: 0 },
            );
        }
        let wanted = if self.misfire == Misfire::All { self.most } else { 1 };
        let Some(firing) = self.newest_due(until, now, wanted).front().copied() else {
            return Step::Wait(self.schedule.next_after(now).map(ahead));
        };
        let missed = self.count_through(last, from).saturating_add(self.count(until, firing));
        let overlapped = self.count_through(from, until);
        let is_late = now - firing > ON_TIME + self.put_off(name, firing);
        if self.misfire == Misfire::Skip && is_late {
            return Step::Pass { to: firing, gone: Gone { missed: missed.saturating_add(1), overlapped } };
        }
        self.at_its_time(name, firing, now, Gone { missed, overlapped })
    }

    fn at_its_time(&self, name: &str, firing: DateTime<Utc>, now: DateTime<Utc>, gone: Gone) -> Step {
        let start = firing + self.put_off(name, firing);
        if start > now { Step::Wait(Some(start)) } else { Step::Start { firing, gone } }
    }

    /// The same for every agent, another for every firing.
    fn put_off(&self, name: &str, firing: DateTime<Utc>) -> TimeDelta {
        let most = u64::try_from(self.jitter.as_millis()).unwrap_or(u64::MAX);
        let draw = xxh3_64(format!("{name} {}", firing.timestamp()).as_bytes());
        let millis = if most == 0 { 0 } else { draw % most };
        TimeDelta::milliseconds(i64::try_from(millis).unwrap_or_default())
    }

    /// The newest firings in `(last, now]`, up to `most`. The time is searched backwards in growing stretches, so that a
    /// year of seconds is not gone through.
    fn newest_due(&self, last: DateTime<Utc>, now: DateTime<Utc>, most: u32) -> VecDeque<DateTime<Utc>> {
        let most = usize::try_from(most.max(1)).unwrap_or(usize::MAX - 1);
        let few: VecDeque<_> =
            self.schedule.after(last).take_while(|firing| *firing <= now).take(most + 1).collect();
        if few.len() <= most {
            return few;
        }
        let mut stretch = TimeDelta::seconds(1);
        loop {
            let from = now.checked_sub_signed(stretch).filter(|from| *from > last).unwrap_or(last);
            let mut due = VecDeque::new();
            for firing in self.schedule.after(from).take_while(|firing| *firing <= now) {
                due.push_back(firing);
                if due.len() > most {
                    due.pop_front();
                }
            }
            if due.len() >= most || from <= last {
                return due;
            }
            stretch = stretch * 8;
        }
    }

    /// How many firings lie between the two, up to a limit; of a forgiving job nobody cares.
    fn count(&self, after: DateTime<Utc>, before: DateTime<Utc>) -> u32 {
        let limit = if self.strict { MOST_COUNTED } else { 0 };
        let between = self.schedule.after(after).take_while(|firing| *firing < before);
        (0..limit).zip(between).fold(0, |count, _| count + 1)
    }

    fn count_through(&self, after: DateTime<Utc>, last: DateTime<Utc>) -> u32 {
        self.count(after, last + TimeDelta::microseconds(1))
    }
}

#[cfg(test)]
mod tests;
