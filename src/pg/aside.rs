//! Rows that left the line of their lane: scheduled, held, parked.

use std::collections::{HashSet, VecDeque};

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::lanes::batch;
use super::lanes::{Fence, LaneError, LaneStore, OwnedLane};
use super::sql::statements;
use crate::domain::message::Message;
use crate::domain::priority::Priority;

statements! {
    SET_ASIDE = "
        with fence as materialized (
          select priority from outboxd.lanes
          where outboxd.durable() and priority = $1 and owner = $2 and epoch = $3 and \"window\" = $4 for update
        ), copied as (
          insert into outboxd.set_aside (priority, seq, state, reason, key_line, stops_lane, due_at, id, topic, key,
            payload, headers, type, idempotency_key, retry, created_at)
          select m.priority, m.seq, item.state, item.reason, item.key_line, item.stops_lane, m.deliver_after, m.id, m.topic,
            m.key, m.payload, m.headers, m.type, m.idempotency_key, m.retry, m.created_at
          from fence, unnest($5::bigint[], $6::text[], $7::text[], $8::bigint[], $9::boolean[])
            as item (seq, state, reason, key_line, stops_lane)
          join outboxd.messages m on m.priority = $1 and m.seq = item.seq
          on conflict (priority, seq) do nothing
        )
        select count(*) from fence";

    /// Which of these rows an earlier owner set aside.
    WHICH_ARE_ASIDE = "select seq from outboxd.set_aside where priority = $1 and seq = any($2)";

    HELD_TOPICS = "
        select topic, min(reason) from outboxd.set_aside
        where priority = $1 and state = 'held' and key_line is null and not stops_lane group by topic";

    READ_HELD = "
        select seq, id, topic, key, case when octet_length(payload) <= $4 then payload end, headers, type, idempotency_key, due_at is not null, created_at, retry,
          case when octet_length(payload) > $4 then octet_length(payload) end
        from outboxd.set_aside
        where priority = $1 and state = 'held' and key_line is null and not stops_lane and topic = $2 order by seq limit $3";

    /// The first row of each line, from one line to the next: what waits behind it is not read.
    LINES = "
        with recursive line as (
          (select key_line, topic, key, state from outboxd.set_aside
           where priority = $1 and key_line is not null order by key_line, seq limit 1)
          union all
          select next.* from line cross join lateral (
            select a.key_line, a.topic, a.key, a.state from outboxd.set_aside a
            where a.priority = $1 and a.key_line > line.key_line order by a.key_line, a.seq limit 1
          ) next
        )
        select key_line, topic, key, state = 'parked' from line";

    FIRST_PARKED = "
        select min(seq) from outboxd.set_aside where priority = $1 and key_line = $2 and state = 'parked'";

    READ_LINE = "
        select seq, id, topic, key, case when octet_length(payload) <= $5 then payload end, headers, type, idempotency_key, false, created_at, retry,
          case when octet_length(payload) > $5 then octet_length(payload) end from outboxd.set_aside
        where priority = $1 and key_line = $2 and state = 'held' and seq < $3 order by seq limit $4";

    STOP = "
        select seq, topic, state = 'parked', reason from outboxd.set_aside
        where priority = $1 and stops_lane order by seq limit 1";

    READ_ONE = "
        select seq, id, topic, key, case when octet_length(payload) <= $3 then payload end, headers, type, idempotency_key, due_at is not null, created_at, retry,
          case when octet_length(payload) > $3 then octet_length(payload) end
        from outboxd.set_aside where priority = $1 and seq = $2";

    READ_DUE = "
        select seq, id, topic, key, case when octet_length(payload) <= $3 then payload end, headers, type, idempotency_key, true, created_at, retry,
          case when octet_length(payload) > $3 then octet_length(payload) end from outboxd.set_aside
        where priority = $1 and state = 'scheduled' and due_at <= clock_timestamp() order by due_at, seq limit $2";

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
          update outboxd.set_aside a set state = item.state, reason = item.reason, key_line = item.key_line,
            stops_lane = item.stops_lane, set_aside_at = clock_timestamp()
          from fence, unnest($5::bigint[], $6::text[], $7::text[], $8::bigint[], $9::boolean[])
            as item (seq, state, reason, key_line, stops_lane)
          where a.priority = $1 and a.seq = item.seq and a.decided_at is null
        )
        select count(*) from fence";
}

/// Rows that one read brings at the most.
const MOST_ROWS: i64 = 1_000;

/// Why a row leaves its place among the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Aside {
    Scheduled,
    /// It waits for its topic.
    Held(String),
    /// It waits in the line of its key.
    Behind(i64),
    Parked {
        reason: String,
        holds: Holds,
    },
}

/// What waits until an operator has decided about a parked row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    Nothing,
    /// Later ones of its key, in this line.
    Key(i64),
    Lane,
}

/// The line of a key.
#[derive(Clone, Debug)]
pub struct Line {
    pub number: i64,
    pub topic: String,
    pub key: String,
    /// Its first row is parked; else it may go.
    pub is_parked: bool,
}

