//! The group's part of the database, as its retries see it.

use std::time::Duration;

use uuid::Uuid;

use super::store::Store;
use crate::pg::PgError;
use crate::pg::claims::{self, Claim};
use crate::pg::completing::Finished;
use crate::pg::effect::Effect;
use crate::pg::held::{Next, Successor};
use crate::pg::pool::Lent;
use crate::pg::retrying::{self, Applied, Completed, Failed, Fence, Opened};

/// How long one call may take: far more than it does, so that a dead connection is told from a busy server.
const PATIENCE: Duration = Duration::from_secs(30);

/// A word that is said again soon need not arrive.
const SOON: Duration = Duration::from_secs(2);

impl Store {
    fn fence(&self, message_id: Uuid, dispatch: i64) -> Fence<'_> {
        Fence { group: &self.group, message_id, dispatch, agent: self.agent }
    }

    pub(super) async fn open(&self, message_id: Uuid, dispatch: i64) -> Result<Option<Opened>, PgError> {
        let fence = self.fence(message_id, dispatch);
        self.pool.ask(PATIENCE, async |client: &mut Lent| retrying::open(client, fence).await).await
    }

    pub(super) async fn start(
        &self,
        message_id: Uuid,
        dispatch: i64,
        attempts: i32,
        lease: Duration,
    ) -> Result<bool, PgError> {
        let fence = self.fence(message_id, dispatch);
        let call = async |client: &mut Lent| retrying::start(client, fence, attempts, lease).await;
        self.pool.ask(PATIENCE, call).await
    }

    pub(super) async fn renew(
        &self,
        message_id: Uuid,
        dispatch: i64,
        lease: Duration,
    ) -> Result<bool, PgError> {
        let fence = self.fence(message_id, dispatch);
        self.pool.ask(SOON, async |client: &mut Lent| retrying::renew(client, fence, lease).await).await
    }

    pub(super) async fn hand_back(
        &self,
        message_id: Uuid,
        dispatch: i64,
        after: Duration,
    ) -> Result<(), PgError> {
        let fence = self.fence(message_id, dispatch);
        self.pool
            .ask(PATIENCE, async |client: &mut Lent| retrying::hand_back(client, fence, after).await)
            .await
    }

    pub(super) async fn hand_back_all(&self) -> Result<u64, PgError> {
        let call = async |client: &mut Lent| retrying::hand_back_all(client, &self.group, self.agent).await;
        self.pool.ask(PATIENCE, call).await
    }

    /// See `retrying::close`.
    pub(super) async fn close(
        &self,
        message_id: Uuid,
        successor: Successor,
    ) -> Result<Option<Next>, PgError> {
        let call =
            async |client: &mut Lent| retrying::close(client, &self.group, message_id, successor).await;
        self.pool.ask(PATIENCE, call).await
    }

    /// See `retrying::succeed`; may be repeated.
    pub(super) async fn succeed(
        &self,
        finished: &Finished,
        claims: &[Claim],
        successor: Successor,
    ) -> Result<Option<Next>, PgError> {
        let scope = self.scope();
        let call =
            async |client: &mut Lent| retrying::succeed(client, scope, finished, claims, successor).await;
        self.pool.ask(PATIENCE, call).await
    }

    /// See `retrying::fail`.
    pub(super) async fn fail(
        &self,
        message_id: Uuid,
        dispatch: i64,
        failed: Failed<'_>,
        successor: Successor,
    ) -> Result<Completed, PgError> {
        let fence = self.fence(message_id, dispatch);
        let call = async |client: &mut Lent| {
            retrying::fail(client, fence, &self.agent_name, failed, successor).await
        };
        self.pool.ask(PATIENCE, call).await
    }

    /// See `retrying::apply`; may be repeated.
    pub(super) async fn apply_retry(
        &self,
        dispatch: i64,
        effect: Effect<'_>,
        successor: Successor,
    ) -> Result<Applied, PgError> {
        let fence = self.fence(effect.delivery.message_id, dispatch);
        let scope = self.scope();
        let limit = Duration::from_millis(u64::try_from(effect.statement_timeout).unwrap_or(0));
        let call = async |client: &mut Lent| retrying::apply(client, fence, scope, effect, successor).await;
        self.pool.ask(limit + PATIENCE, call).await
    }

    pub(super) async fn release(&self, claims: &[Claim]) -> Result<(), PgError> {
        let call = async |client: &mut Lent| claims::release(&*client, &self.group, claims).await;
        self.pool.ask(PATIENCE, call).await
    }
}
