//! `process-retry`: gives what is due to an agent that can take it, and takes back what was not heard of.
//!
//! Of a group no more retries are out at a time than twice what its live agents run at once, so that however much fails,
//! fresh messages go on; and each group has its own share of a run, so that none waits for another's failures.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::every;
use super::runner::{Done, Job, Outcome};
use crate::config::group::CONCURRENCY;
use crate::config::{Group, OnDead, Retry};
use crate::domain::dispatch::Dispatch;
use crate::domain::retry_choice::{Candidate, choose};
use crate::pg::connect::Connection;
use crate::pg::dispatching::{self, Due, Settlement, Unheard};
use crate::pg::{Connector, PgError, leaves};
use crate::telemetry::metrics::{self, GroupReason, Metrics};

pub const NAME: &str = "process-retry";

/// Of the retries that an agent has at a time: those that run, and as many on their way.
const PER_HANDLER: u32 = 2;

/// Failures of one group that a run gives out.
const MOST_PER_RUN: u32 = 500;

/// A run begins nothing more after this,
const ENOUGH: Duration = Duration::from_millis(900);

/// and looks so often who has room again,
const REST: Duration = Duration::from_millis(20);

/// more and more seldom while nobody has: a broker may be away for a day.
const LONGEST_REST: Duration = Duration::from_millis(200);

/// Dispatches in a row that an agent has read and not started: then something is wrong with the message, or with us.
const MOST_UNDELIVERED: i16 = 3;

pub fn job(connector: Connector, groups: BTreeMap<String, Group>, metrics: Arc<Metrics>) -> Job {
    for group in groups.keys() {
        drop(metrics.retries_scheduled.get_or_create(&metrics::Group { group: group.clone() }));
    }
    // It runs every second while there is something to do: the connection is kept, and made anew after an error.
    let shared = Arc::new((connector, Mutex::new(None), Policies { groups, metrics }));
    let job = Job::new(NAME, every(1), move |_| {
        let shared = Arc::clone(&shared);
        Box::pin(async move {
            let (connector, kept, policies) = &*shared;
            let mut kept = kept.lock().await;
            let mut client = match kept.take() {
                Some(client) => client,
                None => connect(connector).await?,
            };
            let done = work(&mut client, policies).await?;
            *kept = Some(client);
            Ok(done)
        })
    });
    job.probe(|client| Box::pin(dispatching::has_work(client)))
}

async fn connect(connector: &Connector) -> Result<Connection, PgError> {
    let client = leaves::connect(connector).await?;
    // What is due is a handful one second and ten thousand the next: no plan is kept.
    client.set("set plan_cache_mode = force_custom_plan").await?;
    Ok(client)
}

/// Goes on giving out for about as long as the schedule has it wait for the next run, while there is something to give.
async fn work(client: &mut Connection, policies: &Policies) -> Outcome {
    let until = Instant::now() + ENOUGH;
    let (mut given, mut rest) = (0, REST);
    let let_go = dispatching::let_forsaken_go(client).await?;
    let dead = loop {
        dispatching::see_published(client, &policies.deadlines(), Retry::default().deadline).await?;
        let dead = settle(client, policies).await?;
        let Some(now_given) = give_out(client, policies).await? else { break dead };
        given += now_given;
        if dead > 0 || Instant::now() >= until {
            break dead;
        }
        rest = if now_given > 0 { REST } else { LONGEST_REST.min(rest * 2) };
        tokio::time::sleep(rest).await;
    };
    let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    Ok(Done::counted([
        (count(given), "retries given out"),
        (count(dead), "given up"),
        (count(let_go), "keys let go whose head was gone"),
    ]))
}

/// What the file of this agent says of each group; of one that it does not name, the defaults.
struct Policies {
    groups: BTreeMap<String, Group>,
    metrics: Arc<Metrics>,
}

impl Policies {
    fn of(&self, group: &str) -> Retry {
        self.groups.get(group).map_or_else(Retry::default, |group| group.retry)
    }

    fn most_per_agent(&self, group: &str) -> u32 {
        let concurrency = self.groups.get(group).map_or(CONCURRENCY, |group| group.concurrency);
        u32::try_from(concurrency).unwrap_or(u32::MAX).saturating_mul(PER_HANDLER)
    }

    fn deadlines(&self) -> Vec<(&str, Duration)> {
        self.groups.iter().map(|(name, group)| (name.as_str(), group.retry.deadline)).collect()
    }

    fn gave_up(&self, group: &str, reason: &'static str) {
        self.metrics.dead_lettered.get_or_create(&GroupReason { group: group.to_owned(), reason }).inc();
    }

    fn scheduled(&self, groups: Vec<String>) {
        for group in groups {
            self.metrics.retries_scheduled.get_or_create(&metrics::Group { group }).inc();
        }
    }
}

/// Returns how many died of it.
async fn settle(client: &mut Connection, policies: &Policies) -> Result<usize, PgError> {
    let unheard = dispatching::unheard(client).await?;
    if unheard.is_empty() {
        return Ok(0);
    }
    let settled: Vec<(Unheard, Settlement)> = unheard
        .into_iter()
        .map(|unheard| {
            let settlement = judge(&unheard, policies.of(&unheard.group), fastrand::f64());
            tell(&unheard, &settlement);
            if let Some(reason) = settlement.reason {
                policies.gave_up(&unheard.group, reason);
            }
            (unheard, settlement)
        })
        .collect();
    dispatching::settle(client, &settled, |group| policies.of(group).on_dead == OnDead::Release).await
}

