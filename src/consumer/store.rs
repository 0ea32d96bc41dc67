//! The group's part of the database. An answer that does not come in time is an error like any other.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio_postgres::Client;
use uuid::Uuid;

use crate::domain::delivery::TopicPartition;
use crate::pg::consuming::{self, Claim, Claimant, Claimed, Declared, Finished, OperationKey, Place};
use crate::pg::effect::{self, Affected, Effect};
use crate::pg::{PgError, Pool};

/// How long one call may take: far more than it does, so that a dead connection is told from a busy server.
const PATIENCE: Duration = Duration::from_secs(30);

/// What every statement of a group names.
pub(super) struct Store {
    pub(super) pool: Pool,
    pub(super) group: String,
    pub(super) cluster_id: String,
    pub(super) agent: Uuid,
    pub(super) agent_name: String,
}

impl Store {
    fn place<'a>(&'a self, (topic, partition): &'a TopicPartition) -> Place<'a> {
        Place {
            group: &self.group,
            cluster_id: &self.cluster_id,
            topic,
            partition: *partition,
            agent_name: &self.agent_name,
        }
    }

    pub(super) async fn standing(&self, kafka_group: &str) -> Result<Declared, PgError> {
        let call = async |client: &mut Client| {
            consuming::standing(client, &self.group, kafka_group, &self.cluster_id).await
        };
        self.pool.ask(PATIENCE, call).await
    }

    pub(super) async fn declare(
        &self,
        kafka_group: &str,
        starts: &[(TopicPartition, i64)],
    ) -> Result<Declared, PgError> {
        let call = async |client: &mut Client| {
            consuming::declare(client, &self.group, kafka_group, &self.cluster_id, starts).await
        };
        self.pool.ask(PATIENCE, call).await
    }

    pub(super) async fn subscribe(&self, topics: &[String]) -> Result<(), PgError> {
        let call = async |client: &mut Client| consuming::subscribe(client, &self.group, topics).await;
        self.pool.ask(PATIENCE, call).await
    }

    pub(super) async fn function_exists(&self, function: &str) -> Result<bool, PgError> {
        let call = async |client: &mut Client| consuming::function_exists(client, function).await;
        self.pool.ask(PATIENCE, call).await
    }

    pub(super) async fn positions(&self, topics: &[String]) -> Result<HashMap<TopicPartition, i64>, PgError> {
        let call = async |client: &mut Client| {
            consuming::positions(client, &self.group, &self.cluster_id, topics).await
        };
        self.pool.ask(PATIENCE, call).await
    }

    pub(super) async fn look_up(&self, ids: &[Uuid]) -> Result<HashSet<Uuid>, PgError> {
        let call = async |client: &mut Client| consuming::look_up(client, &self.group, ids).await;
        self.pool.ask(PATIENCE, call).await
    }

    pub(super) async fn claim(
        &self,
        message_id: Uuid,
        payload_hash: i64,
        keys: &[OperationKey],
        ttl: Duration,
    ) -> Result<Claimed, PgError> {
        let claimant = Claimant { group: &self.group, agent: self.agent, message_id, payload_hash };
        let call = async |client: &mut Client| consuming::claim(client, claimant, keys, ttl).await;
        self.pool.ask(PATIENCE, call).await
    }

    pub(super) async fn release(&self, claims: &[Claim]) -> Result<(), PgError> {
        let call = async |client: &mut Client| consuming::release(client, &self.group, claims).await;
        self.pool.ask(PATIENCE, call).await
    }

    /// See `consuming::complete`; may be repeated.
    pub(super) async fn complete(
        &self,
        at: &TopicPartition,
        finished: &[Finished],
        next_offset: i64,
    ) -> Result<usize, PgError> {
        let call = async |client: &mut Client| {
            consuming::complete(client, self.place(at), finished, next_offset).await
        };
        self.pool.ask(PATIENCE, call).await
    }

    /// See `effect::apply`; may be repeated.
    pub(super) async fn apply(&self, at: &TopicPartition, effect: Effect<'_>) -> Result<Affected, PgError> {
        let limit = Duration::from_millis(u64::try_from(effect.statement_timeout).unwrap_or(0));
        let call = async |client: &mut Client| effect::apply(client, self.place(at), effect).await;
        self.pool.ask(limit + PATIENCE, call).await
    }
}
