//! The server: its settings, its sessions, and what keeps its vacuum from working.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::{Finding, age};

/// Connections of a producer: the relay's lanes, the keeper of its leases, the heartbeat, the jobs, the census, HTTP.
const PRODUCER_CONNECTIONS: i64 = 10;

/// Connections of a consumer besides its groups' pools: the heartbeat, the jobs, the census, orders, HTTP.
const CONSUMER_CONNECTIONS: i64 = 5;

/// A statement of the relay reads a whole window: a shorter limit would end it again and again.
const SHORTEST_LIMIT: Duration = Duration::from_secs(60);

/// Postgres refuses writes near 2 thousand million.
const OLD_XIDS: i64 = 1_200_000_000;

/// Clocks that differ by more make times of one message disagree, and ids of foreign messages.
const SKEW: TimeDelta = TimeDelta::seconds(2);

/// A slot may keep so much WAL without being a worry.
const RETAINED: i64 = 4 << 30;

/// Dead rows below this are no worry.
const DEAD_ROWS: i64 = 100_000;

/// An index below this is no worry, however much of it is air.
const SMALL_INDEX: i64 = 16 << 20;

/// How many times its expected size makes an index bloated.
const BLOATED: i64 = 3;

/// The server's settings as a new session of this user gets them.
pub type Settings = BTreeMap<String, String>;

/// The server, and this user's place in it.
#[derive(Clone, Debug)]
pub struct Server {
    pub user: String,
    pub in_recovery: bool,
    /// Of the oldest transaction id in this database.
    pub xid_age: i64,
    /// Of all databases.
    pub sessions: i64,
    /// How many of these are outboxd's.
    pub own_sessions: i64,
    /// The lower of what the role and the database allow.
    pub connection_limit: Option<i64>,
    /// False: what others do is hidden from this user.
    pub sees_others: bool,
}

/// The settings that hurt.
pub fn settings(settings: &Settings, user: &str) -> Vec<Finding> {
    let is = |name: &str, value: &str| settings.get(name).is_some_and(|found| found == value);
    let on = |name: &str| format!("alter system set {name} = on; select pg_reload_conf();");
    let mut found = Vec::new();
    if is("fsync", "off") {
        found.push(Finding::new(
            "fsync is off: a crash of the server's machine can lose committed messages and corrupt the database",
            on("fsync"),
        ));
    }
    if is("full_page_writes", "off") {
        found.push(Finding::new(
            "full_page_writes is off: a crash in the middle of a write can corrupt the database",
            on("full_page_writes"),
        ));
    }
    if is("synchronous_commit", "off") {
        found.push(Finding::new(
            format!(
                "synchronous_commit is off for {user}: after a crash, what was committed last is gone. outboxd's own writes \
                 are durable all the same; those of applications with this setting, and their messages, are not"
            ),
            "alter system set synchronous_commit = on; select pg_reload_conf(); or set it back for the role or the database",
        ));
    }
    for name in ["autovacuum", "track_counts"] {
        if is(name, "off") {
            found.push(Finding::new(
                format!(
                    "{name} is off: nothing vacuums or analyzes by itself, and cursors and keys slow down"
                ),
                on(name),
            ));
        }
    }
    if is("default_transaction_read_only", "on") {
        found.push(Finding::new(
            format!("default_transaction_read_only is on for {user}: no daemon can write"),
            format!("alter role \"{user}\" set default_transaction_read_only = off"),
        ));
    }
    for name in ["statement_timeout", "transaction_timeout"] {
        let limit = settings.get(name).and_then(|text| text.parse().ok()).map(Duration::from_millis);
        if let Some(limit) = limit.filter(|limit| !limit.is_zero() && *limit < SHORTEST_LIMIT) {
            found.push(Finding::new(
                format!(
                    "{name} is {} for {user}: reading a large window or a backlog takes longer, and is cut off and begun anew",
                    humantime::format_duration(limit)
                ),
                format!("alter role \"{user}\" set {name} = 0"),
            ));
        }
    }
    found
}

/// What this file asks for of connections: a producer, and a consumer of all its groups.
pub fn connections(server: &Server, settings: &Settings, groups: usize, pool_size: usize) -> Vec<Finding> {
    let number = |name: &str| settings.get(name).and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
    let pools = i64::try_from(groups * pool_size).unwrap_or(i64::MAX / 2);
    let consumer = if groups == 0 { 0 } else { pools + CONSUMER_CONNECTIONS };
    let wanted = PRODUCER_CONNECTIONS + consumer;
    let of_all = number("max_connections")
        - number("superuser_reserved_connections")
        - number("reserved_connections")
        - (server.sessions - server.own_sessions);
    let left = server.connection_limit.map_or(of_all, |limit| limit.min(of_all));
    if left >= wanted {
        return Vec::new();
    }
    let limited =
        if left < of_all { "the connection limit of the role or the database" } else { "max_connections" };
    vec![Finding::new(
        format!(
            "{limited} leaves {} connections for outboxd; a producer and a consumer of the {groups} groups in this file may \
             open {wanted}",
            left.max(0)
        ),
        format!("raise {limited}, or lower `[postgres] pool_size` (now {pool_size}, per group)"),
    )]
}

