//! Lanes: who owns them, how far they are published, and the rows of their windows.
//!
//! Every write names lane, owner, epoch and window; one that hits no row means that the lane is not ours.

pub(super) mod batch;
pub mod read;

use std::collections::HashMap;
use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

pub use batch::{Batch, Limits};

use super::aside;
use super::connect::{Connection, PgError, Prepared};
use super::sql::{millis, statements};
use crate::domain::cursor::{Cursor, FloorCandidate};
use crate::domain::identity::Tag;
use crate::domain::offsets::Offsets;
use crate::domain::priority::Priority;
use crate::domain::snapshot::Snapshot;

statements! {
    /// `age()` answers with the next xid only in a statement of its own.
    NEXT_XID = "
        select (pg_snapshot_xmin(now)::text::bigint + age(pg_snapshot_xmin(now)::xid))::text
        from pg_current_snapshot() as now";

    /// Changes whenever a transaction ends that wrote something, however early it took its xid.
    SNAPSHOT = "select pg_current_snapshot()::text";

    /// All lanes at once: who has them, and of those asked for whether there are rows beyond what is published or in the
    /// open window, and scheduled ones that are due; and for how long that stands if nobody writes. With it a snapshot, and the sequence's last value, which is the
    /// first half of a floor's pair: `pg_sequence_last_value` locks the page, where a plain select from the sequence
    /// can see up to 32 too many.
    ///
    /// Ordered and limited subselects leave the planner nothing but the two indexes, whatever it believes of the table.
    POLL = "
        select pg_current_snapshot()::text, pg_is_in_recovery(), coalesce(pg_sequence_last_value('outboxd.messages_seq'), 0),
          l.priority, l.owner, l.agent, l.owner is null or coalesce(l.lease_expires_at < clock_timestamp(), true),
          case when l.wanted_at > clock_timestamp() - interval '3 s' then l.wanted_by end,
          l.owner = any($1) and coalesce(
            (select true from outboxd.messages m
              where m.priority = l.priority
                and m.seq > case when pg_snapshot_xmax(l.target) >= l.candidate_xid then greatest(l.floor, l.candidate_floor)
                  else l.floor end
                and m.txid >= pg_snapshot_xmax(coalesce(l.target, l.done))
              order by m.seq limit 1),
            (select true from pg_snapshot_xip(coalesce(l.target, l.done)) as running (txid)
              cross join lateral (select from outboxd.messages m
                where m.txid = running.txid and m.priority = l.priority limit 1) straggler
              limit 1),
            false),
          extract(epoch from due.at)::float8 - clock.now,
          extract(epoch from l.lease_expires_at)::float8 - clock.now
        from outboxd.lanes l
        cross join lateral (select extract(epoch from clock_timestamp())::float8) clock (now)
        left join lateral (select a.due_at from outboxd.set_aside a
          where l.owner = any($1) and a.priority = l.priority and a.state = 'scheduled'
          order by a.due_at limit 1) due (at) on true";

    IDENTITY = "
        select tag_high, tag_low, o.system_identifier = c.system_identifier, pg_is_in_recovery()
        from outboxd.outbox o, pg_control_system() c";

    ACQUIRE = "
        update outboxd.lanes set owner = $2, agent = $3, epoch = epoch + 1, \"window\" = \"window\" + 1,
          lease_expires_at = clock_timestamp() + $4::bigint * interval '1 ms', wanted_by = null, wanted_at = null
        where outboxd.durable() and priority = $1
          and (owner is null or lease_expires_at is null or lease_expires_at < clock_timestamp() or owner = $5)
        returning epoch, \"window\", done::text, floor, candidate_floor, candidate_xid::text, target::text, published_seq";

    RENEW = "
        update outboxd.lanes set lease_expires_at = clock_timestamp() + $2::bigint * interval '1 ms'
        where owner = any($1)";

    RELEASE = "
        update outboxd.lanes set owner = null, agent = null, lease_expires_at = null, epoch = epoch + 1,
          \"window\" = \"window\" + 1
        where owner = $1";

    /// An agent with fewer lanes asks the owner for this one.
    WISH = "
        update outboxd.lanes set wanted_by = $2, wanted_at = clock_timestamp() where priority = $1 and owner is not null";

    TURN = "
        update outboxd.lanes set done = $9::text::pg_snapshot, floor = $10, candidate_floor = $11,
          candidate_xid = $12::text::xid8, target = $13::text::pg_snapshot, published_seq = 0,
          top = greatest(top, coalesce(pg_sequence_last_value('outboxd.messages_seq'), 0)),
          \"window\" = \"window\" + 1, moved_at = clock_timestamp(),
          publishing_done = case when $7::bigint > 0 then coalesce(publishing_done, done) else publishing_done end,
          publishing_began_at = case when $7 > 0 then coalesce(publishing_began_at, clock_timestamp()) else publishing_began_at end,
          publishing_first_seq = least(publishing_first_seq, $5), publishing_last_seq = greatest(publishing_last_seq, $6),
          publishing_messages = publishing_messages + $7, publishing_offsets = publishing_offsets || $8
        where outboxd.durable() and priority = $1 and owner = $2 and epoch = $3 and \"window\" = $4";

    PROGRESS = "
        update outboxd.lanes set published_seq = greatest(published_seq, $6), moved_at = clock_timestamp(),
          publishing_done = coalesce(publishing_done, done),
          publishing_began_at = coalesce(publishing_began_at, clock_timestamp()),
          publishing_first_seq = least(publishing_first_seq, $5), publishing_last_seq = greatest(publishing_last_seq, $6),
          publishing_messages = publishing_messages + $7, publishing_offsets = publishing_offsets || $8
        where outboxd.durable() and priority = $1 and owner = $2 and epoch = $3 and \"window\" = $4";

    /// What was published since the last time becomes a row of its own. Only while nothing of the open window is
    /// published: what is noted here is then what `done` shows.
    RECORD = "
        with noted as (
          insert into outboxd.publications (priority, \"window\", done, target, first_seq, last_seq, messages, agent,
            began_at, ended_at, offsets)
          select priority, \"window\", publishing_done, done, publishing_first_seq, publishing_last_seq,
            publishing_messages, agent, publishing_began_at, clock_timestamp(), publishing_offsets
          from outboxd.lanes
          where priority = $1 and owner = $2 and epoch = $3 and \"window\" = $4 and published_seq = 0
            and publishing_messages > 0
        )
        update outboxd.lanes set publishing_done = null, publishing_first_seq = null, publishing_last_seq = null,
          publishing_messages = 0, publishing_began_at = null, publishing_offsets = '{}'
        where priority = $1 and owner = $2 and epoch = $3 and \"window\" = $4 and published_seq = 0";
}

