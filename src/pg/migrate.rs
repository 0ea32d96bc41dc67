//! The schema: numbered files, applied in order under a lock, each with a checksum.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use sha2::{Digest, Sha256};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::connect::PgError;
use crate::config::Roles;

/// Taken for as long as migrations run, so that two at once are safe: the second waits, and finds nothing to do.
const LOCK: &str = "select pg_advisory_lock(hashtextextended('outboxd.migrate', 0))";
const UNLOCK: &str = "select pg_advisory_unlock(hashtextextended('outboxd.migrate', 0))";

const BOOTSTRAP: &str = "
create schema if not exists outboxd;
create table if not exists outboxd.migrations (
  version integer primary key,
  name text not null,
  checksum text not null,
  oldest_compatible integer not null,  -- daemons made for this version or newer can work on this schema
  applied_at timestamptz not null default clock_timestamp()
);";

/// One file of `migrations/`.
#[derive(Debug)]
pub struct Migration {
    pub version: i32,
    pub name: &'static str,
    pub sql: &'static str,
    /// The oldest schema version whose daemons can work on this one.
    pub oldest_compatible: i32,
}

impl Migration {
    fn checksum(&self) -> String {
        Sha256::digest(self.sql).iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }
}

macro_rules! migrations {
    ($($version:literal $name:literal since $oldest:literal;)*) => {
        &[$(Migration {
            version: $version,
            name: $name,
            sql: include_str!(concat!("../../migrations/", $name, ".sql")),
            oldest_compatible: $oldest,
        }),*]
    };
}

/// All of them, in order. `since` names the oldest version whose daemons can work on the schema it leaves behind.
pub const MIGRATIONS: &[Migration] = migrations! {
    1 "0001_outbox" since 5;
    2 "0002_enqueue" since 5;
    3 "0003_consuming" since 5;
    4 "0004_agents" since 5;
    5 "0005_views" since 5;
};

const ROLES: &str = include_str!("../../migrations/roles.sql");

/// The schema version that this program was made for.
pub fn newest() -> i32 {
    MIGRATIONS.last().map_or(0, |migration| migration.version)
}

/// Where a database stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fit {
    /// Daemons of this version can work.
    Fits { version: i32 },
    /// `outboxd migrate` has work to do.
    Behind { version: i32 },
    /// A newer outboxd left a schema that this one cannot work on.
    TooNew { version: i32, oldest_compatible: i32 },
}

/// One line of `migrate status`.
#[derive(Debug)]
pub struct Applied {
    pub version: i32,
    pub name: String,
    pub checksum: String,
    pub oldest_compatible: i32,
    pub applied_at: chrono::DateTime<chrono::Utc>,
}

/// What has been applied; nothing if the schema is not there.
pub async fn applied(client: &Client) -> Result<Vec<Applied>, PgError> {
    let rows = client
        .query("select version, name, checksum, oldest_compatible, applied_at from outboxd.migrations order by version", &[])
        .await;
    match rows {
        Ok(rows) => Ok(rows
            .iter()
            .map(|row| Applied {
                version: row.get(0),
                name: row.get(1),
                checksum: row.get(2),
                oldest_compatible: row.get(3),
                applied_at: row.get(4),
            })
            .collect()),
        Err(error)
            if matches!(error.code(), Some(&SqlState::UNDEFINED_TABLE | &SqlState::INVALID_SCHEMA_NAME)) =>
        {
            Ok(Vec::new())
        }
        Err(error) => Err(error.into()),
    }
}

/// Does the schema fit this program?
pub async fn fit(client: &Client) -> Result<Fit, PgError> {
    Ok(judge(&applied(client).await?))
}

fn judge(applied: &[Applied]) -> Fit {
    let Some(last) = applied.last() else {
        return Fit::Behind { version: 0 };
    };
    let version = last.version;
    if version < newest() {
        Fit::Behind { version }
    } else if last.oldest_compatible > newest() {
        Fit::TooNew { version, oldest_compatible: last.oldest_compatible }
    } else {
        Fit::Fits { version }
    }
}

/// What `migrate` did.
#[derive(Debug, Default)]
pub struct Report {
    pub applied: Vec<&'static str>,
    pub roles_created: Vec<String>,
}

/// Brings the schema up and, if `roles` are given, makes them and grants what each needs.
pub async fn migrate(client: &mut Client, roles: Option<&Roles>) -> Result<Report, PgError> {
    client.batch_execute(LOCK).await?;
    let report = migrate_locked(client, roles).await;
    // Should the unlock fail, the lock ends with the session.
    let _ = client.batch_execute(UNLOCK).await;
    report
}

