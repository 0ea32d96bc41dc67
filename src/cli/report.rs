//! A failure as the operator reads it: what, why, what to do; and the exit code.

use std::io::{self, Write};

use tokio_postgres::error::{DbError, SqlState};

use super::output::OutputError;
use crate::config::ConfigError;
use crate::failure::{self, Exit, Failure, Kind};
use crate::kafka::KafkaFailure;
use crate::pg::PgError;
use crate::pg::connect::QueryError;

const RED: &str = "\x1b[1;31m";
const PLAIN: &str = "\x1b[0m";

/// Says it on standard error, once.
pub fn report(error: &anyhow::Error, color: bool) -> Exit {
    if is_closed_pipe(error) {
        return Exit::Done;
    }
    let kind = kind(error);
    let label = if color { format!("{RED}error:{PLAIN}") } else { "error:".to_owned() };
    let advice = kind.advice().map(|advice| format!("\n{advice}")).unwrap_or_default();
    // With standard error gone as well, the exit code has to do.
    let _ = writeln!(io::stderr(), "{label} {}{advice}", words(error));
    kind.exit()
}

/// The reader of our output has seen enough.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<OutputError>().is_some_and(OutputError::is_closed)
}

/// The outermost cause that has a kind decides.
pub fn kind(error: &anyhow::Error) -> Kind {
    // A context is not seen by what goes through the chain.
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return failure.kind;
    }
    error
        .chain()
        .find_map(|cause| {
            if cause.is::<ConfigError>() {
                Some(Kind::Configuration)
            } else if let Some(error) = cause.downcast_ref::<PgError>() {
                Some(of_postgres(error))
            } else {
                cause.downcast_ref::<KafkaFailure>().map(of_kafka)
            }
        })
        .unwrap_or(Kind::Other)
}

fn of_postgres(error: &PgError) -> Kind {
    match error {
        error if error.is_connection() => Kind::PostgresUnreachable,
        PgError::Query(QueryError(error)) => error.code().map_or(Kind::Other, of_sqlstate),
        PgError::Unreachable { .. } | PgError::Setup(_) => Kind::Other,
    }
}

fn of_sqlstate(state: &SqlState) -> Kind {
    match *state {
        SqlState::UNDEFINED_TABLE
        | SqlState::INVALID_SCHEMA_NAME
        | SqlState::UNDEFINED_COLUMN
        | SqlState::UNDEFINED_FUNCTION => Kind::SchemaMissing,
        SqlState::INSUFFICIENT_PRIVILEGE => Kind::Forbidden,
        SqlState::QUERY_CANCELED => Kind::TooSlow,
        // 22: data exceptions; 23: constraints.
        ref other if other.code().starts_with("22") || other.code().starts_with("23") => Kind::Input,
        _ => Kind::Other,
    }
}

fn of_kafka(error: &KafkaFailure) -> Kind {
    match error {
        KafkaFailure::Unreachable { .. } => Kind::KafkaUnreachable,
        KafkaFailure::Setup(_) => Kind::Configuration,
        KafkaFailure::Client(_) => Kind::Other,
    }
}

fn words(error: &anyhow::Error) -> String {
    failure::words(error.chain().filter(|cause| !is_told_by_us(*cause)))
}

/// The driver's own errors: `PgError` has put them into words.
fn is_told_by_us(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause.is::<tokio_postgres::Error>() || cause.is::<DbError>()
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let unreachable = PgError::Unreachable { address: "a@b".into(), source: anyhow::anyhow!("refused") };
        let error = Err::<(), _>(unreachable).context("lines 1-9 are inserted").unwrap_err();
        assert_eq!(words(&error), "lines 1-9 are inserted: PostgreSQL at a@b cannot be reached: refused");
        assert_eq!(kind(&error).exit(), Exit::Unreachable);
    }

    #[test]
    fn the_outermost_kind_decides() {
        let inner = Failure::usage("line 7");
        let error = anyhow::Error::from(inner).context(Failure::new(Kind::Other, "some are inserted"));
        assert_eq!(kind(&error).exit(), Exit::Failed);
    }

    #[test]
    fn only_our_own_output_may_break() {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert_eq!(report(&OutputError(broken()).into(), false), Exit::Done);
        assert_eq!(report(&anyhow::Error::from(broken()).context("to the database"), false), Exit::Failed);
        assert_eq!(
            report(&OutputError(io::Error::from(io::ErrorKind::StorageFull)).into(), false),
            Exit::Failed
        );
    }
}
