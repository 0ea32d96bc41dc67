//! A year of three agents on a virtual clock: agents crash at a firing, sleep for days, the database goes away, and its clock
//! is set an hour back or ahead, while a board in memory keeps to the rules that the statements keep to.

use std::collections::{BTreeMap, HashSet};

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use uuid::Uuid;

use super::job::{Done, Job};
use super::slot::{Slot, Want};
use crate::domain::firings::{Misfire, Overlap, Rules};
use crate::domain::schedule::Schedule;
use crate::pg::jobs::{LEASE, Standing};

const YEAR: TimeDelta = TimeDelta::days(366);

struct Agent {
    slots: BTreeMap<String, Slot>,
    wakes_at: DateTime<Utc>,
}

struct Cluster {
    rules: Vec<(&'static str, Rules)>,
    board: BTreeMap<String, Standing>,
    agents: Vec<Agent>,
    starts: BTreeMap<String, Vec<DateTime<Utc>>>,
    missed: BTreeMap<String, u32>,
    random: fastrand::Rng,
    /// Now and then an agent dies at the firing, and one sleeps or the database is away.
    trouble: bool,
    /// Now and then the database's clock is set, by an hour, and back again.
    steps: bool,
    /// How far that clock is from the true time.
    ahead: TimeDelta,
}

fn begin() -> DateTime<Utc> {
    "2027-06-01T00:00:00Z".parse().unwrap()
}

fn rules(schedule: &str, timezone: Tz, misfire: Misfire) -> Rules {
    Rules {
        schedule: Schedule::parse(schedule, timezone).unwrap(),
        overlap: Overlap::Skip,
        misfire,
        most: 100_000,
        jitter: std::time::Duration::ZERO,
        strict: true,
    }
}

fn slot(name: &str, rules: &Rules) -> Slot {
    Slot::new(Job::new(name, rules.clone(), |_| Box::pin(async { Ok(Done::default()) })))
}

impl Cluster {
    fn new(rules: Vec<(&'static str, Rules)>, trouble: bool) -> Self {
        let standing = Standing {
            last_firing: begin(),
            busy_until: None,
            started_at: None,
            lease: None,
            is_running: false,
            is_paused: false,
            run_requested_at: None,
            run_requested_by: None,
            firing: None,
        };
        let board = rules.iter().map(|(name, _)| ((*name).to_owned(), standing.clone())).collect();
        let agents = (0..3)
            .map(|_| Agent {
                slots: rules.iter().map(|(name, rules)| ((*name).to_owned(), slot(name, rules))).collect(),
                wakes_at: begin(),
            })
            .collect();
        let (starts, missed, random) = (BTreeMap::new(), BTreeMap::new(), fastrand::Rng::with_seed(7));
        let (steps, ahead) = (false, TimeDelta::zero());
        Self { rules, board, agents, starts, missed, random, trouble, steps, ahead }
    }

    fn with_steps(self) -> Self {
        Self { steps: true, ..self }
    }

    fn run(&mut self) {
        loop {
            let place = (0..3).min_by_key(|place| self.agents[*place].wakes_at).unwrap();
            let now = self.agents[place].wakes_at;
            if now >= begin() + YEAR {
                return;
            }
            if self.trouble && self.random.u32(..2_000) == 0 {
                // The database is away for everybody.
                let back = now + TimeDelta::minutes(self.random.i64(1..600));
                self.agents.iter_mut().for_each(|agent| agent.wakes_at = back);
                continue;
            }
            if self.steps && self.random.u32(..500) == 0 {
                let hour = TimeDelta::hours(if self.random.bool() { 1 } else { -1 });
                self.ahead = if self.ahead.is_zero() { hour } else { TimeDelta::zero() };
                // Whoever waits looks again within a second, by the new clock.
                self.agents.iter_mut().for_each(|agent| agent.wakes_at = agent.wakes_at.min(now));
                continue;
            }
            self.turn(place, now);
        }
    }

    /// `at` is the true time, which agents sleep by; what is due says the database's clock.
    fn turn(&mut self, place: usize, at: DateTime<Utc>) {
        let now = at + self.ahead;
        // Instead of each second, which nothing depends on.
        let mut wake = now + TimeDelta::hours(12);
        for (name, slot) in &mut self.agents[place].slots {
            let standing = self.board.get_mut(name).unwrap();
            // A lease that ends in a far future is one of a clock that was wrong.
            let far = TimeDelta::from_std(LEASE).unwrap() * 2;
            standing.is_running = standing.lease.is_some()
                && standing.busy_until.is_some_and(|until| until > now && until <= now + far);
            match slot.want(standing, now) {
                Want::Nothing { until } => wake = wake.min(until.unwrap_or(wake)),
                Want::Redo { .. } => unreachable!("none of these is done again"),
                Want::Pass { to, gone } => {
                    standing.last_firing = to;
                    *self.missed.entry(name.clone()).or_default() += gone.missed;
                    wake = now;
                }
                Want::Start { firing, last_firing, gone, .. } => {
                    *standing = Standing { last_firing, lease: Some(Uuid::nil()), ..standing.clone() };
                    *self.missed.entry(name.clone()).or_default() += gone.missed;
                    self.starts.entry(name.clone()).or_default().push(firing);
                    let dies = self.trouble && self.random.u32(..50) == 0;
                    let took = if dies {
                        wake = now + TimeDelta::minutes(self.random.i64(1..3_000));
                        TimeDelta::from_std(LEASE).unwrap()
                    } else {
                        wake = now + TimeDelta::milliseconds(1);
                        TimeDelta::milliseconds(self.random.i64(1..20_000))
                    };
                    standing.started_at = Some(now);
                    standing.busy_until = Some(now + took);
                    if dies {
                        break;
                    }
                }
            }
        }
        self.agents[place].wakes_at = (wake - self.ahead).max(at + TimeDelta::microseconds(1));
    }

    fn expected(&self, name: &str) -> Vec<DateTime<Utc>> {
        let rules = &self.rules.iter().find(|(of, _)| *of == name).unwrap().1;
        rules
            .schedule
            .after(begin())
            .take_while(|firing| *firing < begin() + YEAR - TimeDelta::days(3))
            .collect()
    }

    /// The first that did not start once, in its turn: what started, what was to.
    fn wrong(&self, name: &str) -> Option<[Option<DateTime<Utc>>; 2]> {
        let (started, expected) = (self.started(name), self.expected(name));
        let most = started.len().max(expected.len());
        let pair = |at: usize| [started.get(at).copied(), expected.get(at).copied()];
        (0..most).map(pair).find(|[started, expected]| started != expected)
    }

    /// Those within the year less its last days, in which one may still be asleep.
    fn started(&self, name: &str) -> Vec<DateTime<Utc>> {
        let starts = self.starts.get(name).cloned().unwrap_or_default();
        starts.into_iter().filter(|firing| *firing < begin() + YEAR - TimeDelta::days(3)).collect()
    }
}

fn schedules(misfire: Misfire) -> Vec<(&'static str, Rules)> {
    vec![
        ("quarter", rules("every 15m", Tz::UTC, misfire)),
        ("hourly", rules("0 * * * *", Tz::UTC, misfire)),
        ("nightly", rules("30 2 * * *", Tz::Europe__Paris, misfire)),
        ("monthly", rules("0 3 1 * *", Tz::America__New_York, misfire)),
        ("leap", rules("0 0 29 2 *", Tz::UTC, misfire)),
    ]
}

#[test]
fn in_a_year_without_trouble_every_firing_starts_once() {
    let mut cluster = Cluster::new(schedules(Misfire::Skip), false);
    cluster.run();
    for name in ["quarter", "hourly", "nightly", "monthly", "leap"] {
        assert_eq!(cluster.wrong(name), None, "{name}");
    }
    assert_eq!((cluster.started("leap").len(), cluster.started("monthly").len()), (1, 12));
    assert!(cluster.missed.values().all(|missed| *missed == 0));
}

#[test]
fn in_a_year_of_crashes_sleep_and_outages_every_firing_starts_once_if_none_may_be_missed() {
    let mut cluster = Cluster::new(schedules(Misfire::All), true);
    cluster.run();
    for name in ["quarter", "hourly", "nightly", "monthly", "leap"] {
        assert_eq!(cluster.wrong(name), None, "{name}");
    }
}

#[test]
fn in_such_a_year_no_firing_starts_twice_and_what_is_missed_is_counted() {
    for misfire in [Misfire::Skip, Misfire::Once] {
        let mut cluster = Cluster::new(schedules(misfire), true);
        cluster.run();
        let (started, expected) = (cluster.started("quarter"), cluster.expected("quarter"));
        let once: HashSet<_> = started.iter().collect();
        assert_eq!(once.len(), started.len(), "{misfire:?}");
        assert!(started.len() < expected.len() && started.iter().all(|firing| expected.contains(firing)));
        let missed = usize::try_from(cluster.missed["quarter"]).unwrap();
        assert!(started.len() + missed >= expected.len(), "{misfire:?}: {} {missed}", started.len());
    }
}

#[test]
fn in_a_year_whose_clock_is_set_back_and_ahead_no_firing_starts_twice_and_none_is_lost_that_may_not_be() {
    // A firing that falls into a run, be it one that makes up for another, waits for its end.
    let queue = |(name, rules)| (name, Rules { overlap: Overlap::Queue, ..rules });
    let none_is_lost = schedules(Misfire::All).into_iter().map(queue).collect();
    let mut cluster = Cluster::new(none_is_lost, true).with_steps();
    cluster.run();
    for name in ["quarter", "hourly", "nightly", "monthly", "leap"] {
        assert_eq!(cluster.wrong(name), None, "{name}");
    }
    for misfire in [Misfire::Skip, Misfire::Once] {
        let mut cluster = Cluster::new(schedules(misfire), false).with_steps();
        cluster.run();
        let (started, expected) = (cluster.started("quarter"), cluster.expected("quarter"));
        let once: HashSet<_> = started.iter().collect();
        assert_eq!(once.len(), started.len(), "{misfire:?}");
        // Of an hour that is left out, `once` starts the last quarter, `skip` none but one that is still on time.
        let missed = usize::try_from(cluster.missed["quarter"]).unwrap();
        assert!(started.len() + missed >= expected.len(), "{misfire:?}: {} {missed}", started.len());
        assert!(missed > 0, "the clock was set");
        if misfire == Misfire::Once {
            assert_eq!((cluster.started("leap").len(), cluster.started("monthly").len()), (1, 12));
        }
    }
}
