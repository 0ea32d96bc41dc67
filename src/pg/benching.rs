//! What `outboxd bench` asks of a server: a database of its own, backlogs in it, and how the server is set.

use std::pin::pin;

use serde::Serialize;
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row, Statement};

use super::connect::{Connection, PgError};
use super::sql::statements;

statements! {
    FILL = "copy outboxd.messages (topic, key, payload) from stdin (format binary)";

    /// The lanes of an outbox that never published anything.
    FORGET_LANES = "delete from outboxd.lanes";
    NEW_LANES = "insert into outboxd.lanes (priority) values (-1), (0), (1)";
    FORGET_PUBLICATIONS = "delete from outboxd.publications";

    /// What the relay reads of each row, and nothing to choose it by.
    READ = "
        select seq, id, topic, key, payload, headers, type, idempotency_key, deliver_after is not null, created_at
        from outboxd.messages where priority = 0 and seq > $1 order by seq limit $2";

    INSERT = "insert into outboxd.messages (topic, key, payload) values ($1, $2, $3)";

    /// The same columns, defaults, constraints and indexes, and nobody who publishes it.
    PLAIN_TABLE = "create table if not exists public.plain_messages (like outboxd.messages including all)";
    INSERT_PLAIN = "insert into public.plain_messages (topic, key, payload) values ($1, $2, $3)";

    LANES_OWNED = "select count(*) from outboxd.lanes where owner is not null";

    /// The process that owns a lane; an agent that was killed may have had the same name.
    LANE_OWNERS = "
        select distinct on (l.priority) l.priority, a.pid
        from outboxd.lanes l join outboxd.agents a on a.name = l.agent
        where l.owner is not null order by l.priority, a.last_heartbeat_at desc";

    /// Sessions that wait for a lock of another. Growing a file is Postgres's own affair.
    WAITING = "
        select count(*) from pg_locks where not granted and locktype <> 'extend' and pid = any($1)";

    SESSIONS = "
        select pid from pg_stat_activity
        where datname = current_database() and application_name like 'outboxd/producer/%'";

    /// All evidence; and what was written after the first tenth up to the end of the ninth, in how many seconds. Whatever
    /// is completed together has one time, so that a part begins and ends with a completion.
    HANDLED = "
        with evidence as materialized (
          select handled_at, cume_dist() over (order by handled_at) as place from outboxd.handled where consumer_group = $1
        ), measured as (
          select min(handled_at) filter (where place >= 0.1) as since, min(handled_at) filter (where place >= 0.9) as until
          from evidence
        )
        select count(*), count(*) filter (where handled_at > since and handled_at <= until),
          coalesce(extract(epoch from max(until) - max(since)), 0)::double precision
        from evidence cross join measured";

    /// An operation of its own for each message.
    GIVE_KEYS = "update outboxd.messages set idempotency_key = 'order-' || seq";

    /// The day's leaves of the evidence, as the job `partitions` would have made them.
    MAKE_DAY = "
        select outboxd.make_evidence_leaf(hour, hour + interval '2 hours')
        from generate_series(date_bin('2 hours', now(), 'epoch'::timestamptz) - interval '22 hours',
          date_bin('2 hours', now(), 'epoch'::timestamptz), interval '2 hours') as hour";

    /// Of a group that handled so much in the last 22 hours.
    FILL_EVIDENCE = "
        insert into outboxd.handled (consumer_group, message_id, topic, partition, \"offset\", agent, attempt)
        select 'before', outboxd.message_id(now() - interval '22 hours' * (1 - i / $3::double precision), i), 'before',
          (i % 8)::integer, i / 8, 'before', 1
        from generate_series($1::bigint, $2::bigint) as i";

    FILL_OPERATIONS = "
        insert into outboxd.idempotency_keys
          (consumer_group, namespace, key, message_id, payload_hash, state, owner, done_at)
        select 'before', 'key', md5(i::text), gen_random_uuid(), i, 'done', gen_random_uuid(), now()
        from generate_series($1::bigint, $2::bigint) as i";

    /// Of this database so far.
    TRANSACTIONS = "
        select xact_commit + xact_rollback from pg_stat_database where datname = current_database()";

    FINISHED = "select coalesce(sum(next_offset), 0)::bigint from outboxd.group_positions where consumer_group = $1";

    TAG = "select tag_high, tag_low from outboxd.outbox";

    SERVER = "
        select current_setting('server_version'), current_setting('fsync'), current_setting('synchronous_commit'),
          current_setting('shared_buffers')";

    /// What an idle relay asks.
    SNAPSHOT = "select pg_current_snapshot()::text";

    BACKEND = "select pg_backend_pid(), current_database()::text";
}

/// How the server is set, where that changes what is measured.
#[derive(Clone, Debug, Serialize)]
pub struct Server {
    pub version: String,
    pub fsync: String,
    pub synchronous_commit: String,
    pub shared_buffers: String,
}

/// Asks the server how it is set.
pub async fn server(client: &Client) -> Result<Server, PgError> {
    let row = client.query_one(SERVER, &[]).await?;
    Ok(Server {
        version: row.get(0),
        fsync: row.get(1),
        synchronous_commit: row.get(2),
        shared_buffers: row.get(3),
    })
}

/// The process that serves this connection, and its database.
pub async fn backend(client: &Client) -> Result<(i32, String), PgError> {
    let row = client.query_one(BACKEND, &[]).await?;
    Ok((row.get(0), row.get(1)))
}

/// Asks what an idle relay asks, prepared as there.
pub async fn snapshot(client: &Connection) -> Result<String, PgError> {
    Ok(client.query_one(&client.prepare_once(SNAPSHOT).await?, &[]).await?.get(0))
}

/// Makes a database. `name` is ours, of letters, digits and underscores.
pub async fn create_database(client: &Client, name: &str) -> Result<(), PgError> {
    match client.batch_execute(&format!("create database {name} template template0")).await {
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Err(PgError::Setup(
            "the benchmark works in a database of its own, never in your outbox, and this user may not make one: \
             `alter role ... createdb` lets it"
                .into(),
        )),
        made => Ok(made?),
    }
}

/// Drops a database that `create_database` made, with whoever is still in it.
pub async fn drop_database(client: &Client, name: &str) -> Result<(), PgError> {
    Ok(client.batch_execute(&format!("drop database if exists {name} with (force)")).await?)
}

/// Inserts messages into the outbox, in order, in one transaction.
pub async fn fill(
    client: &Client,
    topic: &str,
    messages: impl Iterator<Item = (String, Vec<u8>)>,
) -> Result<(), PgError> {
    let sink = client.copy_in(FILL).await?;
    let mut writer = pin!(BinaryCopyInWriter::new(sink, &[Type::TEXT, Type::TEXT, Type::BYTEA]));
    for (key, payload) in messages {
        writer.as_mut().write(&[&topic, &key, &payload]).await?;
    }
    writer.finish().await?;
    Ok(())
}

/// Which table single rows are inserted into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    Outbox,
    /// Shaped like it, and nobody's.
    Plain,
}