async fn migrate_locked(client: &mut Client, roles: Option<&Roles>) -> Result<Report, PgError> {
    let mut report = Report::default();
    let before = applied(client).await?;
    verify(&before)?;
    if let Fit::TooNew { version, oldest_compatible } = judge(&before) {
        return Err(PgError::Setup(too_new(version, oldest_compatible)));
    }
    let version = before.last().map_or(0, |last| last.version);
    let pending: Vec<&Migration> =
        MIGRATIONS.iter().filter(|migration| migration.version > version).collect();
    if before.is_empty() {
        client.batch_execute(BOOTSTRAP).await?;
    }
    for migration in pending {
        let transaction = client.transaction().await?;
        transaction.batch_execute(migration.sql).await.map_err(|error| {
            PgError::Setup(format!("migration {}: {}", migration.name, super::connect::describe(&error)))
        })?;
        transaction
            .execute(
                "insert into outboxd.migrations (version, name, checksum, oldest_compatible) values ($1, $2, $3, $4)",
                &[&migration.version, &migration.name, &migration.checksum(), &migration.oldest_compatible],
            )
            .await?;
        transaction.commit().await?;
        report.applied.push(migration.name);
    }
    if let Some(roles) = roles {
        for (role, _) in named(roles) {
            let created = client
                .execute("select from pg_roles where rolname = $1", &[&role])
                .await
                .map(|found| found == 0)?;
            if created {
                client.batch_execute(&format!("create role {} nologin", quote(role))).await.map_err(|error| {
                    PgError::Setup(format!(
                        "role {role} cannot be created: {}. Let someone who may create it, or run `outboxd migrate \
                         --no-roles` and apply the grants that it prints",
                        super::connect::describe(&error)
                    ))
                })?;
                report.roles_created.push(role.to_owned());
            }
        }
        client.batch_execute(&grants(roles)).await?;
    }
    Ok(report)
}

/// An applied file that was changed afterwards would leave this database unlike any other.
fn verify(applied: &[Applied]) -> Result<(), PgError> {
    for migration in MIGRATIONS {
        if let Some(found) = applied.iter().find(|found| found.version == migration.version)
            && found.checksum != migration.checksum()
        {
            return Err(PgError::Setup(format!(
                "migration {} was applied in another form ({}): this database was set up by a different build",
                migration.name, found.name
            )));
        }
    }
    Ok(())
}

/// What a daemon says of a schema that it must not touch.
pub fn too_new(version: i32, oldest_compatible: i32) -> String {
    format!(
        "the schema is at version {version} and needs an outboxd made for version {oldest_compatible} or newer; this \
         one was made for version {}: upgrade outboxd",
        newest()
    )
}

/// The SQL that `migrate` would run on a database at that version.
pub fn plan(version: i32) -> String {
    let mut sql = String::new();
    if version == 0 {
        sql.push_str(BOOTSTRAP.trim_start());
        sql.push('\n');
    }
    for migration in MIGRATIONS.iter().filter(|migration| migration.version > version) {
        let _ = writeln!(sql, "\n-- {}\nbegin;\n{}", migration.name, migration.sql.trim_end());
        let _ = writeln!(
            sql,
            "insert into outboxd.migrations (version, name, checksum, oldest_compatible) values ({}, '{}', '{}', {});\ncommit;",
            migration.version,
            migration.name,
            migration.checksum(),
            migration.oldest_compatible
        );
    }
    sql
}

/// `create role` statements for an operator who makes roles by hand, and the grants.
pub fn roles_plan(roles: &Roles) -> String {
    let mut sql = String::new();
    for (role, _) in named(roles) {
        let _ = writeln!(sql, "create role {} nologin;", quote(role));
    }
    sql + "\n" + &grants(roles)
}

fn grants(roles: &Roles) -> String {
    let names: BTreeMap<&str, String> = named(roles).map(|(role, place)| (place, quote(role))).into();
    names.iter().fold(ROLES.to_owned(), |sql, (place, name)| sql.replace(place, name))
}

fn named(roles: &Roles) -> [(&str, &'static str); 4] {
    [
        (&roles.app, "{app}"),
        (&roles.agent, "{agent}"),
        (&roles.operator, "{operator}"),
        (&roles.reader, "{reader}"),
    ]
}

fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(version: i32, oldest_compatible: i32) -> Vec<Applied> {
        vec![Applied {
            version,
            name: String::new(),
            checksum: String::new(),
            oldest_compatible,
            applied_at: chrono::DateTime::UNIX_EPOCH,
        }]
    }

    #[test]
    fn a_newer_compatible_schema_fits_and_an_incompatible_one_does_not() {
        assert_eq!(judge(&[]), Fit::Behind { version: 0 });
        assert_eq!(judge(&at(newest() - 1, 1)), Fit::Behind { version: newest() - 1 });
        assert_eq!(judge(&at(newest(), 1)), Fit::Fits { version: newest() });
        assert_eq!(judge(&at(newest() + 3, newest())), Fit::Fits { version: newest() + 3 });
        let too_new = Fit::TooNew { version: newest() + 3, oldest_compatible: newest() + 1 };
        assert_eq!(judge(&at(newest() + 3, newest() + 1)), too_new);
    }

    #[test]
    fn role_names_are_quoted_wherever_they_stand() {
        let roles = Roles { app: "o\"x".into(), agent: "a".into(), operator: "o".into(), reader: "r".into() };
        let sql = grants(&roles);
        assert!(sql.contains("\"o\"\"x\"") && !sql.contains("{app}") && !sql.contains("{reader}"));
    }
}
