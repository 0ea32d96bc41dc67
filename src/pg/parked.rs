//! Messages that Kafka refused for good, or that wait for a topic that may never be, and what an operator decides about
//! them.
//!
//! One that holds its key or stops its lane goes again from its place: the lane's owner sends it. One that holds nothing
//! becomes a new message that carries the old id. One that waits goes by itself, and can only be discarded.

use serde::Serialize;
use serde_json::Value;
use tokio_postgres::Row;
use uuid::Uuid;

use super::connect::{Connection, PgError};
use super::inspect::{self, Content};
use super::retry::{Decided, Decision, Entry, Filter, Place};
use super::sql::statements;
use crate::domain::identity::Tag;

statements! {
    LIST = "
        select coalesce(id, outboxd.message_id(created_at, seq)), state, topic, key, type, reason, set_aside_at, priority, seq
        from outboxd.set_aside
        where state = any($1::text[]) and ($2::text is null or topic = $2) and ($3::text is null or key = $3)
          and ($4::text is null or type = $4) and ($5::text is null or strpos(lower(reason), lower($5)) > 0)
          and ($6::timestamptz is null or set_aside_at >= $6) and ($7::timestamptz is null or set_aside_at < $7)
          and seq > $8
        order by seq limit $9";

    /// By the numbers that ids were derived from, and by ids that applications brought. The numbers may be of nobody.
    FIND = "
        select coalesce(id, outboxd.message_id(created_at, seq)), state, topic, key, type, reason, set_aside_at, priority, seq,
          outboxd.message_id(created_at, seq)
        from outboxd.set_aside
        where state = any($1::text[]) and ((priority in (-1, 0, 1) and seq = any($2)) or id = any($3))
        order by seq";

    DETAIL = "
        select a.idempotency_key, a.created_at, a.key_line is not null, a.stops_lane,
          (select count(*) from outboxd.set_aside behind
            where behind.priority = a.priority and behind.key_line = a.key_line and behind.state = 'held'),
          a.headers, a.payload, o.id, o.command, o.database_user, o.os_user, o.host
        from outboxd.set_aside a left join outboxd.operations o on o.id = a.operation
        where a.priority = $1 and a.seq = $2";

    /// Who waits is let go from its place, who does not is inserted anew; of that one a trace stays, so that nobody who
    /// reads the open window again takes it for one that was never tried.
    REPLAY = "
        with picked as materialized (
          select a.* from unnest($2::smallint[], $3::bigint[]) as wanted (priority, seq)
          join outboxd.set_aside a using (priority, seq)
          where outboxd.durable() and a.state in ('parked', 'discarded')
          order by a.seq for update of a
        ), renewed as (
          insert into outboxd.messages (id, topic, key, payload, headers, type, idempotency_key, priority, retry)
          select coalesce(id, outboxd.message_id(created_at, seq)), topic, key, payload, headers, type, idempotency_key,
            priority, retry
          from picked where key_line is null and not stops_lane order by seq
        ), replayed as (
          update outboxd.set_aside a set state = 'replayed', reason = 'sent again as a new message', payload = null,
            headers = '{}', set_aside_at = clock_timestamp(), decided_at = clock_timestamp(), operation = $1
          from picked p
          where a.priority = p.priority and a.seq = p.seq and p.key_line is null and not p.stops_lane
        ), let_go as (
          update outboxd.set_aside a set state = 'held', reason = 'sent again from its place',
            set_aside_at = clock_timestamp(), operation = $1
          from picked p
          where a.priority = p.priority and a.seq = p.seq and (p.key_line is not null or p.stops_lane)
        ), noted as (
          update outboxd.operations set messages = messages + (select count(*) from picked) where id = $1
        )
        select count(*) from picked";

    /// What waits behind it is not held by it any more.
    DISCARD = "
        with picked as materialized (
          select a.priority, a.seq from unnest($2::smallint[], $3::bigint[]) as wanted (priority, seq)
          join outboxd.set_aside a using (priority, seq)
          where outboxd.durable() and a.state in ('parked', 'held')
          order by a.seq for update of a
        ), discarded as (
          update outboxd.set_aside a set state = 'discarded', key_line = null, stops_lane = false,
            set_aside_at = clock_timestamp(), decided_at = clock_timestamp(), operation = $1
          from picked p where a.priority = p.priority and a.seq = p.seq
        ), noted as (
          update outboxd.operations set messages = messages + (select count(*) from picked) where id = $1
        )
        select count(*) from picked";
}

