//! Lanes: who owns them, how far they are published, and the rows of their windows.
//!
//! Every write names lane, owner, epoch and window; one that hits no row means that the lane is not ours.

mod batch;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};
use uuid::Uuid;

use batch::ROW_OVERHEAD;
pub use batch::{Batch, Limit};

use super::connect::{Connection, PgError};
use super::sql::statements;
use crate::domain::cursor::{Cursor, FloorCandidate, Scan};
use crate::domain::identity::Tag;
use crate::domain::priority::Priority;
use crate::domain::snapshot::Snapshot;

statements! {
    /// `age()` answers with the next xid only in a statement of its own.
    NEXT_XID = "
        select (pg_snapshot_xmin(now)::text::bigint + age(pg_snapshot_xmin(now)::xid))::text
        from pg_current_snapshot() as now";

    /// `pg_sequence_last_value` locks the page; a plain select from the sequence can see up to 32 too many.
    LAST_SEQ = "select coalesce(pg_sequence_last_value('outboxd.messages_seq'), 0)";

    /// A snapshot, and per lane whether it shows rows beyond what is published or in the open window.
    ///
    /// Ordered and limited subselects leave the planner nothing but the two indexes, whatever it believes of the table.
    POLL = "
        select pg_current_snapshot()::text, pg_is_in_recovery(), l.priority,
          coalesce(
            (select true from outboxd.messages m
              where m.priority = l.priority and m.seq > l.floor
                and m.txid >= pg_snapshot_xmax(coalesce(l.target, l.done))
              order by m.seq limit 1),
            (select true from pg_snapshot_xip(coalesce(l.target, l.done)) as running (txid)
              cross join lateral (select from outboxd.messages m
                where m.txid = running.txid and m.priority = l.priority limit 1) straggler
              limit 1),
            false),
          exists (select from outboxd.set_aside a
            where a.priority = l.priority and a.state = 'scheduled' and a.due_at <= clock_timestamp())
        from outboxd.lanes l where l.owner = any($1)";

    IDENTITY = "
        select tag_high, tag_low, o.system_identifier = c.system_identifier, pg_is_in_recovery()
        from outboxd.outbox o, pg_control_system() c";

    ACQUIRE = "
        update outboxd.lanes set owner = $2, agent = $3, epoch = epoch + 1, \"window\" = \"window\" + 1,
          lease_expires_at = clock_timestamp() + $4::bigint * interval '1 ms'
        where outboxd.durable() and priority = $1
          and (owner is null or lease_expires_at is null or lease_expires_at < clock_timestamp() or owner = $5)
        returning epoch, \"window\", done::text, floor, candidate_floor, candidate_xid::text, target::text, published_seq";

    RENEW = "
        update outboxd.lanes set lease_expires_at = clock_timestamp() + $2::bigint * interval '1 ms'
        where owner = any($1)";

    RELEASE = "
        update outboxd.lanes set owner = null, agent = null, lease_expires_at = null, epoch = epoch + 1,
          \"window\" = \"window\" + 1
        where owner = any($1)";

    TURN = "
        update outboxd.lanes set done = $5::text::pg_snapshot, floor = $6, candidate_floor = $7,
          candidate_xid = $8::text::xid8, target = $9::text::pg_snapshot, published_seq = 0,
          top = greatest(top, coalesce(pg_sequence_last_value('outboxd.messages_seq'), 0)),
          \"window\" = \"window\" + 1, moved_at = clock_timestamp()
        where outboxd.durable() and priority = $1 and owner = $2 and epoch = $3 and \"window\" = $4";

    PROGRESS = "
        update outboxd.lanes set published_seq = greatest(published_seq, $5), moved_at = clock_timestamp()
        where outboxd.durable() and priority = $1 and owner = $2 and epoch = $3 and \"window\" = $4";

    /// One index-ordered scan of the primary key, cut by rows and by bytes. The casts stand in subselects, so that
    /// they are evaluated once and not per row.
    READ_MAIN = "
        select seq, id, topic, key, payload, headers, type, idempotency_key, deliver_after is not null, created_at from (
          select m.*, sum($6::bigint + coalesce(octet_length(m.payload), 0)) over (order by m.seq rows unbounded preceding)
            - coalesce(octet_length(m.payload), 0) as before
          from outboxd.messages m
          where m.priority = $1 and m.seq > $2 and m.txid >= (select $3::text::xid8)
            and pg_visible_in_snapshot(m.txid, (select $4::text::pg_snapshot))
          order by m.seq limit $5
        ) batch where before <= $7::bigint order by seq";

    /// By the index on txid: what was in progress at `done` and has ended by `target`.
    READ_STRAGGLERS = "
        select seq, id, topic, key, payload, headers, type, idempotency_key, deliver_after is not null, created_at from (
          select m.*, sum($6::bigint + coalesce(octet_length(m.payload), 0)) over (order by m.seq rows unbounded preceding)
            - coalesce(octet_length(m.payload), 0) as before
          from outboxd.messages m
          where m.priority = $1 and m.seq > $2 and m.txid = any($3::text[]::xid8[])
            and pg_visible_in_snapshot(m.txid, (select $4::text::pg_snapshot))
          order by m.seq limit $5
        ) batch where before <= $7::bigint order by seq";

    SET_ASIDE = "
        with fence as materialized (
          select priority from outboxd.lanes
          where outboxd.durable() and priority = $1 and owner = $2 and epoch = $3 and \"window\" = $4 for update
        ), copied as (
          insert into outboxd.set_aside (priority, seq, state, reason, due_at, id, topic, key, payload, headers, type,
            idempotency_key, retry, created_at)
          select m.priority, m.seq, item.state, item.reason, m.deliver_after, m.id, m.topic, m.key, m.payload,
            m.headers, m.type, m.idempotency_key, m.retry, m.created_at
          from fence, unnest($5::bigint[], $6::text[], $7::text[]) as item (seq, state, reason)
          join outboxd.messages m on m.priority = $1 and m.seq = item.seq
          on conflict (priority, seq) do nothing
        )
        select count(*) from fence";

    /// Which of these rows an earlier owner set aside.
    WHICH_ARE_ASIDE = "select seq from outboxd.set_aside where priority = $1 and seq = any($2)";

    HELD_TOPICS = "select topic, min(reason) from outboxd.set_aside where priority = $1 and state = 'held' group by topic";

    READ_HELD = "
        select seq, id, topic, key, payload, headers, type, idempotency_key, false, created_at from (
          select a.*, sum($3::bigint + coalesce(octet_length(a.payload), 0)) over (order by a.seq rows unbounded preceding)
            - coalesce(octet_length(a.payload), 0) as before
          from outboxd.set_aside a
          where a.priority = $1 and a.state = 'held' and a.topic = $5 order by a.seq limit $2
        ) batch where before <= $4::bigint order by seq";

    READ_DUE = "
        select seq, id, topic, key, payload, headers, type, idempotency_key, false, created_at from (
          select a.*, sum($3::bigint + coalesce(octet_length(a.payload), 0))
              over (order by a.due_at, a.seq rows unbounded preceding) - coalesce(octet_length(a.payload), 0) as before
          from outboxd.set_aside a
          where a.priority = $1 and a.state = 'scheduled' and a.due_at <= clock_timestamp()
          order by a.due_at, a.seq limit $2
        ) batch where before <= $4::bigint order by due_at, seq";

    FORGET_ASIDE = "
        with fence as materialized (
          select priority from outboxd.lanes
          where outboxd.durable() and priority = $1 and owner = $2 and epoch = $3 and \"window\" = $4 for update
        ), gone as (
          delete from outboxd.set_aside a using fence where a.priority = $1 and a.seq = any($5)
        )
        select count(*) from fence";

    CHANGE_STATE = "
        with fence as materialized (
          select priority from outboxd.lanes
          where outboxd.durable() and priority = $1 and owner = $2 and epoch = $3 and \"window\" = $4 for update
        ), changed as (
          update outboxd.set_aside a set state = item.state, reason = item.reason
          from fence, unnest($5::bigint[], $6::text[], $7::text[]) as item (seq, state, reason)
          where a.priority = $1 and a.seq = item.seq
        )
        select count(*) from fence";
}

