//! The group's part of the database. An answer that does not come in time is an error like any other.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::domain::breaker::Change;
use crate::domain::delivery::{Delivery, TopicPartition};
use crate::domain::suspicion::Suspicion;
use crate::pg::claims::{self, Claimant, Claimed, Wanted};
use crate::pg::completing::{self, Completion, LookedFor, Scope, Standing};
use crate::pg::consuming::{self, Declared, Settled, Stored};
use crate::pg::control::{self, AtWork, Member, Orders};
use crate::pg::effect::{self, Affected, Bounds, Effect, Function, Together};
use crate::pg::failing;
use crate::pg::pool::Lent;
use crate::pg::starts;
use crate::pg::{PgError, Pool};

/// How long one call may take: far more than it does, so that a dead connection is told from a busy server.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a goodbye may take: who is silent is not at work either, and what it was given has a deadline.
const GOODBYE: Duration = Duration::from_secs(5);

/// What every statement of a group names.
pub(super) struct Store {
    pub(super) pool: Pool,
    pub(super) group: Arc<str>,
    pub(super) cluster_id: String,
    pub(super) agent: Uuid,
    pub(super) agent_name: String,
}

impl Store {
    pub(super) fn scope(&self) -> Scope<'_> {
        Scope {
            group: &self.group,
            cluster_id: &self.cluster_id,
            agent: self.agent,
            agent_name: &self.agent_name,
        }
    }

    pub(super) async fn standing(&self, kafka_group: &str) -> Result<Declared, PgError> {
        let call = async |client: &mut Lent| {
            consuming::standing(client, &self.group, kafka_group, &self.cluster_id).await
        };
        self.pool.ask(PATIENCE, call).await
    }

    pub(super) async fn declare(
        &self,
        kafka_group: &str,
        starts: &[(TopicPartition, i64)],
    ) -> Result<Declared, PgError> {
        let call = async |client: &mut Lent| {
            consuming::declare(client, &self.group, kafka_group, &self.cluster_id, starts).await
        };
        self.pool.ask(PATIENCE, call).await
    }

    pub(super) async fn subscribe(&self, topics: &[String]) -> Result<(), PgError> {
        let call = async |client: &mut Lent| consuming::subscribe(client, &self.group, topics).await;
        self.pool.ask(PATIENCE, call).await
    }

    /// Given as `name(argument)`.
    pub(super) async fn function_exists(&self, function: &str) -> Result<bool, PgError> {
        let call = async |client: &mut Lent| consuming::function_exists(client, function).await;
        self.pool.ask(PATIENCE, call).await
    }

    pub(super) async fn positions(
        &self,
        topics: &[String],
    ) -> Result<HashMap<TopicPartition, Stored>, PgError> {
        let call = async |client: &mut Lent| {
            consuming::positions(client, &self.group, &self.cluster_id, topics).await
        };
        self.pool.ask(PATIENCE, call).await
    }

    /// See `consuming::settle`.
    pub(super) async fn settle(&self, settled: &Settled<'_>) -> Result<(), PgError> {
        let call =
            async |client: &mut Lent| consuming::settle(client, &self.group, &self.cluster_id, settled).await;
        self.pool.ask(PATIENCE, call).await
    }

    pub(super) async fn look_up(&self, messages: &[LookedFor<'_>]) -> Result<Vec<Standing>, PgError> {
        let call = async |client: &mut Lent| completing::look_up(client, &self.group, messages).await;
        self.pool.ask(PATIENCE, call).await
    }

    /// See `starts::note`.
    pub(super) async fn note(&self, ids: &[Uuid]) -> Result<HashMap<Uuid, Suspicion>, PgError> {
        let call = async |client: &mut Lent| starts::note(client, &self.group, ids).await;
        self.pool.ask(PATIENCE, call).await
    }

    /// See `starts::count`.
    pub(super) async fn count_starts(&self, ids: &[Uuid], alone: bool) -> Result<u32, PgError> {
        let call = async |client: &mut Lent| starts::count(client, &self.group, ids, alone).await;
        self.pool.ask(PATIENCE, call).await
    }

    /// See `control::control`.
    pub(super) async fn control(&self, at_work: AtWork) -> Result<Option<Orders>, PgError> {
        let (group, agent, agent_name) = (&*self.group, self.agent, &*self.agent_name);
        let member = Member { group, agent, agent_name, at_work };
        let call = async |client: &mut Lent| control::control(client, member).await;
        self.pool.ask(PATIENCE, call).await
    }

    pub(super) async fn change_breaker(
        &self,
        change: Change,
        pause: Duration,
        reason: &str,
    ) -> Result<(), PgError> {
        let call = async |client: &mut Lent| match change {
            Change::Open => control::open_breaker(client, &self.group, pause, reason).await,
            Change::Close => control::close_breaker(client, &self.group).await,
        };
        self.pool.ask(PATIENCE, call).await
    }

    /// See `control::stop_taking`.
    pub(super) async fn stop_taking(&self) -> Result<u64, PgError> {
        let call = async |client: &mut Lent| control::stop_taking(client, &self.group, self.agent).await;
        self.pool.ask(PATIENCE, call).await
    }

    /// See `control::leave`.
    pub(super) async fn leave(&self) -> Result<u64, PgError> {
        let call = async |client: &mut Lent| control::leave(client, &self.group, self.agent).await;
        self.pool.ask(GOODBYE, call).await
    }

    /// See `failing::hold`; may be repeated.
    pub(super) async fn hold(&self, held: &[&Delivery]) -> Result<Vec<bool>, PgError> {
        let call = async |client: &mut Lent| failing::hold(client, self.scope(), held).await;
        self.pool.ask(PATIENCE, call).await
    }

    pub(super) async fn claim(&self, wanted: &[Wanted<'_>], ttl: Duration) -> Result<Vec<Claimed>, PgError> {
        let claimant = Claimant { group: &self.group, agent: self.agent };
        let call = async |client: &mut Lent| claims::claim(client, claimant, wanted, ttl).await;
        self.pool.ask(PATIENCE, call).await
    }

    /// See `completing::complete`; may be repeated.
    pub(super) async fn complete(&self, completion: &Completion) -> Result<usize, PgError> {
        let call = async |client: &mut Lent| completing::complete(client, self.scope(), completion).await;
        self.pool.ask(PATIENCE, call).await
    }

    /// See `effect::apply`; may be repeated.
    pub(super) async fn apply(
        &self,
        function: Function<'_>,
        effect: Effect<'_>,
    ) -> Result<Affected, PgError> {
        let call = async |client: &mut Lent| effect::apply(client, self.scope(), function, effect).await;
        self.pool.ask_unless_lost(Affected::is_lost, function.limit() + PATIENCE, call).await
    }

    /// See `effect::apply_together`; may be repeated.
    pub(super) async fn apply_together(
        &self,
        function: Function<'_>,
        effects: &[Effect<'_>],
        bounds: Bounds<'_>,
    ) -> Result<Together, PgError> {
        let call = async |client: &mut Lent| {
            effect::apply_together(client, self.scope(), function, effects, bounds).await
        };
        // The last call begins within the limit of the first.
        self.pool.ask_unless_lost(Together::is_lost, function.limit() * 2 + PATIENCE, call).await
    }
}
