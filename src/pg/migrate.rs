//! The schema: numbered files, applied in order under a lock, each with a checksum.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use sha2::{Digest, Sha256};
use tokio_postgres::error::SqlState;

use super::connect::{Connection, PgError};
use crate::config::Roles;

/// Taken for as long as migrations run, so that two at once are safe: the second waits, and finds nothing to do.
const TRY_LOCK: &str = "select pg_try_advisory_lock(hashtextextended('outboxd.migrate', 0))";
const LOCK: &str = "select pg_advisory_lock(hashtextextended('outboxd.migrate', 0))";
const UNLOCK: &str = "select pg_advisory_unlock(hashtextextended('outboxd.migrate', 0))";

const MISSING_ROLES: &str = "
    select wanted.name from unnest($1::text[]) with ordinality as wanted (name, place)
    where not exists (select from pg_roles where rolname = wanted.name) order by place";

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
    1 "0001_outbox" since 6;
    2 "0002_enqueue" since 6;
    3 "0003_consuming" since 6;
    4 "0004_agents" since 6;
    5 "0005_views" since 6;
    6 "0006_leaves" since 6;
    7 "0007_failures" since 7;
    8 "0008_evidence" since 7;
    9 "0009_operations" since 9;
    10 "0010_lane_counts" since 9;
    11 "0011_jobs" since 11;
    12 "0012_topic_ids" since 11;
    13 "0013_claims_in_place" since 11;
    14 "0014_replays_and_suspects" since 11;
    15 "0015_keys_by_bytes" since 11;
};

/// Roles and rights, with places for the configured names.
pub(super) const ROLES: &str = include_str!("../../migrations/roles.sql");

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

impl Fit {
    /// The version that the schema is at; 0 if it is not there.
    pub fn version(&self) -> i32 {
        match self {
            Self::Fits { version } | Self::Behind { version } | Self::TooNew { version, .. } => *version,
        }
    }
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
pub async fn applied(client: &Connection) -> Result<Vec<Applied>, PgError> {
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
pub async fn fit(client: &Connection) -> Result<Fit, PgError> {
    Ok(judge(&applied(client).await?))
}

/// Does a schema with these fit this program?
pub fn judge(applied: &[Applied]) -> Fit {
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
pub async fn migrate(client: &mut Connection, roles: Option<&Roles>) -> Result<Report, PgError> {
    let is_free: bool = client.query_one(TRY_LOCK, &[]).await?.get(0);
    if !is_free {
        tracing::warn!("another `outboxd migrate` is at work on this database: waiting for it");
        client.batch_execute(LOCK).await?;
    }
    let report = migrate_locked(client, roles).await;
    // Should the unlock fail, the lock ends with the session.
    let _ = client.batch_execute(UNLOCK).await;
    report
}

async fn migrate_locked(client: &mut Connection, roles: Option<&Roles>) -> Result<Report, PgError> {
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
        report.roles_created = create_missing(client, roles).await?;
        client.batch_execute(&grants(roles)).await?;
    }
    Ok(report)
}

/// Those of the configured roles that are not there.
pub(super) async fn missing_roles(client: &Connection, roles: &Roles) -> Result<Vec<String>, PgError> {
    let wanted: Vec<_> = named(roles).into_iter().map(|(role, _)| role).collect();
    Ok(client.query(MISSING_ROLES, &[&wanted]).await?.iter().map(|row| row.get(0)).collect())
}

async fn create_missing(client: &Connection, roles: &Roles) -> Result<Vec<String>, PgError> {
    let mut created = missing_roles(client, roles).await?;
    let mut came_up = Vec::new();
    for role in &created {
        match client.batch_execute(&create_role(role)).await {
            Ok(()) => {}
            // Roles belong to all databases of a server, the lock to this one: someone else has just made it.
            Err(error)
                if matches!(
                    error.code(),
                    Some(&SqlState::DUPLICATE_OBJECT | &SqlState::UNIQUE_VIOLATION)
                ) =>
            {
                came_up.push(role.clone());
            }
            Err(error) => {
                return Err(PgError::Setup(format!(
                    "the schema is up, but role {role} cannot be created: {}. Let someone who may run this command, or \
                     run `outboxd migrate --no-roles` and have the SQL that it prints applied",
                    super::connect::describe(&error)
                )));
            }
        }
    }
    created.retain(|role| !came_up.contains(role));
    Ok(created)
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

/// The SQL that `migrate` would run now.
#[derive(Debug)]
pub struct Plan {
    /// Empty if the schema is up to date.
    pub schema: String,
    /// Those that are missing, and the grants, which are renewed each time.
    pub roles: String,
}

/// What is left to do on this database.
pub async fn plan(client: &Connection, roles: &Roles) -> Result<Plan, PgError> {
    let before = applied(client).await?;
    verify(&before)?;
    let version = before.last().map_or(0, |last| last.version);
    Ok(Plan { schema: schema_plan(version), roles: roles_plan(client, roles).await? })
}

fn schema_plan(version: i32) -> String {
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

/// What an operator runs who makes roles by hand.
pub async fn roles_plan(client: &Connection, roles: &Roles) -> Result<String, PgError> {
    let missing = missing_roles(client, roles).await?;
    let created = missing.iter().map(|role| create_role(role) + ";\n").collect::<String>();
    Ok(created + &grants(roles))
}

fn create_role(role: &str) -> String {
    format!("create role {} nologin", quote(role))
}

fn grants(roles: &Roles) -> String {
    let names: BTreeMap<&str, String> = named(roles).map(|(role, place)| (place, quote(role))).into();
    names.iter().fold(ROLES.to_owned(), |sql, (place, name)| sql.replace(place, name))
}

/// The configured names, and their places in `ROLES`.
pub(super) fn named(roles: &Roles) -> [(&str, &'static str); 4] {
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
