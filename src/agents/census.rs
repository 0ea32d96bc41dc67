//! What concerns the whole database: every agent looks whether its cursors stand still, and one counts for all, the one
//! that does the work of `process-pending`.

use std::sync::Arc;
use std::time::Duration;

use crate::pg::connect::Connection;
use crate::pg::{Connector, PgError, census, inspect, retention};
use crate::telemetry::metrics::{Alone, Group, Metrics, Outcome, RoleStatus, Topic};

const LOOK_EVERY: Duration = Duration::from_secs(5);

/// So many looks are between two counts.
const COUNT_EVERY: u32 = 2;

const ROLES: [&str; 2] = ["producer", "consumer"];
const STATES: [&str; 5] = ["active", "draining", "suspect", "inactive", "stopped"];

/// Counts at intervals, as long as it is this agent's to tell.
pub struct Census {
    pub agent: String,
    /// Of the producers one counts.
    pub is_producer: bool,
    pub connector: Connector,
    pub metrics: Arc<Metrics>,
    /// How long published messages are kept for nobody.
    pub published: Duration,
    /// Told why something waits that nobody moves; nothing if nothing does, or it is not known.
    pub standing: Box<dyn Fn(Option<String>) + Send + Sync>,
}

impl Census {
    /// Works until it is dropped.
    pub async fn run(self) {
        let mut connection = None;
        // Up to when it has seen what operators sent again.
        let mut seen = None;
        for look in 0_u32.. {
            let counts = self.is_producer && look.is_multiple_of(COUNT_EVERY);
            if let Err(error) = self.look(&mut connection, counts.then_some(&mut seen)).await {
                // The heartbeat tells of a database that is away.
                tracing::debug!("the whole database is not counted: {error}");
                connection = None;
                (self.standing)(None);
                self.say_nothing();
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn look(
        &self,
        connection: &mut Option<Connection>,
        seen: Option<&mut Option<String>>,
    ) -> Result<(), PgError> {
        let client = match connection {
            Some(client) => client,
            none => {
                let client = self.connector.connect().await?;
                census::bound(&client).await?;
                none.insert(client)
            }
        };
        (self.standing)(self.what_stands(client).await?);
        match seen {
            Some(seen) => self.count(client, seen).await,
            None => Ok(()),
        }
    }

    async fn what_stands(&self, client: &Connection) -> Result<Option<String>, PgError> {
        let age =
            |seconds: f64| humantime::format_duration(Duration::from_secs_f64(seconds.max(0.0).trunc()));
        if !self.is_producer {
            let stranded = census::stranded(client).await?;
            return Ok(stranded.map(|(group, seconds)| {
                format!(
                    "retries of group {group} are due for {}, and nobody owns a lane: no producer runs",
                    age(seconds)
                )
            }));
        }
        let standing = census::standing(client).await?;
        Ok(standing.map(|(lane, seconds, is_paused)| {
            let why = if is_paused { "`process-pending` is paused" } else { "nobody owns it" };
            format!(
                "messages of lane {lane} are pending for {}, and nobody moves its cursor: {why}",
                age(seconds)
            )
        }))
    }

    async fn count(&self, client: &Connection, seen: &mut Option<String>) -> Result<(), PgError> {
        if census::teller(client).await?.as_ref() != Some(&self.agent) {
            self.say_nothing();
            *seen = None;
            return Ok(());
        }
        self.lanes(client).await?;
        self.groups(client).await?;
        self.agents(client).await?;
        let oldest = census::oldest_transaction(client).await?;
        self.metrics.oldest_transaction_age.get_or_create(&Alone).set(oldest);
        self.replayed(client, seen).await
    }

    async fn lanes(&self, client: &Connection) -> Result<(), PgError> {
        let metrics = &self.metrics;
        let lanes = inspect::lanes(client).await?;
        let sum = |of: fn(&inspect::LaneStatus) -> i64| lanes.iter().map(of).sum();
        metrics.pending_messages.get_or_create(&Alone).set(sum(|lane| lane.pending));
        metrics.scheduled_messages.get_or_create(&Alone).set(sum(|lane| lane.scheduled));
        metrics.held_messages.get_or_create(&Alone).set(sum(|lane| lane.held));
        let oldest = lanes.iter().filter_map(|lane| lane.oldest_pending_seconds).fold(0.0, f64::max);
        metrics.oldest_pending_age.get_or_create(&Alone).set(oldest);
        let parked = census::parked(client).await?;
        metrics.parked_messages.clear();
        for (topic, messages) in parked {
            metrics.parked_messages.get_or_create(&Topic { topic }).set(messages);
        }
        Ok(())
    }

    async fn groups(&self, client: &Connection) -> Result<(), PgError> {
        let metrics = &self.metrics;
        let groups = census::groups(client).await?;
        let blocked = retention::blocked(client, self.published).await?;
        for family in [&metrics.breaker_open, &metrics.retry_backlog, &metrics.dead_letters] {
            family.clear();
        }
        metrics.retention_blocked.clear();
        for counts in groups {
            let group = Group { group: counts.name };
            metrics.breaker_open.get_or_create(&group).set(counts.breaker_open.into());
            metrics.retry_backlog.get_or_create(&group).set(counts.backlog);
            metrics.dead_letters.get_or_create(&group).set(counts.dead_letters);
            let beyond = blocked.as_ref().filter(|(behind, _)| behind.group == group.group);
            let beyond = beyond.map_or(Duration::ZERO, |(_, age)| age.saturating_sub(self.published));
            metrics.retention_blocked.get_or_create(&group).set(beyond.as_secs_f64());
        }
        Ok(())
    }

    async fn agents(&self, client: &Connection) -> Result<(), PgError> {
        let metrics = &self.metrics;
        let agents = census::agents(client).await?;
        let silence = census::silence(client).await?;
        let mismatch = census::mismatch(client).await?;
        metrics.config_mismatch.get_or_create(&Alone).set(mismatch);
        metrics.agents.clear();
        for (role, status) in ROLES.iter().flat_map(|role| STATES.map(|status| (*role, status))) {
            drop(metrics.agents.get_or_create(&RoleStatus { role: role.into(), status: status.into() }));
        }
        for (role, status, count) in agents {
            metrics.agents.get_or_create(&RoleStatus { role, status }).set(count);
        }
        metrics.agent_heartbeat_age.get_or_create(&Alone).set(silence);
        Ok(())
    }

    /// By whoever did it: commands are processes of their own, and leave a row in `outboxd.operations`.
    async fn replayed(&self, client: &Connection, seen: &mut Option<String>) -> Result<(), PgError> {
        let count =
            |result, messages| self.metrics.replayed.get_or_create(&Outcome { result }).inc_by(messages);
        let Some(since) = seen else {
            *seen = Some(census::now(client).await?);
            for result in ["done", "interrupted", "failed"] {
                count(result, 0);
            }
            return Ok(());
        };
        let replayed = census::replayed_since(client, since).await?;
        for (result, messages) in replayed.ended {
            let result = match result.as_str() {
                "done" => "done",
                "interrupted" => "interrupted",
                _ => "failed",
            };
            count(result, u64::try_from(messages).unwrap_or(0));
        }
        *seen = replayed.until.or(seen.take());
        Ok(())
    }

    /// Another tells of it, or it is not known.
    fn say_nothing(&self) {
        let metrics = &self.metrics;
        for family in [&metrics.pending_messages, &metrics.scheduled_messages, &metrics.held_messages] {
            family.clear();
        }
        for family in [&metrics.breaker_open, &metrics.retry_backlog, &metrics.dead_letters] {
            family.clear();
        }
        metrics.parked_messages.clear();
        metrics.agents.clear();
        metrics.config_mismatch.clear();
        metrics.retention_blocked.clear();
        for family in
            [&metrics.oldest_pending_age, &metrics.oldest_transaction_age, &metrics.agent_heartbeat_age]
        {
            family.clear();
        }
    }
}
