//! The rows of a window, in order of `seq`, in batches bounded by rows and bytes.
//!
//! Two sources are merged here, each a read that cannot be planned wrongly: the *main* rows by the primary key, and the
//! *late* ones, of transactions that were in progress at `done`, whose places are looked up once a window.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio_postgres::types::ToSql;

use super::batch::{self, Batch, Limits, Rows};
use super::{LaneError, SESSION};
use crate::domain::cursor::Cursor;
use crate::domain::identity::Tag;
use crate::domain::message::Message;
use crate::domain::priority::Priority;
use crate::pg::connect::{Connection, Prepared};
use crate::pg::sql::statements;

statements! {
    /// One index-ordered scan of the primary key. The casts stand in subselects, so that they are evaluated once and not
    /// per row. Bytes are counted by the reader: a running sum here would cost more than the rest of it.
    READ_MAIN = "
        select seq, id, topic, key, case when octet_length(payload) <= $6 then payload end, headers, type, idempotency_key, deliver_after is not null, created_at, retry,
          case when octet_length(payload) > $6 then octet_length(payload) end
        from outboxd.messages m
        where m.priority = $1 and m.seq > $2 and m.txid >= (select $3::text::xid8)
          and pg_visible_in_snapshot(m.txid, (select $4::text::pg_snapshot))
        order by m.seq limit $5";

    /// Where the rows are of what was in progress at `done` and has ended by `target`: by the index on txid, and sorted
    /// once, however many they are. What is added keeps the planner from the primary key.
    LATE_PLACES = "
        select seq from outboxd.messages
        where txid = any($3::text[]::xid8[]) and priority + 0 = $1::smallint and seq + 0 > $2
          and pg_visible_in_snapshot(txid, (select $4::text::pg_snapshot))
        order by seq + 0 limit $5";

    READ_LATE = "
        select seq, id, topic, key, case when octet_length(payload) <= $3 then payload end, headers, type, idempotency_key, deliver_after is not null, created_at, retry,
          case when octet_length(payload) > $3 then octet_length(payload) end
        from outboxd.messages m where m.priority = $1 and m.seq = any($2) order by m.seq + 0";
}

/// Rows that one read brings at the most.
const MOST_ROWS: i64 = 5_000;

/// Rows of the first read of a window, before their size is known.
const FIRST_ROWS: i64 = 1_000;

/// Places of late rows that are known at a time; 8 bytes each.
const PLACES: i64 = 1_000_000;

/// A connection of its own, so that reading ahead and moving the cursor do not wait for each other.
pub struct LaneReader {
    connection: Connection,
    main: Prepared,
    late_places: Prepared,
    late: Prepared,
    tag: Tag,
    limits: Limits,
}

impl LaneReader {
    pub async fn open(connection: Connection, tag: Tag, limits: Limits) -> Result<Self, LaneError> {
        connection.set(SESSION).await?;
        let main = connection.prepare(READ_MAIN).await?;
        let late_places = connection.prepare(LATE_PLACES).await?;
        let late = connection.prepare(READ_LATE).await?;
        Ok(Self { connection, main, late_places, late, tag, limits })
    }

    async fn rows(&self, statement: &Prepared, params: &[&(dyn ToSql + Sync)]) -> Result<Rows, LaneError> {
        batch::rows(&self.connection, statement, params, self.tag, self.limits.batch_bytes).await
    }
}

/// One of the two sources.
#[derive(Debug, Default)]
struct Source {
    rows: VecDeque<Message>,
    has_ended: bool,
}

impl Source {
    fn needs_reading(&self) -> bool {
        self.rows.is_empty() && !self.has_ended
    }

    fn next_seq(&self) -> i64 {
        self.rows.front().map_or(i64::MAX, |message| message.seq)
    }
}

/// The rest of one window.
pub struct Window {
    reader: Arc<LaneReader>,
    priority: Priority,
    main: Source,
    main_after: i64,
    min_txid: String,
    late: Source,
    late_places: VecDeque<i64>,
    late_after: i64,
    late_txids: Vec<String>,
    target: String,
    rows: i64,
}

