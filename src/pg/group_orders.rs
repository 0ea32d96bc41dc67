//! What operators order for a group, from wherever they do: carried out on record.

use std::time::Duration;

use serde_json::json;

use super::connect::{Connection, PgError};
use super::operations::{OnRecord, Operator};
use super::{control, groups};

#[derive(Clone, Copy, Debug)]
pub enum GroupOrder {
    /// Start nothing more of it.
    Pause,
    Resume,
    /// Retention waits for it no more. Not done while an agent of it was heard of within that time.
    Forget {
        inactive_after: Duration,
    },
}

impl GroupOrder {
    fn command(self) -> &'static str {
        match self {
            Self::Pause => "groups pause",
            Self::Resume => "groups resume",
            Self::Forget { .. } => "groups forget",
        }
    }

    /// Says whether that changed anything.
    pub async fn carry_out(
        self,
        client: &mut Connection,
        group: &str,
        by: &Operator,
    ) -> Result<bool, PgError> {
        let order = OnRecord::begin(client, self.command(), &json!({ "group": group }), by).await?;
        let client = &order.transaction;
        let changed = match self {
            Self::Pause => control::pause(client, group, &by.to_string()).await,
            Self::Resume => control::resume(client, group).await,
            Self::Forget { inactive_after } => groups::forget(client, group, inactive_after).await,
        };
        order.end(changed).await
    }
}