/// One of them with all that is known.
#[derive(Clone, Debug, Serialize)]
pub struct Story {
    #[serde(flatten)]
    pub entry: Entry,
    pub idempotency_key: Option<String>,
    pub created_at: chrono::DateTime<chrono::Utc>,
    /// Later messages of its key wait until it is decided,
    pub holds_key: bool,
    /// or all of its lane.
    pub stops_lane: bool,
    /// Those that wait for its key.
    pub held_behind: i64,
    #[serde(flatten)]
    pub content: Content,
    /// Who sent it again or discarded it last.
    pub decided: Option<Decided>,
}

/// Those behind that `seq` that fit the filter, in the order of their inserts.
pub async fn list(
    client: &Connection,
    filter: &Filter,
    behind: i64,
    limit: i64,
) -> Result<Vec<Entry>, PgError> {
    // What is in the outbox has not come to any group.
    if filter.group.is_some() {
        return Ok(Vec::new());
    }
    let rows = client
        .query(
            LIST,
            &[
                &filter.states,
                &filter.topic,
                &filter.key,
                &filter.event_type,
                &filter.error,
                &filter.since,
                &filter.until,
                &behind,
                &limit,
            ],
        )
        .await?;
    Ok(rows.iter().map(entry).collect())
}

/// The `seq` of a message that may have gone since: a derived id tells by itself.
pub async fn seq_of(client: &Connection, id: Uuid) -> Result<i64, PgError> {
    let states = ["scheduled", "held", "parked", "discarded", "replayed"];
    if let Some(Entry { place: Place::Aside { seq, .. }, .. }) = find(client, &states, &[id]).await?.pop() {
        return Ok(seq);
    }
    Ok(inspect::tag(client).await?.seq_of(id).unwrap_or(0))
}

/// Those of these ids, own or derived, that are in one of these states.
pub async fn find(client: &Connection, states: &[&str], ids: &[Uuid]) -> Result<Vec<Entry>, PgError> {
    let tag: Tag = inspect::tag(client).await?;
    let seqs: Vec<i64> = ids.iter().filter_map(|id| tag.seq_of(*id)).collect();
    let rows = client.query(FIND, &[&states, &seqs, &ids]).await?;
    // Another outbox's id decodes to a `seq` as well.
    let is_meant = |row: &&Row| ids.contains(&row.get(0)) || ids.contains(&row.get(9));
    Ok(rows.iter().filter(is_meant).map(entry).collect())
}

/// All about one, if it is still there.
pub async fn show(client: &Connection, entry: &Entry) -> Result<Option<Story>, PgError> {
    let Place::Aside { priority, seq } = entry.place else { return Ok(None) };
    let row = client.query_opt(DETAIL, &[&priority, &seq]).await?;
    Ok(row.map(|row| Story {
        entry: entry.clone(),
        idempotency_key: row.get(0),
        created_at: row.get(1),
        holds_key: row.get(2),
        stops_lane: row.get(3),
        held_behind: row.get(4),
        content: Content {
            headers: row.get::<_, Value>(5),
            payload: row.get::<_, Option<Vec<u8>>>(6).into(),
        },
        decided: Decided::of(&row, 7),
    }))
}

/// Carries a decision out, in one transaction; says for how many: those that were decided meanwhile are left alone.
pub async fn decide(
    client: &Connection,
    decision: Decision,
    operation: i64,
    places: &[Place],
) -> Result<i64, PgError> {
    let (priorities, seqs): (Vec<i16>, Vec<i64>) = places.iter().filter_map(Place::aside).unzip();
    let statement = match decision {
        Decision::Replay => REPLAY,
        Decision::Discard => DISCARD,
    };
    Ok(client.query_one(statement, &[&operation, &priorities, &seqs]).await?.get(0))
}

fn entry(row: &Row) -> Entry {
    Entry {
        id: row.get(0),
        state: row.get(1),
        group: None,
        topic: row.get(2),
        key: row.get(3),
        event_type: row.get(4),
        error: row.get(5),
        since: row.get(6),
        place: Place::Aside { priority: row.get(7), seq: row.get(8) },
    }
}
