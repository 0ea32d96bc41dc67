//! One run, contained: what fails, hangs or panics in it ends the run and nothing else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::job::{Body, Done, Firing, Job, Outcome, TimedOut, Work};
use crate::domain::firings::Gone;
use crate::failpoint;
use crate::failure;
use crate::pg::jobs::End;
use crate::pg::jobs::firing::Fired;

/// What is done with the claim has limits of its own, and so has what is called under it, which may need a moment to end.
/// After this much more it is cut all the same.
const GRACE: Duration = Duration::from_secs(10);

/// A run under way; cut when dropped.
pub(super) struct Run {
    pub(super) id: Uuid,
    /// `None`: without a claim of the runner's.
    pub(super) lease: Option<Uuid>,
    pub(super) firing: DateTime<Utc>,
    pub(super) requested_by: Option<String>,
    pub(super) began: Instant,
    /// When its lease was last known to hold.
    pub(super) held_at: Instant,
    /// Firings that got no start, to be told of if this one is ours.
    pub(super) gone: Gone,
    _task: AbortOnDropHandle<()>,
}

/// What a run tells the runner.
pub(super) enum Told {
    /// It has a claim now, and its lease is to be renewed.
    Leased(Arc<Job>, Uuid),
    Ended(Ended),
}

/// How one ended.
pub(super) struct Ended {
    pub(super) job: Arc<Job>,
    pub(super) id: Uuid,
    pub(super) result: Result,
    pub(super) took: Duration,
    /// The board knows.
    pub(super) is_told: bool,
}

#[derive(Debug)]
pub(super) enum Result {
    Done(Done),
    Failed(String),
    Cut(String),
    /// It was not wanted.
    Skipped,
    /// The firing was another's, or there was none.
    Nothing,
    /// The database was not there, and the firing stays due.
    Away(String),
}

impl Result {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Done(_) => "done",
            Self::Failed(_) => "failed",
            Self::Cut(_) => "cut",
            Self::Skipped | Self::Nothing | Self::Away(_) => "skipped",
        }
    }

    /// For the board and the history. A job that is built in tells only of what it did.
    pub(super) fn end(&self, is_told_always: bool) -> End {
        let (error, rows, tells) = match self {
            Self::Done(Done { rows, words }) => (None, Some(*rows), words.is_some()),
            Self::Failed(why) | Self::Cut(why) | Self::Away(why) => (Some(why.clone()), None, true),
            Self::Skipped | Self::Nothing => (None, None, false),
        };
        End { result: self.name(), error, rows, is_kept: tells || is_told_always }
    }
}

impl Run {
    /// Starts what is claimed, or needs no claim; its end comes by `told`.
    pub(super) fn start(
        job: &Arc<Job>,
        id: Uuid,
        lease: Option<Uuid>,
        firing: DateTime<Utc>,
        requested_by: Option<String>,
        told: UnboundedSender<Told>,
    ) -> Self {
        let (job, began) = (Arc::clone(job), Instant::now());
        let task = tokio::spawn(async move {
            let result = match &job.work {
                Work::Beside(body) => contained(body(firing), job.timeout).await,
                Work::Within { then, .. } => after(then.as_ref(), firing, job.timeout + GRACE).await,
                Work::Service(_) => Result::Nothing,
            };
            // Without anybody who listens the runner is at its end.
            let _ = told.send(Told::Ended(Ended { job, id, result, took: began.elapsed(), is_told: false }));
        });
        Self::of(id, lease, firing, requested_by, Gone::default(), task)
    }

    /// Starts what claims its firing by itself.
    pub(super) fn within(
        job: &Arc<Job>,
        id: Uuid,
        firing: Firing,
        requested_by: Option<String>,
        gone: Gone,
        told: UnboundedSender<Told>,
    ) -> Self {
        let (job, began, at) = (Arc::clone(job), Instant::now(), firing.at);
        let task = tokio::spawn(async move {
            let (result, is_told) = match &job.work {
                Work::Within { fire, then } => {
                    let has_claim = firing.claim.is_some();
                    let fired = AbortOnDropHandle::new(tokio::spawn(fire(firing)));
                    match tokio::time::timeout(job.timeout + GRACE, fired).await {
                        Ok(Ok(Ok(Fired::NotOurs | Fired::Quiet))) => (Result::Nothing, true),
                        Ok(Ok(Ok(Fired::Leased))) => {
                            if has_claim {
                                let _ = told.send(Told::Leased(Arc::clone(&job), id));
                                failpoint::hit("job-after-claim");
                            }
                            (after(then.as_ref(), at, job.timeout + GRACE).await, false)
                        }
                        Ok(Ok(Ok(Fired::Ended(end)))) => (of_end(end), has_claim),
                        Ok(Ok(Err(error))) => (Result::Away(error.to_string()), true),
                        Ok(Err(error)) => (Result::Away(panic_words(error)), true),
                        Err(_) => (Result::Away("no answer of the database".into()), true),
                    }
                }
                Work::Beside(_) | Work::Service(_) => (Result::Nothing, true),
            };
            let _ = told.send(Told::Ended(Ended { job, id, result, took: began.elapsed(), is_told }));
        });
        Self::of(id, None, at, requested_by, gone, task)
    }