impl Window {
    /// Of the cursor's open window, what lies behind `seq`. Begun after the target was read, on the same primary.
    pub fn behind(reader: &Arc<LaneReader>, priority: Priority, cursor: &Cursor, seq: i64) -> Option<Self> {
        let scan = cursor.scan(seq)?;
        Some(Self {
            reader: Arc::clone(reader),
            priority,
            main: Source::default(),
            main_after: scan.after_seq,
            min_txid: scan.min_txid.to_string(),
            late: Source { rows: VecDeque::new(), has_ended: scan.stragglers.is_empty() },
            late_places: VecDeque::new(),
            late_after: scan.stragglers_after_seq,
            late_txids: scan.stragglers.iter().map(ToString::to_string).collect(),
            target: scan.target.to_string(),
            rows: FIRST_ROWS,
        })
    }

    /// The next rows, in order; the last batch of a window may be empty.
    pub async fn next(&mut self) -> Result<Batch, LaneError> {
        if self.main.needs_reading() {
            self.read_main().await?;
        }
        if self.late.needs_reading() {
            self.read_late().await?;
        }
        let mut messages = Vec::with_capacity(self.main.rows.len());
        // The next in order is known as long as both have one, or will never have one again.
        while !self.main.needs_reading() && !self.late.needs_reading() {
            let source =
                if self.main.next_seq() <= self.late.next_seq() { &mut self.main } else { &mut self.late };
            let Some(message) = source.rows.pop_front() else { break };
            messages.push(message);
        }
        let last = [&self.main, &self.late].iter().all(|source| source.has_ended && source.rows.is_empty());
        Ok(Batch { messages, last })
    }

    async fn read_main(&mut self) -> Result<(), LaneError> {
        let (number, payload_bytes) = (self.priority.number(), self.reader.limits.payload_bytes);
        let Rows { messages, bytes, was_cut } = self
            .reader
            .rows(
                &self.reader.main,
                &[&number, &self.main_after, &self.min_txid, &self.target, &self.rows, &payload_bytes],
            )
            .await?;
        let count = i64::try_from(messages.len()).unwrap_or(i64::MAX);
        self.main.has_ended = !was_cut && count < self.rows;
        self.main_after = messages.back().map_or(self.main_after, |message| message.seq);
        self.main.rows = messages;
        self.learn_size(count, bytes);
        Ok(())
    }

    async fn read_late(&mut self) -> Result<(), LaneError> {
        let (number, payload_bytes) = (self.priority.number(), self.reader.limits.payload_bytes);
        if self.late_places.is_empty() {
            let places = self
                .reader
                .connection
                .query(
                    &self.reader.late_places,
                    &[&number, &self.late_after, &self.late_txids, &self.target, &PLACES],
                )
                .await?;
            self.late_places = places.iter().map(|row| row.get(0)).collect();
            if self.late_places.is_empty() {
                self.late.has_ended = true;
                return Ok(());
            }
        }
        let count = usize::try_from(self.rows).unwrap_or(1).min(self.late_places.len());
        let places: Vec<i64> = self.late_places.iter().take(count).copied().collect();
        let Rows { messages, bytes, .. } =
            self.reader.rows(&self.reader.late, &[&number, &places, &payload_bytes]).await?;
        self.learn_size(i64::try_from(messages.len()).unwrap_or(i64::MAX), bytes);
        // What was cut off is read next time.
        self.late_after = messages.back().map_or(places[count - 1], |message| message.seq);
        while self.late_places.front().is_some_and(|seq| *seq <= self.late_after) {
            self.late_places.pop_front();
        }
        self.late.rows = messages;
        Ok(())
    }

    /// The next read asks for no more rows than fit the batch if they are as large as these.
    fn learn_size(&mut self, rows: i64, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        if rows > 0 {
            let fitting =
                i64::try_from(self.reader.limits.batch_bytes).unwrap_or(i64::MAX) / (bytes / rows).max(1);
            self.rows = fitting.clamp(1, MOST_ROWS);
        }
    }
}