/// For the planner, before a statement of the relay is prepared: statistics of an outbox are always of another hour, and
/// a scan or a sort in a plan made while it was empty would be kept after it has filled.
pub const SESSION: &str = "
    set enable_seqscan = off; set enable_bitmapscan = off; set enable_sort = off; set max_parallel_workers_per_gather = 0";

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

/// What a poll saw of one lane.
#[derive(Clone, Debug)]
pub struct Seen {
    pub owner: Option<Uuid>,
    /// The owner's name.
    pub agent: Option<String>,
    /// Nobody has it, or the lease has ended.
    pub is_free: bool,
    /// Another agent has asked for it just now.
    pub wanted_by: Option<String>,
    /// Beyond what is published or in the open window; asked of the given owners' lanes alone.
    pub has_rows: bool,
    pub has_due: bool,
    /// What is told here stands for so long if nobody writes; nothing if for ever.
    pub lasts: Option<Duration>,
}

/// One look at all lanes.
#[derive(Clone, Debug)]
pub struct Poll {
    pub snapshot: Snapshot,
    pub candidate: FloorCandidate,
    pub lanes: HashMap<Priority, Seen>,
}

impl Poll {
    /// Rows to publish were seen.
    pub fn has_work(&self) -> bool {
        self.lanes.values().any(|lane| lane.has_rows || lane.has_due)
    }
}

/// What was published since the last write of a lane.
#[derive(Debug, Default)]
pub struct Published {
    pub first_seq: Option<i64>,
    pub last_seq: Option<i64>,
    pub messages: i64,
    pub offsets: Offsets,
}

/// The relay's own connection with its statements.
pub struct LaneStore {
    pub(super) connection: Connection,
    statements: HashMap<&'static str, Prepared>,
    pub(super) tag: Tag,
    pub(super) limits: Limits,
}

impl LaneStore {
    /// Prepares a fresh connection, and refuses a database whose xids the cursors do not speak of.
    pub async fn open(connection: Connection, limits: Limits) -> Result<Self, LaneError> {
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
        connection.set(SESSION).await?;
        let mut statements = HashMap::new();
        for (name, sql) in SQL.iter().chain(aside::SQL) {
            statements.insert(*name, connection.prepare(sql).await?);
        }
        Ok(Self { connection, statements, tag: Tag::new(row.get(0), row.get(1)), limits })
    }

    /// The outbox's tag, which message ids are made with.
    pub fn tag(&self) -> Tag {
        self.tag
    }

