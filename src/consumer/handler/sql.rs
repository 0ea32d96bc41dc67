//! `sql`: a function that runs in the transaction of the message's evidence, so that its effect happens exactly once.

use std::time::Duration;

use tokio_postgres::error::SqlState;

use super::reason;
use crate::config::group::SqlMode;
use crate::domain::delivery::Outcome;
use crate::pg::connect::describe;
use crate::pg::effect::Function;

/// What the completion needs to call it. Whether the function exists, only the database can say.
#[derive(Clone, Debug)]
pub struct SqlHandler {
    pub function: String,
    pub mode: SqlMode,
    pub timeout: Duration,
}

impl SqlHandler {
    pub fn function(&self) -> Function<'_> {
        Function {
            name: &self.function,
            takes_batch: self.mode == SqlMode::Batch,
            statement_timeout: self.statement_timeout(),
        }
    }

    /// The function with what it takes.
    pub fn signature(&self) -> String {
        let argument = match self.mode {
            SqlMode::Each => "outboxd.delivery",
            SqlMode::Batch => "outboxd.delivery[]",
        };
        format!("{}({argument})", self.function)
    }

    /// For `statement_timeout`, in milliseconds: never 0, which would be no limit at all.
    fn statement_timeout(&self) -> i32 {
        i32::try_from(self.timeout.as_millis()).unwrap_or(i32::MAX).max(1)
    }

    /// What an exception of the function means. Conflicts and lost connections are for the caller to sort out before:
    /// they are nobody's failure.
    pub fn failed(&self, error: &tokio_postgres::Error) -> Outcome {
        if error.code() == Some(&SqlState::QUERY_CANCELED) {
            return reason::timed_out(self.timeout);
        }
        reason::retry(describe(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_never_turns_into_none() {
        let limit =
            |timeout| SqlHandler { function: "f".into(), mode: SqlMode::Each, timeout }.statement_timeout();
        assert_eq!(limit(Duration::from_secs(10)), 10_000);
        assert_eq!(limit(Duration::from_micros(10)), 1);
        assert_eq!(limit(Duration::MAX), i32::MAX);
    }
}