/// Is it the server that writes, and will it go on?
pub fn standing(server: &Server) -> Vec<Finding> {
    let mut found = Vec::new();
    if server.in_recovery {
        found.push(Finding::new(
            "this server is a standby: nothing can be published from it",
            "name all hosts in `[postgres] url` and add target_session_attrs=read-write",
        ));
    }
    if server.xid_age > OLD_XIDS {
        found.push(Finding::new(
            format!(
                "the oldest transaction id of this database is {} million transactions old: Postgres stops taking writes at \
                 two thousand million",
                server.xid_age / 1_000_000
            ),
            "find what holds vacuum (see the check `vacuum`), then: vacuum (freeze)",
        ));
    }
    found
}

/// `server`: its clock, read between the two times of ours.
pub fn clocks(before: DateTime<Utc>, server: DateTime<Utc>, after: DateTime<Utc>) -> Vec<Finding> {
    let (behind, ahead) = (before - server, server - after);
    let (skew, side) = if ahead > behind { (ahead, "ahead of") } else { (behind, "behind") };
    if skew <= SKEW {
        return Vec::new();
    }
    vec![Finding::new(
        format!(
            "Postgres' clock is {} {side} this machine's: times of one message disagree, and `deliver_after` comes early or late",
            age(skew.as_seconds_f64())
        ),
        "synchronize both machines by NTP (timedatectl set-ntp true)",
    )]
}

/// What keeps vacuum from removing dead rows, or the server from removing WAL.
#[derive(Clone, Debug)]
pub enum Holder {
    Session { pid: i32, user: String, application: String, state: String, age_seconds: f64 },
    Prepared { gid: String, owner: String, age_seconds: f64 },
    Slot { name: String, active: bool, holds_rows: bool, retained_bytes: i64 },
}

/// A table or an index, as far as vacuum is concerned.
#[derive(Clone, Debug)]
pub struct Relation {
    pub name: String,
    pub live_rows: i64,
    pub dead_rows: i64,
}

pub fn vacuum(holders: &[Holder], tables: &[Relation]) -> Vec<Finding> {
    let mut found: Vec<Finding> = holders.iter().filter_map(held).collect();
    for table in tables.iter().filter(|table| table.dead_rows > DEAD_ROWS.max(table.live_rows)) {
        found.push(Finding::new(
            format!("{} has {} dead rows and {} live ones", table.name, table.dead_rows, table.live_rows),
            format!("vacuum {}; and see what holds it", table.name),
        ));
    }
    found
}

fn held(holder: &Holder) -> Option<Finding> {
    match holder {
        Holder::Session { pid, user, application, state, age_seconds } => {
            let (open_for, is_idle) = (age(*age_seconds), state.starts_with("idle in transaction"));
            let who = if application.is_empty() { String::new() } else { format!(", {application}") };
            let doing = if is_idle { "has been idle in a transaction" } else { "has had a transaction open" };
            Some(Finding::new(
                format!(
                    "session {pid} ({user}{who}) {doing} for {open_for}: vacuum removes nothing that died since, and what it wrote is \
                     published only when it commits"
                ),
                if is_idle {
                    format!(
                        "select pg_terminate_backend({pid}); and set idle_in_transaction_session_timeout for the role {user}"
                    )
                } else {
                    format!("let it end, or: select pg_terminate_backend({pid});")
                },
            ))
        }
        Holder::Prepared { gid, owner, age_seconds } => Some(Finding::new(
            format!(
                "the prepared transaction '{gid}' of {owner} has been waiting for {}: vacuum removes nothing that died since",
                age(*age_seconds)
            ),
            format!("commit prepared '{gid}'; or: rollback prepared '{gid}'; as its owner knows"),
        )),
        Holder::Slot { name, active, holds_rows, retained_bytes } => {
            if *active && *retained_bytes < RETAINED {
                return None;
            }
            let (mib, rows) = (retained_bytes >> 20, if *holds_rows { " and dead rows" } else { "" });
            let whose = if *active { "is read slowly" } else { "has no reader" };
            Some(Finding::new(
                format!("the replication slot {name} {whose}: it keeps {mib} MiB of WAL{rows}"),
                format!(
                    "start its reader, or, if there is none any more: select pg_drop_replication_slot('{name}'); and set \
                     max_slot_wal_keep_size"
                ),
            ))
        }
    }
}

/// An index of the schema.
#[derive(Clone, Debug)]
pub struct Index {
    pub name: String,
    pub is_valid: bool,
    pub bytes: i64,
    /// Of so many entries, by the statistics. `None`: they say nothing yet.
    pub expected_bytes: Option<i64>,
}

