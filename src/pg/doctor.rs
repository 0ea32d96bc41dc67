//! What `outboxd doctor` asks the database. Bounded reads, as all that looks; what follows from them is judged in `domain`.

pub mod rights;

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::connect::{Connection, PgError};
use super::leaves;
use super::sql::{millis, statements};
use crate::domain::doctor::fleet::Group;
use crate::domain::doctor::outbox::{Aside, DeadLetters, Partitions, Sequence};
use crate::domain::doctor::postgres::{Holder, Index, Relation, Server, Settings};
use crate::domain::leaves::Rate;

statements! {
    NOW = "select clock_timestamp()";

    /// What a new session of this user would have: this one has set some for itself.
    SETTINGS = "
        select name, reset_val from pg_settings where name in ('fsync', 'full_page_writes', 'synchronous_commit',
          'autovacuum', 'track_counts', 'default_transaction_read_only', 'statement_timeout', 'transaction_timeout',
          'max_connections', 'superuser_reserved_connections', 'reserved_connections')";

    SERVER = "
        select r.rolname::text, pg_is_in_recovery(), age(d.datfrozenxid)::bigint,
          (select sum(numbackends)::bigint from pg_stat_database),
          (select count(*) from pg_stat_activity where application_name like 'outboxd/%'),
          least(nullif(d.datconnlimit, -1), nullif(r.rolconnlimit, -1))::bigint,
          pg_has_role(current_user, 'pg_read_all_stats', 'usage')
        from pg_database d, pg_roles r where d.datname = current_database() and r.rolname = current_user";

    SESSIONS = "
        select pid, coalesce(usename, '')::text, coalesce(application_name, ''), coalesce(state, ''),
          extract(epoch from clock_timestamp() - xact_start)::float8
        from pg_stat_activity
        where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()
          and xact_start < clock_timestamp() - $1::bigint * interval '1 ms'
        order by xact_start limit 20";

    PREPARED = "
        select gid, owner::text, extract(epoch from clock_timestamp() - prepared)::float8 from pg_prepared_xacts
        where database = current_database() and prepared < clock_timestamp() - $1::bigint * interval '1 ms'
        order by prepared limit 20";

    SLOTS = "
        select slot_name::text, active, coalesce(xmin, catalog_xmin) is not null,
          coalesce(case when not pg_is_in_recovery() then pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) end, 0)::bigint
        from pg_replication_slots order by slot_name limit 20";

    TABLES = "
        select relid::regclass::text, n_live_tup, n_dead_tup from pg_stat_all_tables where schemaname = 'outboxd'";

    /// An entry takes its columns and 16 bytes, and a page is nine tenths full.
    INDEXES = "
        select i.indexrelid::regclass::text, i.indisvalid, pg_relation_size(i.indexrelid),
          case when greatest(c.reltuples, s.n_live_tup) >= 0
            then (greatest(c.reltuples, s.n_live_tup) * (16 + coalesce(columns.width, 16)) / 0.9)::bigint end
        from pg_index i
        join pg_class c on c.oid = i.indexrelid
        join pg_class t on t.oid = i.indrelid
        left join pg_stat_all_tables s on s.relid = t.oid
        left join lateral (
          select sum(w.avg_width) as width from pg_attribute a
          join pg_stats w on w.schemaname = 'outboxd' and w.tablename = t.relname and w.attname = a.attname
          where a.attrelid = t.oid and a.attnum = any(i.indkey)) columns on true
        where t.relnamespace = 'outboxd'::regnamespace and c.relkind = 'i' order by 1";

    SAME_CLUSTER = "select o.system_identifier = c.system_identifier from outboxd.outbox o, pg_control_system() c";

    SEQUENCE = "
        select coalesce(pg_sequence_last_value('outboxd.messages_seq'), 0), s.cache_size, s.increment_by,
          coalesce((
            select max(newest.seq) from (values (-1::smallint), (0::smallint), (1::smallint)) as lanes (priority)
            cross join lateral (select seq from outboxd.messages m
              where m.priority = lanes.priority order by m.seq desc limit 1) newest), 0),
          (select max(floor) from outboxd.lanes)
        from pg_sequences s where s.schemaname = 'outboxd' and s.sequencename = 'messages_seq'";

    PARTITIONS = "
        select exists (select from only outboxd.messages_default), per_day, peak_per_day from outboxd.insert_rate";

    ASIDE = "
        select state, topic, max(reason), count(*) from (
          select state, topic, reason from outboxd.set_aside where state in ('parked', 'held') limit $1) bounded
        group by state, topic order by state desc, count(*) desc limit 20";

    DEAD = "
        select consumer_group, count(*) from (
          select consumer_group from outboxd.failures where state = 'dead' limit $1) bounded
        group by consumer_group order by consumer_group";

    RETRIES_DUE = "
        select count(*) from (
          select from outboxd.failures where state = 'due' and next_attempt_at < clock_timestamp() - interval '1 minute'
          limit $1) bounded";

    ORDERS = "
        select name, paused_by, case when breaker_until > clock_timestamp() then coalesce(breaker_reason, 'no reason given') end
        from outboxd.groups where paused_at is not null or breaker_until > clock_timestamp()";

    /// Those that were published to lately, and those with messages that left the line.
    TOPICS = "
        select distinct split_part(place.name, '/', 1) from (
          select offsets from outboxd.publications order by ended_at desc limit 200) recent
        cross join lateral jsonb_object_keys(recent.offsets) as place (name)
        union
        select topic from (select topic from outboxd.set_aside limit $1) aside
        order by 1 limit 200";
}

