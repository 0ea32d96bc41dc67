//! Rows that left the line of their lane: scheduled, held, parked.

use std::collections::{HashSet, VecDeque};

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
        select seq, id, topic, key, payload, headers, type, idempotency_key, false, created_at, retry from outboxd.set_aside
        where priority = $1 and state = 'held' and topic = $2 order by seq limit $3";

    READ_DUE = "
        select seq, id, topic, key, payload, headers, type, idempotency_key, false, created_at, retry from outboxd.set_aside
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
          update outboxd.set_aside a set state = item.state, reason = item.reason
          from fence, unnest($5::bigint[], $6::text[], $7::text[]) as item (seq, state, reason)
          where a.priority = $1 and a.seq = item.seq
        )
        select count(*) from fence";
}

/// Rows that one read brings at the most.
const MOST_ROWS: i64 = 1_000;

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

    /// Held messages of a topic, oldest first, up to so many bytes.
    pub async fn read_held(
        &self,
        priority: Priority,
        topic: &str,
        bytes: usize,
    ) -> Result<VecDeque<Message>, LaneError> {
        self.read_aside("READ_HELD", &[&priority.number(), &topic, &MOST_ROWS], bytes).await
    }

    /// Scheduled messages that are due, up to so many bytes.
    pub async fn read_due(&self, priority: Priority, bytes: usize) -> Result<VecDeque<Message>, LaneError> {
        self.read_aside("READ_DUE", &[&priority.number(), &MOST_ROWS], bytes).await
    }

    async fn read_aside(
        &self,
        name: &'static str,
        params: &[&(dyn ToSql + Sync)],
        bytes: usize,
    ) -> Result<VecDeque<Message>, LaneError> {
        let rows = batch::rows(&self.connection, self.statement(name), params, self.tag, bytes).await?;
        Ok(rows.messages)
    }
}