    fn of(
        id: Uuid,
        lease: Option<Uuid>,
        firing: DateTime<Utc>,
        requested_by: Option<String>,
        gone: Gone,
        task: tokio::task::JoinHandle<()>,
    ) -> Self {
        let began = Instant::now();
        let task = AbortOnDropHandle::new(task);
        Self { id, lease, firing, requested_by, began, held_at: began, gone, _task: task }
    }
}

async fn after(then: Option<&Body>, firing: DateTime<Utc>, limit: Duration) -> Result {
    match then {
        Some(body) => contained(body(firing), limit).await,
        None => Result::Nothing,
    }
}

fn of_end(end: End) -> Result {
    let why = end.error.unwrap_or_default();
    match end.result {
        "done" => Result::Done(Done { rows: end.rows.unwrap_or_default(), words: None }),
        "skipped" => Result::Skipped,
        "cut" => Result::Cut(why),
        _ => Result::Failed(why),
    }
}

async fn contained(body: impl Future<Output = Outcome> + Send + 'static, limit: Duration) -> Result {
    let run = AbortOnDropHandle::new(tokio::spawn(body));
    match tokio::time::timeout(limit, run).await {
        Ok(Ok(Ok(done))) => Result::Done(done),
        Ok(Ok(Err(error))) if error.is::<TimedOut>() => Result::Cut(error.to_string()),
        Ok(Ok(Err(error))) => Result::Failed(failure::words(failure::chain(&*error))),
        Ok(Err(error)) => Result::Failed(panic_words(error)),
        Err(_) => Result::Cut(TimedOut(limit).to_string()),
    }
}

fn panic_words(error: tokio::task::JoinError) -> String {
    let Ok(panic) = error.try_into_panic() else { return "it was cut".into() };
    let words = panic.downcast_ref::<&str>().map(|words| (*words).to_owned());
    let words = words.or_else(|| panic.downcast_ref::<String>().cloned());
    words.map_or_else(|| "it panicked".into(), |words| format!("it panicked: {words}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::firings::Rules;
    use crate::domain::schedule::Schedule;

    async fn run(body: impl Future<Output = Outcome> + Send + 'static) -> (&'static str, Option<String>) {
        let end = contained(body, Duration::from_millis(50)).await.end(false);
        (end.result, end.error)
    }

    #[tokio::test]
    async fn what_fails_hangs_or_panics_ends_the_run_and_says_why() {
        assert_eq!(run(async { Ok(Done::default()) }).await, ("done", None));
        let io = std::io::Error::other("the disk is full");
        let failed = run(async { Err(io.into()) }).await;
        assert_eq!(failed, ("failed", Some("the disk is full".into())));
        assert_eq!(run(std::future::pending()).await, ("cut", Some("cut after 50ms".into())));
        let panicked = run(async { panic!("no such {}", "thing") }).await;
        assert_eq!(panicked, ("failed", Some("it panicked: no such thing".into())));
    }

    /// It limits itself, and ends only after that.
    #[tokio::test]
    async fn one_that_is_done_again_has_as_long_to_end_as_the_first_time() {
        let limit = Duration::from_millis(50);
        let rules = Rules::forgiving(Schedule::parse("@yearly", chrono_tz::UTC).unwrap());
        let job = Job {
            timeout: limit,
            work: Work::Within {
                fire: Box::new(|_| Box::pin(async { Ok(Fired::Leased) })),
                then: Some(Box::new(move |_| {
                    Box::pin(async move {
                        tokio::time::sleep(limit * 4).await;
                        Err("it has ended by itself".into())
                    })
                })),
            },
            ..Job::new("call", rules, |_| Box::pin(async { Ok(Done::default()) }))
        };
        let (told, mut hears) = tokio::sync::mpsc::unbounded_channel();
        let _run = Run::start(&Arc::new(job), Uuid::new_v4(), None, Utc::now(), None, told);
        let Some(Told::Ended(ended)) = hears.recv().await else { panic!("no word of its end") };
        assert_eq!(ended.result.end(true).error.as_deref(), Some("it has ended by itself"));
    }

    #[test]
    fn a_run_that_did_nothing_is_kept_only_where_every_run_is() {
        let idle = Result::Done(Done::counted([(0, "leaves emptied")]));
        assert!(!idle.end(false).is_kept && idle.end(true).is_kept);
        let done = Done::counted([(2, "leaves emptied"), (0, "rows"), (1, "runs")]);
        assert_eq!(done, Done { rows: 3, words: Some("2 leaves emptied, 1 runs".into()) });
        assert!(Result::Done(done).end(false).is_kept);
    }
}
