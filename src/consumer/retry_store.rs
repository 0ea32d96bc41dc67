//! The group's part of the database, as its retries see it.

use std::collections::HashSet;
use std::time::Duration;

use super::store::Store;
use crate::pg::PgError;
use crate::pg::effect::{Effect, Function};
use crate::pg::held::Successor;
use crate::pg::pool::Lent;
use crate::pg::retrying::{self, Applied, Ended, Ends, Fence, Named, Opened};

/// How long one call may take: far more than it does, so that a dead connection is told from a busy server.
const PATIENCE: Duration = Duration::from_secs(30);

/// A word that is said again soon need not arrive.
const SOON: Duration = Duration::from_secs(2);

impl Store {
    fn fence(&self) -> Fence<'_> {
        Fence { group: &self.group, agent: self.agent }
    }

    /// See `retrying::open`.
    pub(super) async fn open(&self, all: &[Named]) -> Result<Vec<Opened>, PgError> {
        let call = async |client: &mut Lent| retrying::open(&*client, self.fence(), all).await;
        self.pool.ask(PATIENCE, call).await
    }

    /// See `retrying::start`; may be repeated.
    pub(super) async fn start(
        &self,
        all: &[(Named, i32)],
        lease: Duration,
    ) -> Result<HashSet<uuid::Uuid>, PgError> {
        let call = async |client: &mut Lent| retrying::start(&*client, self.fence(), all, lease).await;
        self.pool.ask(PATIENCE, call).await
    }

    pub(super) async fn renew(&self, all: &[Named], lease: Duration) -> Result<(), PgError> {
        let call = async |client: &mut Lent| retrying::renew(&*client, self.fence(), all, lease).await;
        self.pool.ask(SOON, call).await
    }

    /// See `retrying::end`; may be repeated.
    pub(super) async fn end(&self, ends: &Ends, successor: Successor) -> Result<Ended, PgError> {
        let call = async |client: &mut Lent| retrying::end(client, self.scope(), ends, successor).await;
        self.pool.ask(PATIENCE, call).await
    }

    /// See `retrying::apply`; may be repeated.
    pub(super) async fn apply_retry(
        &self,
        dispatch: i64,
        (function, effect): (Function<'_>, Effect<'_>),
        successor: Successor,
    ) -> Result<Applied, PgError> {
        let call = async |client: &mut Lent| {
            retrying::apply(client, self.scope(), dispatch, (function, effect), successor).await
        };
        let is_lost = |applied: &Applied| matches!(applied, Applied::Lost);
        self.pool.ask_unless_lost(is_lost, function.limit() + PATIENCE, call).await
    }
}