    pub(in crate::pg) fn statement(&self, name: &'static str) -> &Prepared {
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

    /// Looks at all lanes, and at the rows of those that these owners have. The floor's pair is read in two statements,
    /// in this order, sent at once.
    pub async fn poll(&self, owners: &[Uuid]) -> Result<Poll, LaneError> {
        let (none, asked): (&[&(dyn ToSql + Sync)], &[&(dyn ToSql + Sync)]) = (&[], &[&owners]);
        let (rows, next_xid) = tokio::try_join!(
            biased;
            self.connection.query(self.statement("POLL"), asked),
            self.connection.query_one(self.statement("NEXT_XID"), none),
        )?;
        let first = rows.first().ok_or_else(|| LaneError::Unfit("outboxd.lanes is empty".into()))?;
        if first.get::<_, bool>(1) {
            return Err(LaneError::Unfit("this server has become a standby".into()));
        }
        let candidate = FloorCandidate { last_seq: first.get(2), next_xid: number(next_xid.get(0))? };
        let lanes = rows.iter().map(|row| {
            let [due_in, lease_ends_in] = [9, 10].map(|column| row.get::<_, Option<f64>>(column));
            let to_come = [due_in, lease_ends_in].into_iter().flatten().filter(|seconds| *seconds > 0.0);
            let seen = Seen {
                owner: row.get(4),
                agent: row.get(5),
                is_free: row.get(6),
                wanted_by: row.get(7),
                has_rows: row.get::<_, Option<bool>>(8).unwrap_or_default(),
                has_due: due_in.is_some_and(|seconds| seconds <= 0.0),
                lasts: to_come.filter_map(|seconds| Duration::try_from_secs_f64(seconds).ok()).min(),
            };
            Ok((priority(row.get(3))?, seen))
        });
        Ok(Poll {
            snapshot: parse(first.get(0))?,
            candidate,
            lanes: lanes.collect::<Result<_, LaneError>>()?,
        })
    }

    /// What transactions have ended.
    pub async fn snapshot(&self) -> Result<Snapshot, LaneError> {
        parse(self.connection.query_one(self.statement("SNAPSHOT"), &[]).await?.get(0))
    }

    /// Asks the owner of a lane to give it up for this agent.
    pub async fn wish(&self, priority: Priority, agent: &str) -> Result<(), LaneError> {
        self.connection.execute(self.statement("WISH"), &[&priority.number(), &agent]).await?;
        Ok(())
    }

    /// Writes the next state of the cursor, durably, and what of the closed window was not written yet. Nothing of the
    /// next window may be sent before this returns.
    pub async fn turn(
        &self,
        lane: &mut OwnedLane,
        next: Cursor,
        published: &Published,
    ) -> Result<(), LaneError> {
        let done = next.done.to_string();
        let target = next.target.as_ref().map(ToString::to_string);
        let candidate_floor = next.candidate.map(|pair| pair.last_seq);
        let candidate_xid = next.candidate.map(|pair| pair.next_xid.to_string());
        let (fence, offsets) = (Fence::of(lane), published.offsets.to_json());
        let Published { first_seq, last_seq, messages, .. } = published;
        let params = fence.with(&[
            first_seq,
            last_seq,
            messages,
            &offsets,
            &done,
            &next.floor,
            &candidate_floor,
            &candidate_xid,
            &target,
        ]);
        self.write("TURN", lane.priority, &params).await?;
        lane.window += 1;
        lane.cursor = next;
        Ok(())
    }

    /// Rows of the open window up to `published.last_seq` are published.
    pub async fn progress(&self, lane: &OwnedLane, published: &Published) -> Result<(), LaneError> {
        let (fence, offsets) = (Fence::of(lane), published.offsets.to_json());
        let Published { first_seq, last_seq, messages, .. } = published;
        self.write("PROGRESS", lane.priority, &fence.with(&[first_seq, last_seq, messages, &offsets])).await
    }

    /// Makes a row of `outboxd.publications` of what was published, unless something of the open window is.
    pub async fn record(&self, lane: &OwnedLane) -> Result<(), LaneError> {
        let fence = Fence::of(lane);
        self.connection.execute(self.statement("RECORD"), &fence.with(&[])).await?;
        Ok(())
    }

    /// A fenced update. A commit that came with a warning is not known to be durable (a cancelled wait for a
    /// synchronous standby looks like this): it counts as failed, and the lane is acquired anew, by another write.
    async fn write(
        &self,
        name: &'static str,
        lane: Priority,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<(), LaneError> {
        let warnings = self.connection.warnings();
        if self.connection.execute(self.statement(name), params).await? == 0 {
            return Err(LaneError::Lost(lane));
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

    pub(in crate::pg) async fn fenced(
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

    /// Gives the lane up, so that another producer need not wait for the lease.
    pub async fn release(&self, owner: Uuid) -> Result<(), LaneError> {
        self.connection.execute(self.statement("RELEASE"), &[&owner]).await?;
        Ok(())
    }
}

/// Lengthens the leases of these owners; says how many of them still own a lane.
pub async fn renew(connection: &Connection, owners: &[Uuid], lease: Duration) -> Result<u64, PgError> {
    Ok(connection.execute(RENEW, &[&owners, &millis(lease)]).await?)
}

/// The four parameters with which every write begins.
pub(super) struct Fence {
    priority: i16,
    owner: Uuid,
    epoch: i64,
    window: i64,
}

impl Fence {
    pub(super) fn of(lane: &OwnedLane) -> Self {
        Self { priority: lane.priority.number(), owner: lane.owner, epoch: lane.epoch, window: lane.window }
    }

    pub(super) fn with<'a>(&'a self, rest: &[&'a (dyn ToSql + Sync)]) -> Vec<&'a (dyn ToSql + Sync)> {
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