/// Why a lane cannot be worked on.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    #[error(transparent)]
    Pg(#[from] PgError),
    /// Another owner has it, or the window is not the one we think: nothing of ours may be sent or written.
    #[error("the {0} lane is not ours any more")]
    Lost(Priority),
    #[error("{0}")]
    Unfit(String),
}

impl From<tokio_postgres::Error> for LaneError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Pg(error.into())
    }
}

/// A lane as its owner knows it: the fence that every write names, and the cursor.
#[derive(Clone, Debug)]
pub struct OwnedLane {
    pub priority: Priority,
    pub owner: Uuid,
    pub epoch: i64,
    pub window: i64,
    pub cursor: Cursor,
}

/// Why a row leaves the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Aside {
    Scheduled,
    Held(String),
    Parked(String),
}

impl Aside {
    fn columns(&self) -> (&'static str, Option<&str>) {
        match self {
            Self::Scheduled => ("scheduled", None),
            Self::Held(reason) => ("held", Some(reason)),
            Self::Parked(reason) => ("parked", Some(reason)),
        }
    }
}

/// What a poll saw of one lane.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub has_rows: bool,
    pub has_due: bool,
}

/// One poll of all owned lanes.
#[derive(Debug)]
pub struct Poll {
    pub candidate: FloorCandidate,
    pub snapshot: Snapshot,
    pub lanes: HashMap<Priority, Seen>,
}

