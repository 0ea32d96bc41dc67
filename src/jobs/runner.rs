//! Starts what is due, in one agent. Once a second, and whenever something falls due, it looks at the board that all agents
//! share; `domain::firings` decides; a claim in the database makes sure that a firing has one start; the run itself is a
//! task of its own.
//!
//! It knows no job: it is given them as a name, rules, and a body.

mod job;
mod run;
#[cfg(test)]
mod simulation;
mod slot;
mod status;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use job::{Body, Done, Failure, Fire, Firing, Job, Order, Outcome, Pending, Probe, TimedOut, Work};
pub use status::{Event, Observer, RunnerStatus};

use crate::domain::firings::{Gone, Scope};
use crate::failpoint;
use crate::pg::jobs::{Board, Claim, End, LEASE, Look, Standing};
use crate::pg::{Connector, PgError};
use run::{Ended, Result as RunResult, Run, Told};
use slot::{Slot, Want};

/// Between two looks at the board, if nothing is due before.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often an agent says that it still has its jobs.
const TOUCH_EVERY: Duration = Duration::from_secs(600);

/// A database that takes longer is taken for gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the ends of the last runs may take to be told, once all have ended.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Whose runner it is.
#[derive(Clone)]
pub struct Agent {
    pub id: Uuid,
    pub name: String,
    /// Told if an operator takes the agent out of service, or back: who looks each second sees that too.
    pub ordered_out: watch::Sender<bool>,
}

/// The runner of one agent.
pub struct Runner {
    connector: Connector,
    agent: Agent,
    slots: BTreeMap<String, Slot>,
    status: Arc<RunnerStatus>,
    observer: Observer,
    board: Option<Board>,
    touched_at: Instant,
    runs: (UnboundedSender<Told>, UnboundedReceiver<Told>),
    /// Ends that the board has not heard of.
    untold: Vec<Untold>,
    told_trouble: bool,
    swaps: UnboundedReceiver<Vec<Job>>,
}

/// What is to start.
struct Start {
    firing: DateTime<Utc>,
    last_firing: DateTime<Utc>,
    requested: Option<DateTime<Utc>>,
    /// The lease of a run that this one is instead of.
    lost: Option<Uuid>,
    gone: Gone,
}

struct Untold {
    name: String,
    run: Run,
    end: End,
    took: Duration,
}

impl Runner {
    pub fn new(
        connector: Connector,
        agent: Agent,
        jobs: Vec<Job>,
        status: Arc<RunnerStatus>,
        observer: Observer,
        swaps: UnboundedReceiver<Vec<Job>>,
    ) -> Self {
        let slots = jobs.into_iter().map(|job| (job.name.clone(), Slot::new(job))).collect();
        Self {
            connector,
            agent,
            slots,
            status,
            observer,
            board: None,
            touched_at: Instant::now(),
            runs: mpsc::unbounded_channel(),
            untold: Vec::new(),
            told_trouble: false,
            swaps,
        }
    }

    /// Runs what is due until `drain`, then waits for what is under way. Dropped before it returns, it cuts that.
    pub async fn run(mut self, drain: CancellationToken) {
        while !drain.is_cancelled() {
            let wait = self.in_time(Self::turn).await.unwrap_or(LOOK_EVERY);
            tokio::select! {
                () = drain.cancelled() => {}
                Some(told) = self.runs.1.recv() => self.hear(told),
                Some(jobs) = self.swaps.recv() => self.swap(jobs),
                () = tokio::time::sleep(wait) => {}
            }
        }
        let mut idle_since = None;
        loop {
            self.in_time(Self::keep_up).await;
            let is_over =
                self.untold.is_empty() || idle_since.get_or_insert_with(Instant::now).elapsed() > LAST_WORDS;
            if self.is_running() {
                idle_since = None;
            } else if is_over {
                break;
            }
            tokio::select! {
                Some(told) = self.runs.1.recv() => self.hear(told),
                () = tokio::time::sleep(LOOK_EVERY / 4) => {}
            }
        }
        self.status.rest();
    }

    /// Goes on with these. What runs is finished as it began.
    fn swap(&mut self, jobs: Vec<Job>) {
        let mut former = std::mem::take(&mut self.slots);
        for job in jobs {
            let slot = match former.remove(&job.name) {
                Some(slot) => slot.with(job),
                None => Slot::new(job),
            };
            self.slots.insert(slot.job.name.clone(), slot);
        }
        for (name, mut slot) in former {
            (slot.is_leaving, slot.is_entered) = (true, false);
            self.slots.insert(name, slot);
        }
        // The board is told when it is opened.
        self.board = None;
    }

    fn is_running(&self) -> bool {
        self.slots.values().any(|slot| slot.run.is_some())
    }