pub fn indexes(indexes: &[Index]) -> Vec<Finding> {
    indexes
        .iter()
        .filter_map(|Index { name, is_valid, bytes, expected_bytes }| {
            let rebuild = format!("reindex index concurrently {name}");
            if !is_valid {
                let what = format!("the index {name} is not valid: it is written and never read");
                return Some(Finding::new(what, rebuild));
            }
            let expected = (*expected_bytes)?;
            (*bytes >= SMALL_INDEX && *bytes / BLOATED > expected).then(|| {
                let (mib, expected) = (bytes >> 20, (expected >> 20).max(1));
                let what = format!("the index {name} has {mib} MiB, and its entries need about {expected}");
                Finding::new(what, rebuild)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> Server {
        Server {
            user: "outboxd".into(),
            in_recovery: false,
            xid_age: 1_000,
            sessions: 20,
            own_sessions: 10,
            connection_limit: None,
            sees_others: true,
        }
    }

    fn with(name: &str, value: &str) -> Settings {
        let sound = [
            ("fsync", "on"),
            ("full_page_writes", "on"),
            ("synchronous_commit", "on"),
            ("autovacuum", "on"),
            ("track_counts", "on"),
            ("default_transaction_read_only", "off"),
            ("statement_timeout", "0"),
            ("max_connections", "100"),
            ("superuser_reserved_connections", "3"),
        ];
        let mut settings: Settings = sound.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        settings.insert(name.to_owned(), value.to_owned());
        settings
    }

    #[test]
    fn each_setting_that_hurts_is_found_and_no_other() {
        assert_eq!(settings(&with("fsync", "on"), "outboxd"), []);
        for (name, value) in [
            ("fsync", "off"),
            ("full_page_writes", "off"),
            ("synchronous_commit", "off"),
            ("autovacuum", "off"),
            ("track_counts", "off"),
            ("default_transaction_read_only", "on"),
            ("statement_timeout", "5000"),
            ("transaction_timeout", "5000"),
        ] {
            let found = settings(&with(name, value), "outboxd");
            assert_eq!(found.len(), 1, "{name}: {found:?}");
            assert!(found[0].what.contains(name) && found[0].fix.contains(name), "{found:?}");
        }
        for value in ["local", "remote_write", "remote_apply"] {
            assert_eq!(settings(&with("synchronous_commit", value), "outboxd"), []);
        }
        assert_eq!(settings(&with("statement_timeout", "120000"), "outboxd"), []);
    }

    #[test]
    fn what_a_file_may_open_is_held_against_what_is_left() {
        let sound = with("fsync", "on");
        // 100 - 3 - 10 of others = 87; 10 for a producer, 3 and 8 for each group.
        assert_eq!(connections(&server(), &sound, 9, 8), []);
        assert_eq!(connections(&server(), &sound, 10, 8).len(), 1);
        assert_eq!(connections(&server(), &sound, 0, 200), []);
        let limited = Server { connection_limit: Some(9), ..server() };
        assert!(connections(&limited, &sound, 0, 8)[0].what.contains("role or the database"));
    }

    #[test]
    fn a_clock_is_wrong_only_beyond_the_time_that_the_question_took() {
        let at = |millis: i64| DateTime::from_timestamp_millis(1_700_000_000_000 + millis).unwrap();
        assert_eq!(clocks(at(0), at(5), at(10)), []);
        assert_eq!(clocks(at(0), at(-1_900), at(10)), []);
        assert_eq!(clocks(at(0), at(11_000), at(10_000)), []);
        assert!(clocks(at(0), at(-3_600_000), at(10))[0].what.contains("1h behind"));
        assert!(clocks(at(0), at(62_000), at(1_000))[0].what.contains("1m 1s ahead of"));
    }

    #[test]
    fn an_index_is_bloated_by_what_its_entries_need() {
        let index = |bytes, expected_bytes| Index { name: "i".into(), is_valid: true, bytes, expected_bytes };
        assert_eq!(indexes(&[index(SMALL_INDEX - 1, Some(0)), index(1 << 30, None)]), []);
        assert_eq!(indexes(&[index(300 << 20, Some(100 << 20))]), []);
        assert_eq!(indexes(&[index(301 << 20, Some(99 << 20))]).len(), 1);
        let broken = Index { is_valid: false, ..index(0, None) };
        assert!(indexes(&[broken])[0].fix.contains("reindex index concurrently i"));
    }

    #[test]
    fn a_slot_that_is_read_is_none_of_our_business_unless_it_falls_far_behind() {
        let slot = |active, retained_bytes| Holder::Slot {
            name: "s".into(),
            active,
            holds_rows: true,
            retained_bytes,
        };
        assert_eq!(vacuum(&[slot(true, 1 << 20)], &[]), []);
        assert_eq!(vacuum(&[slot(true, 8 << 30), slot(false, 0)], &[]).len(), 2);
        let table = |live_rows, dead_rows| Relation { name: "t".into(), live_rows, dead_rows };
        assert_eq!(vacuum(&[], &[table(0, 90_000), table(300_000, 200_000)]), []);
        assert_eq!(vacuum(&[], &[table(10, 200_000)]).len(), 1);
    }
}