/// Where counting ends.
pub const LIMIT: i64 = 10_000;

pub async fn now(client: &Connection) -> Result<DateTime<Utc>, PgError> {
    Ok(client.query_one(NOW, &[]).await?.get(0))
}

pub async fn settings(client: &Connection) -> Result<Settings, PgError> {
    let rows = client.query(SETTINGS, &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

pub async fn server(client: &Connection) -> Result<Server, PgError> {
    let row = client.query_one(SERVER, &[]).await?;
    Ok(Server {
        user: row.get(0),
        in_recovery: row.get(1),
        xid_age: row.get(2),
        sessions: row.get(3),
        own_sessions: row.get(4),
        connection_limit: row.get(5),
        sees_others: row.get(6),
    })
}

/// Transactions that are open for longer than `long`, and all replication slots.
pub async fn holders(client: &Connection, long: Duration) -> Result<Vec<Holder>, PgError> {
    let long = millis(long);
    let sessions = client.query(SESSIONS, &[&long]).await?;
    let prepared = client.query(PREPARED, &[&long]).await?;
    let slots = client.query(SLOTS, &[]).await?;
    let sessions = sessions.iter().map(|row| Holder::Session {
        pid: row.get(0),
        user: row.get(1),
        application: row.get(2),
        state: row.get(3),
        age_seconds: row.get(4),
    });
    let prepared = prepared.iter().map(|row| Holder::Prepared {
        gid: row.get(0),
        owner: row.get(1),
        age_seconds: row.get(2),
    });
    let slots = slots.iter().map(|row| Holder::Slot {
        name: row.get(0),
        active: row.get(1),
        holds_rows: row.get(2),
        retained_bytes: row.get(3),
    });
    Ok(sessions.chain(prepared).chain(slots).collect())
}

pub async fn tables(client: &Connection) -> Result<Vec<Relation>, PgError> {
    let rows = client.query(TABLES, &[]).await?;
    let relation = |row: &tokio_postgres::Row| Relation {
        name: row.get(0),
        live_rows: row.get(1),
        dead_rows: row.get(2),
    };
    Ok(rows.iter().map(relation).collect())
}

pub async fn indexes(client: &Connection) -> Result<Vec<Index>, PgError> {
    let rows = client.query(INDEXES, &[]).await?;
    let index = |row: &tokio_postgres::Row| Index {
        name: row.get(0),
        is_valid: row.get(1),
        bytes: row.get(2),
        expected_bytes: row.get(3),
    };
    Ok(rows.iter().map(index).collect())
}

/// The sequence, and whether the cursors are of this cluster.
pub async fn sequence(client: &Connection) -> Result<(Sequence, bool), PgError> {
    let same_cluster = client.query_one(SAME_CLUSTER, &[]).await?.get(0);
    let row = client.query_one(SEQUENCE, &[]).await?;
    let sequence = Sequence {
        last: row.get(0),
        cache: row.get(1),
        increment: row.get(2),
        highest: row.get(3),
        floor: row.get::<_, Option<i64>>(4).unwrap_or(0),
    };
    Ok((sequence, same_cluster))
}

/// With the sequence's last value.
pub async fn partitions(client: &Connection) -> Result<(Partitions, i64), PgError> {
    let row = client.query_one(PARTITIONS, &[]).await?;
    let leaves = leaves::leaves(client).await?.iter().map(|found| found.leaf).collect();
    let partitions = Partitions {
        leaves,
        rate: Rate { per_day: row.get(1), peak_per_day: row.get(2) },
        default_has_rows: row.get(0),
    };
    Ok((partitions, leaves::sequence(client).await?.last_seq))
}

pub async fn aside(client: &Connection) -> Result<Vec<Aside>, PgError> {
    let rows = client.query(ASIDE, &[&LIMIT]).await?;
    let aside = |row: &tokio_postgres::Row| Aside {
        state: row.get(0),
        topic: row.get(1),
        reason: row.get(2),
        messages: row.get(3),
    };
    Ok(rows.iter().map(aside).collect())
}

pub async fn dead_letters(client: &Connection) -> Result<Vec<DeadLetters>, PgError> {
    let rows = client.query(DEAD, &[&LIMIT]).await?;
    Ok(rows.iter().map(|row| DeadLetters { group: row.get(0), messages: row.get(1) }).collect())
}

/// Retries that should have been sent a minute ago.
pub async fn retries_due(client: &Connection) -> Result<i64, PgError> {
    Ok(client.query_one(RETRIES_DUE, &[&LIMIT]).await?.get(0))
}

/// Groups that an operator or a breaker stopped: only their names and why.
pub async fn stopped_groups(client: &Connection) -> Result<Vec<Group>, PgError> {
    let rows = client.query(ORDERS, &[]).await?;
    let stopped = |row: &tokio_postgres::Row| Group {
        name: row.get(0),
        paused_by: row.get(1),
        breaker: row.get(2),
        ..Group::default()
    };
    Ok(rows.iter().map(stopped).collect())
}

/// Topics that the outbox had to do with lately.
pub async fn topics(client: &Connection) -> Result<Vec<String>, PgError> {
    Ok(client.query(TOPICS, &[&LIMIT]).await?.iter().map(|row| row.get(0)).collect())
}