    /// Does something with the board, within the time it may take; after an error the connection is made anew.
    async fn in_time<T>(
        &mut self,
        what: impl AsyncFnOnce(&mut Self, &Board) -> Result<T, PgError>,
    ) -> Option<T> {
        let asked = async {
            let board = match self.board.take() {
                Some(board) => board,
                None => self.enter().await?,
            };
            let done = what(self, &board).await?;
            self.board = Some(board);
            Ok::<T, PgError>(done)
        };
        let trouble = match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(done)) => {
                self.told_trouble = false;
                self.status.turn();
                return Some(done);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {}", humantime::format_duration(PATIENCE)),
        };
        if !std::mem::replace(&mut self.told_trouble, true) {
            tracing::warn!("no job starts for now: {trouble}");
        }
        self.cut_unheld();
        // Waiting is turning.
        self.status.turn();
        None
    }

    /// Connects, and tells the board what this agent has.
    async fn enter(&mut self) -> Result<Board, PgError> {
        let board = Board::open(&self.connector).await?;
        let entries: Vec<_> = self.slots.values().map(Slot::entry).collect();
        board.enter(&entries).await?;
        self.slots.values_mut().for_each(|slot| slot.is_entered = true);
        self.touched_at = Instant::now();
        self.let_go();
        Ok(board)
    }

    /// Starts what is due, and says how long nothing will be.
    async fn turn(&mut self, board: &Board) -> Result<Duration, PgError> {
        self.keep_up(board).await?;
        let names: Vec<String> = self.slots.keys().cloned().collect();
        let asked = Instant::now();
        let looked_for: Vec<&str> = names.iter().map(String::as_str).collect();
        let Look { now, is_ordered_out, mut standings } = board.look(&looked_for, self.agent.id).await?;
        self.agent
            .ordered_out
            .send_if_modified(|out| std::mem::replace(out, is_ordered_out) != is_ordered_out);
        let mut wait = LOOK_EVERY;
        for name in names {
            let standing = standings.remove(&name).ok_or_else(|| {
                PgError::Setup(format!("job `{name}` is not on the board any more, and is entered again"))
            })?;
            if let Some(due) = self.consider(board, &name, &standing, now).await? {
                wait = wait.min((due - now).to_std().unwrap_or_default());
            }
        }
        self.tell_running();
        // A little behind, so that the database finds it due.
        Ok((wait + Duration::from_millis(2)).saturating_sub(asked.elapsed()))
    }

    /// What the board has to hear of this agent.
    async fn keep_up(&mut self, board: &Board) -> Result<(), PgError> {
        while let Some(untold) = self.untold.first() {
            self.tell_end(board, untold).await?;
            self.untold.remove(0);
        }
        let due = |run: &Run| run.held_at.elapsed() >= LEASE / 3;
        let running = self.slots.values_mut().filter_map(|slot| slot.run.as_mut());
        let mut leased: Vec<(Uuid, &mut Run)> =
            running.filter(|run| due(run)).filter_map(|run| Some((run.lease?, run))).collect();
        if !leased.is_empty() {
            let asked = Instant::now();
            let held = board.renew(&leased.iter().map(|(lease, _)| *lease).collect::<Vec<_>>()).await?;
            for (_, run) in leased.iter_mut().filter(|(lease, _)| held.contains(lease)) {
                run.held_at = asked;
            }
            self.cut_unheld_by(|run| due(run));
        }
        if self.touched_at.elapsed() >= TOUCH_EVERY {
            board.touch(&self.slots.keys().map(String::as_str).collect::<Vec<_>>()).await?;
            self.touched_at = Instant::now();
        }
        Ok(())
    }

    async fn tell_end(&self, board: &Board, untold: &Untold) -> Result<(), PgError> {
        let Untold { name, run, end, took } = untold;
        if let Some(lease) = run.lease {
            if !board.end(name, lease, end).await? {
                tracing::warn!(
                    job = name,
                    "its lease had ended before the run did, and another may have run"
                );
            }
        } else if end.is_kept {
            let by = run.requested_by.as_deref();
            board.note(name, run.firing, by, &self.agent.name, *took, end).await?;
        }
        Ok(())
    }

    /// When this job is due next, if that is known.
    async fn consider(
        &mut self,
        board: &Board,
        name: &str,
        standing: &Standing,
        now: DateTime<Utc>,
    ) -> Result<Option<DateTime<Utc>>, PgError> {
        let Some(slot) = self.slots.get_mut(name) else { return Ok(None) };
        let job = Arc::clone(&slot.job);
        if let Work::Service(hears) = &job.work {
            hears(Order::Paused(standing.is_paused));
            return Ok(slot.let_run(standing, now, hears));
        }
        match slot.want(standing, now) {
            Want::Nothing { until } => Ok(until),
            Want::Pass { to, gone } => {
                let (missed, note) = slot.words_of(gone);
                if gone == Gone::default() {
                    tracing::warn!(job = name, "the database's clock was set back: it goes on from there");
                }
                if job.scope == Scope::Agent {
                    slot.passed(to);
                    slot.tell_gone(gone, &self.observer);
                } else if board
                    .pass(name, standing.last_firing, to, &self.agent.name, missed, note.as_deref())
                    .await?
                {
                    slot.tell_gone(gone, &self.observer);
                }
                Ok(job.rules.schedule.next_after(now))
            }
            Want::Redo { firing, last_firing, lost } => {
                tracing::warn!(job = name, %firing, "it runs again: the first run was not heard of any more");
                let (requested, lost) = (None, Some(lost));
                let start = Start { firing, last_firing, requested, lost, gone: Gone::default() };
                self.claim(board, name, standing, start, now).await
            }
            Want::Start { firing, last_firing, requested, gone } => {
                if requested.is_none() && !is_wanted(&job, board).await {
                    slot.looked_until = Some(firing);
                    return Ok(job.rules.schedule.next_after(now));
                }
                let start = Start { firing, last_firing, requested, lost: None, gone };
                if !matches!(job.work, Work::Within { .. }) {
                    return self.claim(board, name, standing, start, now).await;
                }
                let claim = self.claim_for(name, standing, &start);
                let Some(slot) = self.slots.get_mut(name) else { return Ok(None) };
                slot.started(last_firing, requested, now);
                let by = requested.and(standing.run_requested_by.clone());
                let id = claim.lease;
                let claim = (job.scope == Scope::Cluster).then_some(claim);
                let firing = Firing { at: firing, claim };
                slot.run = Some(Run::within(&job, id, firing, by, gone, self.runs.0.clone()));
                Ok(None)
            }
        }
    }

    fn claim_for(&self, name: &str, standing: &Standing, start: &Start) -> Claim {
        let note = self.slots.get(name).map(|slot| slot.words_of(start.gone));
        let (missed, note) = note.unwrap_or_default();
        Claim {
            name: name.to_owned(),
            last_firing: standing.last_firing,
            new_last_firing: start.last_firing,
            firing: start.firing,
            requested: start.requested,
            agent: self.agent.name.clone(),
            lease: Uuid::new_v4(),
            lost: start.lost,
            missed,
            note,
        }
    }

    /// Claims it, if it needs a claim, and starts it.
    async fn claim(
        &mut self,
        board: &Board,
        name: &str,
        standing: &Standing,
        start: Start,
        now: DateTime<Utc>,
    ) -> Result<Option<DateTime<Utc>>, PgError> {
        let claim = self.claim_for(name, standing, &start);
        let Some(slot) = self.slots.get_mut(name) else { return Ok(None) };
        let is_shared = slot.job.scope == Scope::Cluster;
        if is_shared && !board.claim(&claim).await? {
            return Ok(None);
        }
        failpoint::hit("job-after-claim");
        slot.tell_gone(start.gone, &self.observer);
        slot.started(start.last_firing, start.requested, now);
        let (id, lease) = (claim.lease, is_shared.then_some(claim.lease));
        let by = start.requested.and(standing.run_requested_by.clone());
        slot.run = Some(Run::start(&slot.job, id, lease, start.firing, by, self.runs.0.clone()));
        Ok(None)
    }

    fn hear(&mut self, told: Told) {
        match told {
            Told::Ended(ended) => self.ended(ended),
            Told::Leased(job, id) => {
                let run = self.slots.get_mut(&job.name).and_then(|slot| slot.run.as_mut());
                if let Some(run) = run.filter(|run| run.id == id) {
                    run.lease = Some(id);
                    run.held_at = Instant::now();
                }
            }
        }
    }

    fn ended(&mut self, ended: Ended) {
        let Ended { job, id, result, took, is_told } = ended;
        let Some(slot) = self.slots.get_mut(&job.name) else { return };
        let Some(run) = slot.run.take_if(|run| run.id == id) else { return };
        slot.tell_result(&result);
        if !matches!(result, RunResult::Nothing | RunResult::Away(_)) {
            slot.tell_gone(run.gone, &self.observer);
            (self.observer)(Event::Ended { job: &job.name, result: result.name(), took });
        }
        slot.ended(took, matches!(result, RunResult::Away(_)));
        if !is_told {
            let end = result.end(job.keeps_all);
            self.untold.push(Untold { name: job.name.clone(), run, end, took });
        }
        self.let_go();
        self.tell_running();
    }

    /// Forgets what is not configured any more, once it has ended and the board knows.
    fn let_go(&mut self) {
        self.slots.retain(|_, slot| !slot.is_leaving || slot.run.is_some() || !slot.is_entered);
    }

    /// Cuts those whose lease has ended without an answer of the board.
    fn cut_unheld(&mut self) {
        self.cut_unheld_by(|run| run.held_at.elapsed() >= LEASE);
    }

    fn cut_unheld_by(&mut self, is_unheld: impl Fn(&Run) -> bool) {
        for (name, slot) in &mut self.slots {
            if let Some(run) = slot.run.take_if(|run| run.lease.is_some() && is_unheld(run)) {
                tracing::warn!(job = name, "the run is cut: its lease has ended");
                (self.observer)(Event::Ended { job: name, result: "lost", took: run.began.elapsed() });
            }
        }
        self.let_go();
        self.tell_running();
    }

    fn tell_running(&self) {
        let running = self.slots.iter().filter(|(_, slot)| slot.run.is_some());
        self.status.running(running.map(|(name, _)| name.as_str()));
    }
}

/// Is there anything to do? If that cannot be told, the run will say why.
async fn is_wanted(job: &Job, board: &Board) -> bool {
    match &job.probe {
        Some(probe) => probe(board.client()).await.unwrap_or(true),
        None => true,
    }
}