/// The relay's own connection with its statements.
pub struct LaneStore {
    connection: Connection,
    statements: HashMap<&'static str, Statement>,
    tag: Tag,
}

impl LaneStore {
    /// Prepares a fresh connection, and refuses a database whose xids the cursors do not speak of.
    pub async fn open(connection: Connection) -> Result<Self, LaneError> {
        let row = connection.query_one(IDENTITY, &[]).await?;
        if row.get::<_, bool>(3) {
            return Err(LaneError::Unfit("this server is a standby: lanes move on a primary only".into()));
        }
        if !row.get::<_, bool>(2) {
            return Err(LaneError::Unfit(
                "this database cluster is not the one that the cursors were written in, and nothing is published until \
                 they are re-based on it: run `outboxd rebase --after restore`, or `--after upgrade` if pg_upgrade made it"
                    .into(),
            ));
        }
        let mut statements = HashMap::new();
        for (name, sql) in SQL {
            statements.insert(*name, connection.prepare(sql).await?);
        }
        Ok(Self { connection, statements, tag: Tag::new(row.get(0), row.get(1)) })
    }

    fn statement(&self, name: &'static str) -> &Statement {
        &self.statements[name]
    }

    /// Takes a lane that is free, whose lease has ended, or that was `mine` under an owner now given up.
    pub async fn acquire(
        &self,
        priority: Priority,
        agent: &str,
        lease: Duration,
        mine: Option<Uuid>,
    ) -> Result<Option<OwnedLane>, LaneError> {
        let owner = Uuid::new_v4();
        let number = priority.number();
        let millis = millis(lease);
        let warnings = self.connection.warnings();
        let row = self
            .connection
            .query_opt(self.statement("ACQUIRE"), &[&number, &owner, &agent, &millis, &mine])
            .await?;
        self.durable_since(warnings)?;
        row.map(|row| {
            let cursor = cursor(&row)?;
            Ok(OwnedLane { priority, owner, epoch: row.get(0), window: row.get(1), cursor })
        })
        .transpose()
    }

    /// The floor's pair, then the snapshot, then what it shows: three statements in this order, sent at once.
    pub async fn poll(&self, owners: &[Uuid]) -> Result<Poll, LaneError> {
        let (none, owned): (&[&(dyn ToSql + Sync)], &[&(dyn ToSql + Sync)]) = (&[], &[&owners]);
        let (last_seq, next_xid, rows) = tokio::try_join!(
            biased;
            self.connection.query_one(self.statement("LAST_SEQ"), none),
            self.connection.query_one(self.statement("NEXT_XID"), none),
            self.connection.query(self.statement("POLL"), owned),
        )?;
        let candidate = FloorCandidate { last_seq: last_seq.get(0), next_xid: number(next_xid.get(0))? };
        let mut snapshot = None;
        let mut lanes = HashMap::new();
        for row in &rows {
            if row.get::<_, bool>(1) {
                return Err(LaneError::Unfit("this server has become a standby".into()));
            }
            snapshot = Some(parse::<Snapshot>(row.get(0))?);
            lanes.insert(priority(row.get(2))?, Seen { has_rows: row.get(3), has_due: row.get(4) });
        }
        match snapshot {
            Some(snapshot) if rows.len() == owners.len() => Ok(Poll { candidate, snapshot, lanes }),
            _ => Err(lost_one_of(&lanes)),
        }
    }

    /// Writes the next state of the cursor, durably. Nothing of a window may be sent before this returns.
    pub async fn turn(&self, lane: &mut OwnedLane, next: Cursor) -> Result<(), LaneError> {
        let done = next.done.to_string();
        let target = next.target.as_ref().map(ToString::to_string);
        let candidate_floor = next.candidate.map(|pair| pair.last_seq);
        let candidate_xid = next.candidate.map(|pair| pair.next_xid.to_string());
        let fence = Fence::of(lane);
        self.write(
            "TURN",
            lane,
            &fence.with(&[&done, &next.floor, &candidate_floor, &candidate_xid, &target]),
        )
        .await?;
        lane.window += 1;
        lane.cursor = next;
        Ok(())
    }