fn judge(unheard: &Unheard, policy: Retry, draw: f64) -> Settlement {
    let Unheard { attempts, agent, .. } = unheard;
    if unheard.was_running {
        return Settlement {
            error: Some(format!("silence: agent {agent} was not heard of any more")),
            reason: policy.is_over(*attempts).then_some("attempts"),
            after: policy.delay(*attempts, None, draw),
            undelivered: 0,
        };
    }
    // Only what its reader has passed says something of the message.
    let undelivered = unheard.undelivered + i16::from(unheard.was_read);
    let refused = unheard.refused.as_ref().map(|reason| format!("Kafka refuses its dispatch: {reason}"));
    let is_hopeless = refused.is_some() || undelivered >= MOST_UNDELIVERED;
    let passed =
        format!("agent {agent} read its dispatch and did not start it, as {undelivered} times before");
    Settlement {
        error: is_hopeless.then(|| refused.unwrap_or(passed)),
        reason: is_hopeless.then_some("undeliverable"),
        after: Duration::ZERO,
        undelivered,
    }
}

fn tell(unheard: &Unheard, settlement: &Settlement) {
    let Unheard { group, message_id, dispatch, agent, .. } = unheard;
    match (&settlement.error, settlement.reason) {
        (Some(error), Some("undeliverable")) => {
            tracing::error!(group, id = %message_id, dispatch, "a dead letter that no agent can be given: {error}");
        }
        (Some(error), _) => tracing::warn!(group, id = %message_id, dispatch, "a retry failed: {error}"),
        (None, _) => {
            tracing::warn!(group, id = %message_id, dispatch, agent, "a retry was not started in time; another agent gets it");
        }
    }
}

/// Returns how many; nothing if none is due that somebody takes.
async fn give_out(client: &mut Connection, policies: &Policies) -> Result<Option<usize>, PgError> {
    let mut groups: BTreeMap<String, Vec<Candidate>> = BTreeMap::new();
    for (group, candidate) in dispatching::candidates(client).await? {
        groups.entry(group).or_default().push(candidate);
    }
    if groups.is_empty() {
        return Ok(None);
    }
    let room = |group: &str, candidates: &[Candidate]| room(candidates, policies.most_per_agent(group));
    let room: Vec<(&str, i64)> =
        groups.iter().map(|(group, candidates)| (group.as_str(), room(group, candidates))).collect();
    let mut dispatches = Vec::new();
    for due in dispatching::due(client, &room).await? {
        if let Some(candidates) = groups.get_mut(&due.group)
            && let Some(place) = choose(candidates, due.last_agent, policies.most_per_agent(&due.group))
        {
            candidates[place].retries += 1;
            dispatches.push(dispatch(due, candidates[place].agent, policies));
        }
    }
    if dispatches.is_empty() {
        return Ok(Some(0));
    }
    let groups = dispatching::dispatch(client, &dispatches).await?;
    let given = groups.len();
    policies.scheduled(groups);
    Ok(Some(given))
}

fn room(candidates: &[Candidate], most: u32) -> i64 {
    let free = candidates.iter().map(|candidate| most.saturating_sub(candidate.retries));
    i64::from(free.sum::<u32>().min(MOST_PER_RUN))
}

fn dispatch(due: Due, target: uuid::Uuid, policies: &Policies) -> (Dispatch, Option<String>) {
    let deadline = policies.of(&due.group).deadline.as_millis();
    let dispatch = Dispatch {
        target,
        group: due.group,
        message_id: due.message_id,
        attempt: due.attempts + 1,
        number: due.dispatch + 1,
        deadline: u64::try_from(deadline).unwrap_or(u64::MAX),
    };
    let key = due.key.and_then(|key| String::from_utf8(key).ok()).filter(|key| !key.contains('\0'));
    (dispatch, key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unheard(was_running: bool, attempts: u32) -> Unheard {
        Unheard {
            group: "orders".into(),
            message_id: uuid::Uuid::nil(),
            dispatch: 1,
            was_running,
            attempts,
            undelivered: 0,
            refused: None,
            agent: "a".into(),
            was_read: true,
        }
    }

    #[test]
    fn silence_in_the_middle_counts_as_a_failed_attempt_and_the_last_one_is_the_end() {
        let policy = Retry { max_attempts: 3, ..Retry::default() };
        let second = judge(&unheard(true, 2), policy, 1.0);
        assert_eq!((second.reason, second.after), (None, Duration::from_secs(2)));
        assert_eq!(judge(&unheard(true, 3), policy, 1.0).reason, Some("attempts"));
    }

    #[test]
    fn what_was_not_started_is_due_at_once_and_a_dead_letter_only_after_several_that_were_read() {
        let policy = Retry::default();
        let of = |undelivered, was_read| {
            judge(&Unheard { undelivered, was_read, ..unheard(false, 5) }, policy, 1.0)
        };
        assert_eq!(
            (of(0, true).reason, of(0, true).after, of(0, true).undelivered),
            (None, Duration::ZERO, 1)
        );
        assert_eq!((of(2, false).reason, of(2, false).undelivered), (None, 2));
        assert_eq!(of(2, true).reason, Some("undeliverable"));
        let parked = Unheard { refused: Some("too large".into()), ..unheard(false, 5) };
        assert_eq!(judge(&parked, policy, 1.0).reason, Some("undeliverable"));
    }
}