/// The row that stops its lane.
#[derive(Clone, Debug)]
pub struct Stopping {
    pub seq: i64,
    pub topic: String,
    /// Not sent again by an operator.
    pub is_parked: bool,
    pub reason: String,
}

impl Aside {
    fn state(&self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Held(_) | Self::Behind(_) => "held",
            Self::Parked { .. } => "parked",
        }
    }

    fn reason(&self) -> Option<&str> {
        match self {
            Self::Scheduled => None,
            Self::Behind(_) => Some("waits behind a message of its key"),
            Self::Held(reason) | Self::Parked { reason, .. } => Some(reason),
        }
    }

    fn key_line(&self) -> Option<i64> {
        match self {
            Self::Behind(line) | Self::Parked { holds: Holds::Key(line), .. } => Some(*line),
            _ => None,
        }
    }

    fn stops_lane(&self) -> bool {
        matches!(self, Self::Parked { holds: Holds::Lane, .. })
    }
}

impl LaneStore {
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
        let states: Vec<&str> = items.iter().map(|(_, aside)| aside.state()).collect();
        let reasons: Vec<Option<&str>> = items.iter().map(|(_, aside)| aside.reason()).collect();
        let lines: Vec<Option<i64>> = items.iter().map(|(_, aside)| aside.key_line()).collect();
        let stops: Vec<bool> = items.iter().map(|(_, aside)| aside.stops_lane()).collect();
        let fence = Fence::of(lane);
        self.fenced(name, lane, &fence.with(&[&seqs, &states, &reasons, &lines, &stops])).await
    }

    /// Forgets rows that were set aside and are now published.
    pub async fn published_from_aside(&self, lane: &OwnedLane, seqs: &[i64]) -> Result<(), LaneError> {
        let fence = Fence::of(lane);
        self.fenced("FORGET_ASIDE", lane, &fence.with(&[&seqs])).await
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

    /// Held messages of a topic, oldest first: so many, or what a batch holds.
    pub async fn read_held(
        &self,
        priority: Priority,
        topic: &str,
        rows: Option<i64>,
    ) -> Result<VecDeque<Message>, LaneError> {
        let rows = rows.unwrap_or(MOST_ROWS);
        self.read_aside("READ_HELD", &[&priority.number(), &topic, &rows, &self.limits.payload_bytes]).await
    }

    /// The lines of the lane's keys.
    pub async fn lines(&self, priority: Priority) -> Result<Vec<Line>, LaneError> {
        let rows = self.connection.query(self.statement("LINES"), &[&priority.number()]).await?;
        let line = |row: &Row| Line {
            number: row.get(0),
            topic: row.get(1),
            key: row.get::<_, Option<String>>(2).unwrap_or_default(),
            is_parked: row.get(3),
        };
        Ok(rows.iter().map(line).collect())
    }

    /// The first row of a line that is parked: nothing behind it may go.
    pub async fn first_parked(&self, priority: Priority, line: i64) -> Result<Option<i64>, LaneError> {
        let params: [&(dyn ToSql + Sync); 2] = [&priority.number(), &line];
        Ok(self.connection.query_one(self.statement("FIRST_PARKED"), &params).await?.get(0))
    }

    /// Held messages of a line before that `seq`, oldest first, up to the bytes of a batch.
    pub async fn read_line(
        &self,
        priority: Priority,
        line: i64,
        before: i64,
    ) -> Result<VecDeque<Message>, LaneError> {
        self.read_aside(
            "READ_LINE",
            &[&priority.number(), &line, &before, &MOST_ROWS, &self.limits.payload_bytes],
        )
        .await
    }

    /// What stops the lane, if anything does.
    pub async fn stopping(&self, priority: Priority) -> Result<Option<Stopping>, LaneError> {
        let row = self.connection.query_opt(self.statement("STOP"), &[&priority.number()]).await?;
        Ok(row.map(|row| Stopping {
            seq: row.get(0),
            topic: row.get(1),
            is_parked: row.get(2),
            reason: row.get::<_, Option<String>>(3).unwrap_or_default(),
        }))
    }

    /// One message that is set aside.
    pub async fn read_one(&self, priority: Priority, seq: i64) -> Result<Option<Message>, LaneError> {
        let params: [&(dyn ToSql + Sync); 3] = [&priority.number(), &seq, &self.limits.payload_bytes];
        Ok(self.read_aside("READ_ONE", &params).await?.pop_front())
    }

    /// Scheduled messages that are due, up to the bytes of a batch.
    pub async fn read_due(&self, priority: Priority) -> Result<VecDeque<Message>, LaneError> {
        self.read_aside("READ_DUE", &[&priority.number(), &MOST_ROWS, &self.limits.payload_bytes]).await
    }

    async fn read_aside(
        &self,
        name: &'static str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<VecDeque<Message>, LaneError> {
        let rows =
            batch::rows(&self.connection, self.statement(name), params, self.tag, self.limits.batch_bytes)
                .await?;
        Ok(rows.messages)
    }
}