    /// Rows of the open window up to `seq` are published.
    pub async fn progress(&self, lane: &mut OwnedLane, seq: i64) -> Result<(), LaneError> {
        let fence = Fence::of(lane);
        self.write("PROGRESS", lane, &fence.with(&[&seq])).await?;
        lane.cursor.published_seq = lane.cursor.published_seq.max(seq);
        Ok(())
    }

    /// A fenced update. A commit that came with a warning is not known to be durable (a cancelled wait for a
    /// synchronous standby looks like this): it counts as failed, and the lane is acquired anew, by another write.
    async fn write(
        &self,
        name: &'static str,
        lane: &OwnedLane,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<(), LaneError> {
        let warnings = self.connection.warnings();
        if self.connection.execute(self.statement(name), params).await? == 0 {
            return Err(LaneError::Lost(lane.priority));
        }
        self.durable_since(warnings)
    }

    fn durable_since(&self, warnings: u64) -> Result<(), LaneError> {
        if self.connection.warnings() == warnings {
            return Ok(());
        }
        Err(LaneError::Unfit(
            "the server warned while a cursor was committed: it is not known to be durable".into(),
        ))
    }

    /// The next rows of the open window behind `seq`: two index-ordered reads, merged here.
    pub async fn read(&self, lane: &OwnedLane, seq: i64, limit: Limit) -> Result<Batch, LaneError> {
        let Some(scan) = lane.cursor.scan(seq) else {
            return Ok(Batch { messages: Vec::new(), last: true });
        };
        let (main, stragglers) =
            tokio::try_join!(self.read_main(lane, &scan, limit), self.read_stragglers(lane, &scan, limit))?;
        Ok(main.merge(stragglers))
    }

    async fn read_main(&self, lane: &OwnedLane, scan: &Scan<'_>, limit: Limit) -> Result<Batch, LaneError> {
        let (min_txid, target) = (scan.min_txid.to_string(), scan.target.to_string());
        let number = lane.priority.number();
        let rows = self
            .connection
            .query(
                self.statement("READ_MAIN"),
                &[&number, &scan.after_seq, &min_txid, &target, &limit.rows, &ROW_OVERHEAD, &limit.bytes],
            )
            .await?;
        Batch::decode(&rows, self.tag, limit)
    }

    async fn read_stragglers(
        &self,
        lane: &OwnedLane,
        scan: &Scan<'_>,
        limit: Limit,
    ) -> Result<Batch, LaneError> {
        if scan.stragglers.is_empty() {
            return Ok(Batch { messages: Vec::new(), last: true });
        }
        let xids: Vec<String> = scan.stragglers.iter().map(ToString::to_string).collect();
        let target = scan.target.to_string();
        let number = lane.priority.number();
        let rows = self
            .connection
            .query(
                self.statement("READ_STRAGGLERS"),
                &[
                    &number,
                    &scan.stragglers_after_seq,
                    &xids,
                    &target,
                    &limit.rows,
                    &ROW_OVERHEAD,
                    &limit.bytes,
                ],
            )
            .await?;
        Batch::decode(&rows, self.tag, limit)
    }

    /// Copies rows out of the line, durably, before a later one of their topic is sent.
    pub async fn set_aside(&self, lane: &OwnedLane, items: &[(i64, Aside)]) -> Result<(), LaneError> {
        self.fenced_items("SET_ASIDE", lane, items).await
    }

    /// Rows already set aside go to another state: a due one whose topic is missing is held, a refused one parked.
    pub async fn change_state(&self, lane: &OwnedLane, items: &[(i64, Aside)]) -> Result<(), LaneError> {
        self.fenced_items("CHANGE_STATE", lane, items).await
    }

    async fn fenced_items(
        &self,
        name: &'static str,
        lane: &OwnedLane,
        items: &[(i64, Aside)],
    ) -> Result<(), LaneError> {
        if items.is_empty() {
            return Ok(());
        }
        let seqs: Vec<i64> = items.iter().map(|(seq, _)| *seq).collect();
        let states: Vec<&str> = items.iter().map(|(_, aside)| aside.columns().0).collect();
        let reasons: Vec<Option<&str>> = items.iter().map(|(_, aside)| aside.columns().1).collect();
        let fence = Fence::of(lane);
        self.fenced(name, lane, &fence.with(&[&seqs, &states, &reasons])).await
    }

    /// Forgets rows that were set aside and are now published.
    pub async fn published_from_aside(&self, lane: &OwnedLane, seqs: &[i64]) -> Result<(), LaneError> {
        let fence = Fence::of(lane);
        self.fenced("FORGET_ASIDE", lane, &fence.with(&[&seqs])).await
    }

    async fn fenced(
        &self,
        name: &'static str,
        lane: &OwnedLane,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<(), LaneError> {
        let warnings = self.connection.warnings();
        let row = self.connection.query_one(self.statement(name), params).await?;
        if row.get::<_, i64>(0) == 0 {
            return Err(LaneError::Lost(lane.priority));
        }
        self.durable_since(warnings)
    }

    /// Which of these rows of a window opened by an earlier owner are set aside already.
    pub async fn which_are_aside(&self, lane: &OwnedLane, seqs: &[i64]) -> Result<HashSet<i64>, LaneError> {
        let number = lane.priority.number();
        let rows = self.connection.query(self.statement("WHICH_ARE_ASIDE"), &[&number, &seqs]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Topics with held messages, and why.
    pub async fn held_topics(&self, priority: Priority) -> Result<Vec<(String, String)>, LaneError> {
        let rows = self.connection.query(self.statement("HELD_TOPICS"), &[&priority.number()]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get::<_, Option<String>>(1).unwrap_or_default())).collect())
    }

    /// Held messages of a topic, oldest first.
    pub async fn read_held(&self, priority: Priority, topic: &str, limit: Limit) -> Result<Batch, LaneError> {
        let number = priority.number();
        let rows = self
            .connection
            .query(self.statement("READ_HELD"), &[&number, &limit.rows, &ROW_OVERHEAD, &limit.bytes, &topic])
            .await?;
        Batch::decode(&rows, self.tag, limit)
    }

    /// Scheduled messages that are due.
    pub async fn read_due(&self, priority: Priority, limit: Limit) -> Result<Batch, LaneError> {
        let number = priority.number();
        let rows = self
            .connection
            .query(self.statement("READ_DUE"), &[&number, &limit.rows, &ROW_OVERHEAD, &limit.bytes])
            .await?;
        Batch::decode(&rows, self.tag, limit)
    }

    /// Gives the lanes up, so that another producer need not wait for the lease.
    pub async fn release(&self, owners: &[Uuid]) -> Result<(), LaneError> {
        self.connection.execute(self.statement("RELEASE"), &[&owners]).await?;
        Ok(())
    }
}

/// Lengthens the leases of these owners; says how many of them still own a lane.
pub async fn renew(
    client: &tokio_postgres::Client,
    owners: &[Uuid],
    lease: Duration,
) -> Result<u64, PgError> {
    Ok(client.execute(RENEW, &[&owners, &millis(lease)]).await?)
}

/// The four parameters with which every write begins.
struct Fence {
    priority: i16,
    owner: Uuid,
    epoch: i64,
    window: i64,
}

impl Fence {
    fn of(lane: &OwnedLane) -> Self {
        Self { priority: lane.priority.number(), owner: lane.owner, epoch: lane.epoch, window: lane.window }
    }

    fn with<'a>(&'a self, rest: &[&'a (dyn ToSql + Sync)]) -> Vec<&'a (dyn ToSql + Sync)> {
        let mut params: Vec<&(dyn ToSql + Sync)> =
            vec![&self.priority, &self.owner, &self.epoch, &self.window];
        params.extend_from_slice(rest);
        params
    }
}

fn cursor(row: &Row) -> Result<Cursor, LaneError> {
    let candidate = match (row.get::<_, Option<i64>>(4), row.get::<_, Option<&str>>(5)) {
        (Some(last_seq), Some(next_xid)) => Some(FloorCandidate { last_seq, next_xid: number(next_xid)? }),
        _ => None,
    };
    let target = row.get::<_, Option<&str>>(6).map(parse).transpose()?;
    Ok(Cursor { done: parse(row.get(2))?, floor: row.get(3), candidate, target, published_seq: row.get(7) })
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, LaneError> {
    text.parse().map_err(|error: T::Err| LaneError::Unfit(error.to_string()))
}

fn number(text: &str) -> Result<u64, LaneError> {
    parse(text)
}

fn priority(number: i16) -> Result<Priority, LaneError> {
    Priority::try_from(number).map_err(|error| LaneError::Unfit(error.to_string()))
}

fn lost_one_of(found: &HashMap<Priority, Seen>) -> LaneError {
    let missing = Priority::ALL.into_iter().find(|priority| !found.contains_key(priority));
    LaneError::Lost(missing.unwrap_or(Priority::Normal))
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
