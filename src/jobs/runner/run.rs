//! One run, contained: what fails, hangs or panics in it ends the run and nothing else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::job::{Done, Job, Outcome};
use crate::pg::jobs::End;

/// A run under way; cut when dropped.
pub(super) struct Run {
    pub(super) id: Uuid,
    /// `None`: without a claim.
    pub(super) lease: Option<Uuid>,
    pub(super) firing: DateTime<Utc>,
    pub(super) requested_by: Option<String>,
    pub(super) began: Instant,
    /// When its lease was last known to hold.
    pub(super) held_at: Instant,
    _task: AbortOnDropHandle<()>,
}

/// How one ended.
pub(super) struct Ended {
    pub(super) job: Arc<Job>,
    pub(super) id: Uuid,
    pub(super) result: Result,
    pub(super) took: Duration,
}

#[derive(Debug)]
pub(super) enum Result {
    Done(Done),
    Failed(String),
    Cut(String),
}

impl Result {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Done(_) => "done",
            Self::Failed(_) => "failed",
            Self::Cut(_) => "cut",
        }
    }

    /// For the board and the history. A job that is built in tells only of what it did.
    pub(super) fn end(&self, is_told_always: bool) -> End {
        let (error, rows, tells) = match self {
            Self::Done(Done { rows, words }) => (None, Some(*rows), words.is_some()),
            Self::Failed(why) | Self::Cut(why) => (Some(why.clone()), None, true),
        };
        End { result: self.name(), error, rows, is_kept: tells || is_told_always }
    }
}

impl Run {
    /// Starts it; its end comes by `ends`.
    pub(super) fn start(
        job: &Arc<Job>,
        id: Uuid,
        lease: Option<Uuid>,
        firing: DateTime<Utc>,
        requested_by: Option<String>,
        ends: UnboundedSender<Ended>,
    ) -> Self {
        let (job, began) = (Arc::clone(job), Instant::now());
        let task = tokio::spawn(async move {
            let result = contained((job.body)(firing), job.timeout).await;
            // Without anybody who listens the runner is at its end.
            let _ = ends.send(Ended { job, id, result, took: began.elapsed() });
        });
        let task = AbortOnDropHandle::new(task);
        Self { id, lease, firing, requested_by, began, held_at: began, _task: task }
    }
}

async fn contained(body: impl Future<Output = Outcome> + Send + 'static, limit: Duration) -> Result {
    let run = AbortOnDropHandle::new(tokio::spawn(body));
    match tokio::time::timeout(limit, run).await {
        Ok(Ok(Ok(done))) => Result::Done(done),
        Ok(Ok(Err(error))) => Result::Failed(chain(&*error)),
        Ok(Err(error)) => Result::Failed(panic_words(error)),
        Err(_) => Result::Cut(format!("cut after {}", humantime::format_duration(limit))),
    }
}

/// The error and its causes, each once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !words.contains(&text) {
            words.push_str(": ");
            words.push_str(&text);
        }
        cause = error.source();
    }
    words
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

    #[test]
    fn a_run_that_did_nothing_is_kept_only_where_every_run_is() {
        let idle = Result::Done(Done::counted([(0, "leaves emptied")]));
        assert!(!idle.end(false).is_kept && idle.end(true).is_kept);
        let done = Done::counted([(2, "leaves emptied"), (0, "rows"), (1, "runs")]);
        assert_eq!(done, Done { rows: 3, words: Some("2 leaves emptied, 1 runs".into()) });
        assert!(Result::Done(done).end(false).is_kept);
    }
}
