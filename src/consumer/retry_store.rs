//! The group's part of the database, as its retries see it.

use std::time::Duration;

use tokio_postgres::Client;
use uuid::Uuid;

use super::store::Store;
use crate::domain::delivery::Record;
use crate::pg::PgError;
use crate::pg::consuming::{Finished, Place};
use crate::pg::held::{Next, Successor};
use crate::pg::retrying::{self, Applied, Completed, Effect, Failed, Fence, Opened};

/// How long one call may take: far more than it does, so that a dead connection is told from a busy server.
const PATIENCE: Duration = Duration::from_secs(30);

/// A word that is said again soon need not arrive.
const SOON: Duration = Duration::from_secs(2);

impl Store {
    fn fence(&self, message_id: Uuid, dispatch: i64) -> Fence<'_> {
        Fence { group: &self.group, message_id, dispatch, agent: self.agent }
    }

    fn place_of<'a>(&'a self, record: &'a Record) -> Place<'a> {
        Place {
            group: &self.group,
            cluster_id: &self.cluster_id,
            topic: &record.topic,
            partition: record.partition,
            agent_name: &self.agent_name,
        }
    }

    pub(super) async fn open(&self, message_id: Uuid, dispatch: i64) -> Result<Option<Opened>, PgError> {
        let fence = self.fence(message_id, dispatch);
        self.pool.ask(PATIENCE, async |client: &mut Client| retrying::open(client, fence).await).await
    }

    pub(super) async fn start(
        &self,
        message_id: Uuid,
        dispatch: i64,
        attempts: i32,
        lease: Duration,
    ) -> Result<bool, PgError> {
        let fence = self.fence(message_id, dispatch);
        let call = async |client: &mut Client| retrying::start(client, fence, attempts, lease).await;
        self.pool.ask(PATIENCE, call).await
    }

    pub(super) async fn renew(
        &self,
        message_id: Uuid,
        dispatch: i64,
        lease: Duration,
    ) -> Result<bool, PgError> {
        let fence = self.fence(message_id, dispatch);
        self.pool.ask(SOON, async |client: &mut Client| retrying::renew(client, fence, lease).await).await
    }

    pub(super) async fn hand_back(
        &self,
        message_id: Uuid,
        dispatch: i64,
        after: Duration,
    ) -> Result<(), PgError> {
        let fence = self.fence(message_id, dispatch);
        self.pool
            .ask(PATIENCE, async |client: &mut Client| retrying::hand_back(client, fence, after).await)
            .await
    }

    pub(super) async fn hand_back_all(&self) -> Result<u64, PgError> {
        let call = async |client: &mut Client| retrying::hand_back_all(client, &self.group, self.agent).await;
        self.pool.ask(PATIENCE, call).await
    }

    /// See `retrying::close`.
    pub(super) async fn close(
        &self,
        message_id: Uuid,
        successor: Successor,
    ) -> Result<Option<Next>, PgError> {
        let call =
            async |client: &mut Client| retrying::close(client, &self.group, message_id, successor).await;
        self.pool.ask(PATIENCE, call).await
    }

    /// See `retrying::succeed`; may be repeated.
    pub(super) async fn succeed(
        &self,
        record: &Record,
        finished: &Finished,
        successor: Successor,
    ) -> Result<Option<Next>, PgError> {
        let place = self.place_of(record);
        let call = async |client: &mut Client| retrying::succeed(client, place, finished, successor).await;
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
        let call = async |client: &mut Client| {
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
        let place = self.place_of(&effect.delivery.record);
        let limit = Duration::from_millis(u64::try_from(effect.statement_timeout).unwrap_or(0));
        let call = async |client: &mut Client| retrying::apply(client, fence, place, effect, successor).await;
        self.pool.ask(limit + PATIENCE, call).await
    }

    /// Tells the group that this agent is there.
    pub(super) async fn say(&self, in_flight: i32, takes_retries: bool) -> Result<(), PgError> {
        let agent = (self.agent, self.agent_name.as_str());
        let call = async |client: &mut Client| {
            retrying::say(client, &self.group, agent, in_flight, takes_retries).await
        };
        self.pool.ask(SOON, call).await
    }
}