/// Makes the table that nobody publishes.
pub async fn make_plain_table(client: &Client) -> Result<(), PgError> {
    Ok(client.batch_execute(PLAIN_TABLE).await?)
}

/// The insert of one message: topic, key, payload.
pub async fn prepare_insert(client: &Client, table: Table) -> Result<Statement, PgError> {
    let sql = if table == Table::Outbox { INSERT } else { INSERT_PLAIN };
    Ok(client.prepare(sql).await?)
}

/// How many lanes have an owner.
pub async fn lanes_owned(client: &Client) -> Result<i64, PgError> {
    Ok(client.query_one(LANES_OWNED, &[]).await?.get(0))
}

/// The owned lanes, by priority, with the process that owns them.
pub async fn lane_owners(client: &Client) -> Result<Vec<(i16, i32)>, PgError> {
    Ok(client.query(LANE_OWNERS, &[]).await?.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// How many of these sessions wait for a lock.
pub async fn waiting(client: &Client, sessions: &[i32]) -> Result<i64, PgError> {
    Ok(client.query_one(WAITING, &[&sessions]).await?.get(0))
}

/// The processes that serve this database's producer.
pub async fn sessions(client: &Client) -> Result<Vec<i32>, PgError> {
    Ok(client.query(SESSIONS, &[]).await?.iter().map(|row| row.get(0)).collect())
}

/// Gives every message an idempotency key of its own.
pub async fn give_keys(client: &Client) -> Result<(), PgError> {
    client.execute(GIVE_KEYS, &[]).await?;
    Ok(())
}

/// Makes leaves of the evidence for the day until now.
pub async fn make_day(client: &Client) -> Result<(), PgError> {
    client.execute(MAKE_DAY, &[]).await?;
    Ok(())
}

/// Evidence of those of `all` messages, one after the other over the day.
pub async fn fill_evidence(client: &Client, first: i64, last: i64, all: i64) -> Result<(), PgError> {
    #[allow(clippy::cast_precision_loss, reason = "counts of a benchmark")]
    let all = all as f64;
    client.execute(FILL_EVIDENCE, &[&first, &last, &all]).await?;
    Ok(())
}

/// Finished operations with those numbers, in no order of their keys.
pub async fn fill_operations(client: &Client, first: i64, last: i64) -> Result<(), PgError> {
    client.execute(FILL_OPERATIONS, &[&first, &last]).await?;
    Ok(())
}

/// As `settle`, for what groups have done.
pub async fn settle_evidence(client: &Client) -> Result<(), PgError> {
    Ok(client.batch_execute("vacuum (analyze) outboxd.handled, outboxd.idempotency_keys").await?)
}

/// How many transactions this database has seen; a session tells its own about once a second.
pub async fn transactions(client: &Client) -> Result<i64, PgError> {
    Ok(client.query_one(TRANSACTIONS, &[]).await?.get(0))
}

/// How many records a group has finished.
pub async fn finished(client: &Client, group: &str) -> Result<i64, PgError> {
    Ok(client.query_one(FINISHED, &[&group]).await?.get(0))
}

/// What a group handled.
#[derive(Clone, Copy, Debug)]
pub struct Handled {
    pub messages: i64,
    /// Of these, the ones between the first and the last tenth,
    pub measured: i64,
    /// and how long they took, by the database's clock; 0 if all was completed at once.
    pub seconds: f64,
}

pub async fn handled(client: &Client, group: &str) -> Result<Handled, PgError> {
    let row = client.query_one(HANDLED, &[&group]).await?;
    Ok(Handled { messages: row.get(0), measured: row.get(1), seconds: row.get(2) })
}

/// Begins a transaction that has written to the outbox, and leaves it open.
pub async fn hold_transaction(client: &Client, topic: &str) -> Result<(), PgError> {
    client.batch_execute("begin").await?;
    client.execute(INSERT, &[&topic, &"held", &b"held".as_slice()]).await?;
    Ok(())
}

/// Begins a transaction that keeps looking at this moment's rows, and leaves it open.
pub async fn hold_snapshot(client: &Client) -> Result<(), PgError> {
    Ok(client
        .batch_execute("begin isolation level repeatable read; select count(*) from outboxd.lanes")
        .await?)
}

/// Leaves every row as a server that had nothing else to do would have it: seen by vacuum, and counted.
pub async fn settle(client: &Client) -> Result<(), PgError> {
    Ok(client.batch_execute("vacuum (analyze) outboxd.messages").await?)
}

/// Nothing counts as published any more. No producer may be at work.
pub async fn begin_again(client: &Client) -> Result<(), PgError> {
    let all = [FORGET_LANES, NEW_LANES, FORGET_PUBLICATIONS].join(";");
    Ok(client.batch_execute(&all).await?)
}

/// The plainest way to read the normal lane.
pub async fn prepare_read(client: &Client) -> Result<Statement, PgError> {
    Ok(client.prepare(READ).await?)
}

/// The next rows of the normal lane behind that `seq`.
pub async fn read(client: &Client, read: &Statement, after: i64, rows: i64) -> Result<Vec<Row>, PgError> {
    Ok(client.query(read, &[&after, &rows]).await?)
}

/// The outbox's tag, for the ids of its messages.
pub async fn tag(client: &Client) -> Result<(i32, i64), PgError> {
    let row = client.query_one(TAG, &[]).await?;
    Ok((row.get(0), row.get(1)))
}
