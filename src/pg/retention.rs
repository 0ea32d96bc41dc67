//! What may go: the age of a range of the outbox, the groups that it waits for, and what goes row by row.

use std::time::Duration;

use tokio_postgres::Row;

use super::connect::{Connection, PgError};
use super::leaves;
use super::sql::{millis, statements};
use crate::domain::leaves::Leaf;

statements! {
    NOW = "select clock_timestamp()::text";

    /// Below it, all rows are published but those of transactions that were in progress. Nothing if a lane stands still
    /// on another cluster's cursor.
    COVERED = "select min(floor) from outboxd.lanes";

    /// Since the newest publication of the range ended or, when nothing tells, since its newest message.
    AGE = "
        select extract(epoch from clock_timestamp() - greatest(
          (select max(newest.created_at) from (values (-1::smallint), (0::smallint), (1::smallint)) as lanes (priority)
            cross join lateral (select created_at from outboxd.messages m
              where m.priority = lanes.priority and m.seq >= $1 and m.seq < $2 order by m.seq desc limit 1) newest),
          (select max(p.ended_at) from (values (-1::smallint), (0::smallint), (1::smallint)) as lanes (priority)
            join outboxd.publications p on p.priority = lanes.priority and p.last_seq >= $1 and p.first_seq < $2),
          (select max(clock_timestamp()) from outboxd.lanes
            where publishing_last_seq >= $1 and publishing_first_seq < $2)))::float8";

    /// Groups that subscribe to a topic of the range and are not past what was published of it. A partition without a
    /// position is one where it has handled nothing.
    BEHIND = "
        select g.name, published.topic, published.partition, max(published.\"offset\"), position.next_offset,
          min(published.\"offset\"), g.cluster_id
        from (
          select split_part(o.place, '/', 1) as topic, split_part(o.place, '/', 2)::integer as partition,
            o.\"offset\"::bigint as \"offset\"
          from (
            select p.offsets from (values (-1::smallint), (0::smallint), (1::smallint)) as lanes (priority)
              join outboxd.publications p on p.priority = lanes.priority and p.last_seq >= $1 and p.first_seq < $2
            union all
            select publishing_offsets from outboxd.lanes where publishing_last_seq >= $1 and publishing_first_seq < $2
          ) published (offsets)
          cross join lateral jsonb_each_text(published.offsets) as o (place, \"offset\")
        ) published
        join outboxd.groups g on published.topic = any(g.topics)
        left join outboxd.group_positions position on position.consumer_group = g.name
          and position.cluster_id = g.cluster_id and position.topic = published.topic
          and position.partition = published.partition
        where position.next_offset is null or position.next_offset <= published.\"offset\"
        group by g.name, g.cluster_id, published.topic, published.partition, position.next_offset
        order by g.name, published.topic, published.partition";

    COUNT = "select count(*) from outboxd.messages where priority between -1 and 1 and seq >= $1 and seq < $2";

    OLDEST = "
        select extract(epoch from clock_timestamp() - min(oldest.created_at))::float8
        from (values (-1::smallint), (0::smallint), (1::smallint)) as lanes (priority)
        cross join lateral (select created_at from outboxd.messages m
          where m.priority = lanes.priority and m.seq >= $1 and m.seq < $2 order by m.seq limit 1) oldest";

    /// Per lane the next rows of the default partition that its floor covers.
    IN_DEFAULT = "
        select l.priority, min(next.seq), max(next.seq) + 1 from outboxd.lanes l
        cross join lateral (select seq from only outboxd.messages_default m
          where m.priority = l.priority and m.seq >= $1 and m.seq <= l.floor order by m.seq limit $2) next
        group by l.priority";

    DELETE_PUBLISHED = "select outboxd.delete_published($1, $2, $3)";

    /// What retention still asks about stays: publications of messages that are kept.
    FORGET_PUBLICATIONS = "
        delete from outboxd.publications where (priority, \"window\") in (
          select priority, \"window\" from outboxd.publications
          where ended_at < clock_timestamp() - $1::bigint * interval '1 ms' and last_seq < $2
          order by ended_at limit $3)";

    /// Of those that lanes are past.
    FORGET_DECIDED = "
        delete from outboxd.set_aside where (priority, seq) in (
          select a.priority, a.seq from outboxd.set_aside a join outboxd.lanes l using (priority)
          where a.decided_at < clock_timestamp() - $1::bigint * interval '1 ms' and a.seq <= l.floor
          order by a.decided_at limit $2)";

    OLDEST_IN_DEFAULT = "
        select min(oldest.seq) from (values (-1::smallint), (0::smallint), (1::smallint)) as lanes (priority)
        cross join lateral (select seq from only outboxd.messages_default m
          where m.priority = lanes.priority order by m.seq limit 1) oldest";
}

/// A group that is not past a range yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behind {
    pub group: String,
    pub topic: String,
    pub partition: i32,
    /// The highest offset found that it has to pass.
    pub offset: i64,
    /// `None`: it has no position there.
    pub next_offset: Option<i64>,
    /// The lowest of these offsets: in a topic that was made anew they begin anew.
    pub lowest: i64,
    /// Where it reads.
    pub cluster_id: String,
}

/// Rows of a lane in the default partition.
#[derive(Clone, Copy, Debug)]
pub struct Stray {
    pub priority: i16,
    pub range: Leaf,
}

/// The database's clock, as it writes it.
pub async fn now(client: &Connection) -> Result<String, PgError> {
    Ok(client.query_one(NOW, &[]).await?.get(0))
}

/// Up to this `seq` every lane has published all but what was in progress.
pub async fn covered(client: &Connection) -> Result<i64, PgError> {
    Ok(client.query_one(COVERED, &[]).await?.get::<_, Option<i64>>(0).unwrap_or(0))
}

/// How long ago something of this range was published or, if nothing tells, inserted. `None`: there is nothing.
pub async fn age(client: &Connection, range: Leaf) -> Result<Option<Duration>, PgError> {
    seconds(client.query_one(AGE, &[&range.from, &range.to]).await?.get(0))
}

/// How long ago the first message of this range was inserted.
pub async fn oldest(client: &Connection, range: Leaf) -> Result<Option<Duration>, PgError> {
    seconds(client.query_one(OLDEST, &[&range.from, &range.to]).await?.get(0))
}

#[allow(clippy::unnecessary_wraps, reason = "reads as the answer that it is")]
fn seconds(age: Option<f64>) -> Result<Option<Duration>, PgError> {
    // Ahead of the clock, which was set back: as young as can be.
    Ok(age.map(|age| Duration::try_from_secs_f64(age).unwrap_or_default()))
}

/// Who is behind what was published of this range, and where.
pub async fn behind(client: &Connection, range: Leaf) -> Result<Vec<Behind>, PgError> {
    let rows = client.query(BEHIND, &[&range.from, &range.to]).await?;
    let behind = |row: &Row| Behind {
        group: row.get(0),
        topic: row.get(1),
        partition: row.get(2),
        offset: row.get(3),
        next_offset: row.get(4),
        lowest: row.get(5),
        cluster_id: row.get(6),
    };
    Ok(rows.iter().map(behind).collect())
}

/// The group that the oldest published leaf waits for which would have gone otherwise, and that leaf's age.
pub async fn blocked(
    client: &Connection,
    published: Duration,
) -> Result<Option<(Behind, Duration)>, PgError> {
    let covered = covered(client).await?;
    let leaves = leaves::leaves(client).await?;
    for found in leaves.iter().filter(|found| !found.is_empty && found.leaf.to - 1 <= covered) {
        let Some(age) = age(client, found.leaf).await? else { continue };
        if age < published {
            break;
        }
        if let Some(behind) = behind(client, found.leaf).await?.into_iter().next() {
            return Ok(Some((behind, age)));
        }
    }
    Ok(None)
}

pub async fn count(client: &Connection, range: Leaf) -> Result<i64, PgError> {
    Ok(client.query_one(COUNT, &[&range.from, &range.to]).await?.get(0))
}

/// Per lane, up to `limit` rows of the default partition from `from` on that may be published.
pub async fn in_default(client: &Connection, from: i64, limit: i64) -> Result<Vec<Stray>, PgError> {
    let rows = client.query(IN_DEFAULT, &[&from, &limit]).await?;
    Ok(rows
        .iter()
        .map(|row| Stray { priority: row.get(0), range: Leaf { from: row.get(1), to: row.get(2) } })
        .collect())
}

/// Deletes those of them that are published; says how many.
pub async fn delete_published(client: &Connection, stray: Stray) -> Result<i64, PgError> {
    let Stray { priority, range } = stray;
    Ok(client.query_one(DELETE_PUBLISHED, &[&priority, &range.from, &range.to]).await?.get(0))
}

/// The lowest `seq` in the default partition.
pub async fn oldest_in_default(client: &Connection) -> Result<Option<i64>, PgError> {
    Ok(client.query_one(OLDEST_IN_DEFAULT, &[]).await?.get(0))
}

/// Forgets messages that were discarded or sent again as new ones longer ago, up to `limit`; says how many.
pub async fn forget_decided(client: &Connection, discarded: Duration, limit: i64) -> Result<u64, PgError> {
    let discarded = millis(discarded);
    Ok(client.execute(FORGET_DECIDED, &[&discarded, &limit]).await?)
}

/// Forgets, of publications older than `audit` and wholly before `before`, up to `limit`; says how many.
pub async fn forget_publications(
    client: &Connection,
    audit: Duration,
    before: i64,
    limit: i64,
) -> Result<u64, PgError> {
    let audit = millis(audit);
    Ok(client.execute(FORGET_PUBLICATIONS, &[&audit, &before, &limit]).await?)
}
