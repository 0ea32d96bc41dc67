//! Re-basing the cursors on another database: `outboxd rebase`. As the owner of the schema.
//!
//! All of it is one transaction, however many messages there are: whatever ends it halfway, nothing has happened but
//! that the sequence stands higher, and it can be run again. Its snapshot is the new `done`. That is taken before the
//! transaction has an xid of its own: later, its own rows would count as visible in it, and so as published.

use serde::Serialize;
use tokio_postgres::{Client, IsolationLevel, Transaction};

use super::connect::PgError;
use super::sql::statements;
use crate::domain::priority::{NotAPriority, Priority};
use crate::domain::rebase::{Lease, Move, Raise, Refusal, Standing};
use crate::failpoint;

/// Of message `m` and its lane `l`, as the dump or the copy brought them: is it published, or has it left the line?
///
/// A number that was handed out again (`top` is of the time before) belongs to a message that is younger than the
/// lane's last move. Clocks that disagree can make an old one look so: it is published once more then.
macro_rules! has_passed {
    () => {
        "(m.seq <= l.top and m.created_at <= l.moved_at
            and (pg_visible_in_snapshot(m.txid, l.done)
              or (l.target is not null and m.seq <= l.published_seq and pg_visible_in_snapshot(m.txid, l.target)))
          or exists (select from outboxd.set_aside a
            where a.priority = m.priority and a.seq = m.seq and a.created_at = m.created_at)) is true"
    };
}

statements! {
    STANDING = "
        select pg_is_in_recovery(), o.system_identifier, c.system_identifier,
          pg_snapshot_xmax(pg_current_snapshot())::text,
          greatest(
            (select max(pg_snapshot_xmax(coalesce(target, done))) from outboxd.lanes),
            (select (txid::text::bigint + 1)::text::xid8 from outboxd.messages order by txid desc limit 1))::text,
          (select s.subname::text from pg_subscription s
            where s.subdbid = (select oid from pg_database where datname = current_database())
              and (s.subenabled or exists (select from pg_stat_subscription w where w.subid = s.oid and w.pid is not null))
              and exists (select from pg_subscription_rel r join pg_class t on t.oid = r.srrelid
                where r.srsubid = s.oid and t.relnamespace = 'outboxd'::regnamespace)
            order by s.subname limit 1)
        from outboxd.outbox o, pg_control_system() c";

    LEASES = "
        select priority, coalesce(agent, owner::text), lease_expires_at
        from outboxd.lanes where owner is not null and lease_expires_at > clock_timestamp() order by priority desc";

    LAST_SEQ = "select coalesce(pg_sequence_last_value('outboxd.messages_seq'), 0)";

    /// The highest number that was ever handed out, as far as anything here knows.
    HIGHEST_SEQ = "
        select max(greatest(l.top, l.floor,
          (select max(seq) from outboxd.messages m where m.priority = l.priority),
          (select max(seq) from outboxd.set_aside a where a.priority = l.priority)))
        from outboxd.lanes l";

    DRAW = "select max(nextval('outboxd.messages_seq')) from generate_series(1, $1::bigint)";

    SET = "select setval('outboxd.messages_seq', $1::bigint)";

    COUNTS = concat!("
        select l.priority, count(m.seq) filter (where ", has_passed!(), "), count(m.seq) filter (where not ", has_passed!(), ")
        from outboxd.lanes l left join outboxd.messages m using (priority)
        group by l.priority order by l.priority desc");

    DONE = "select pg_current_snapshot()::text";

    LOCK_LANES = "select from outboxd.lanes for update";

    /// A message whose number belongs to another one that is set aside gets one of its own.
    RENUMBER = "
        update outboxd.messages m set seq = nextval('outboxd.messages_seq')
        from outboxd.set_aside a where a.priority = m.priority and a.seq = m.seq and a.created_at <> m.created_at";

    /// What has passed gets an xid that everything sees, the rest one that `done` does not.
    RELABEL = concat!("
        update outboxd.messages m set txid = case when ", has_passed!(), " then '3'::xid8 else pg_current_xact_id() end
        from outboxd.lanes l where l.priority = m.priority");

    /// They answer for the messages of their numbers from now on: a message that has passed is visible in '4:4:' and
    /// not in '3:3:'.
    RELABEL_PUBLICATIONS = "update outboxd.publications set done = '3:3:', target = '4:4:' where target::text <> '4:4:'";

    END_PUBLICATIONS = "
        insert into outboxd.publications
          (priority, \"window\", done, target, first_seq, last_seq, messages, agent, began_at, ended_at, offsets)
        select priority, \"window\" + 1, '3:3:', '4:4:', publishing_first_seq, publishing_last_seq, publishing_messages,
          agent, publishing_began_at, greatest(moved_at, publishing_began_at), publishing_offsets
        from outboxd.lanes where publishing_messages > 0";

    MOVE_CURSORS = "
        update outboxd.lanes set owner = null, agent = null, lease_expires_at = null, epoch = epoch + 1,
          \"window\" = \"window\" + 1, done = $1::text::pg_snapshot, floor = 0, candidate_floor = null,
          candidate_xid = null, target = null, published_seq = 0,
          top = greatest(top, coalesce(pg_sequence_last_value('outboxd.messages_seq'), 0)), moved_at = clock_timestamp(),
          publishing_done = null, publishing_first_seq = null, publishing_last_seq = null, publishing_messages = 0,
          publishing_began_at = null, publishing_offsets = '{}'
        where outboxd.durable()";

    SETTLE_IN = "
        update outboxd.outbox set system_identifier = c.system_identifier from pg_control_system() c
        where outboxd.durable()";
}

/// The work takes as long as it takes. A `set` takes no snapshot and no xid.
const UNBOUNDED: &str = "
    set local statement_timeout = 0; set local lock_timeout = 0; set local idle_in_transaction_session_timeout = 0";

/// Why the cursors are as they were.
#[derive(Debug, thiserror::Error)]
pub enum RebaseError {
    #[error("{0}")]
    Pg(#[from] PgError),
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl From<tokio_postgres::Error> for RebaseError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Pg(error.into())
    }
}

/// What a rebase would do with the messages of a lane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LaneCount {
    pub lane: Priority,
    /// They stay published, or set aside.
    pub passed: i64,
    pub to_publish: i64,
}

/// What a rebase would do.
#[derive(Clone, Debug)]
pub struct Preview {
    pub standing: Standing,
    /// After a restore.
    pub lanes: Vec<LaneCount>,
    pub last_seq: i64,
    /// Not below `last_seq`.
    pub raised_to: i64,
}

/// Looks, and changes nothing.
pub async fn preview(client: &mut Client, moved: Move) -> Result<Preview, RebaseError> {
    let standing = standing(client).await?;
    standing.allows(moved)?;
    let transaction = client.build_transaction().read_only(true).start().await?;
    transaction.batch_execute(UNBOUNDED).await?;
    let (last_seq, highest) = sequence(&transaction).await?;
    let mut lanes = Vec::new();
    if moved == Move::Restore {
        for row in transaction.query(COUNTS, &[]).await? {
            lanes.push(LaneCount { lane: priority(row.get(0))?, passed: row.get(1), to_publish: row.get(2) });
        }
    }
    transaction.commit().await?;
    Ok(Preview { standing, lanes, last_seq, raised_to: highest.max(last_seq) })
}

/// Lets the relay go on in this database, with every message that is committed here and not published.
pub async fn rebase(client: &mut Client, moved: Move) -> Result<(), RebaseError> {
    standing(client).await?.allows(moved)?;
    match moved {
        Move::Upgrade => {
            client.execute(SETTLE_IN, &[]).await?;
        }
        Move::Restore => {
            raise_sequence(client).await?;
            move_cursors(client).await?;
        }
    }
    Ok(())
}

async fn standing(client: &Client) -> Result<Standing, PgError> {
    let row = client.query_one(STANDING, &[]).await?;
    Ok(Standing {
        is_standby: row.get(0),
        written_in: row.get(1),
        cluster: row.get(2),
        next_xid: xid(row.get(3))?,
        reached_xid: xid(row.get(4))?,
        leases: leases(client).await?,
        subscription: row.get(5),
    })
}

async fn leases(client: &impl tokio_postgres::GenericClient) -> Result<Vec<Lease>, PgError> {
    let rows = client.query(LEASES, &[]).await?;
    rows.iter()
        .map(|row| Ok(Lease { lane: priority(row.get(0))?, agent: row.get(1), expires_at: row.get(2) }))
        .collect()
}

/// Where the sequence stands, and the highest number that was handed out.
async fn sequence(client: &impl tokio_postgres::GenericClient) -> Result<(i64, i64), PgError> {
    let highest: Option<i64> = client.query_one(HIGHEST_SEQ, &[]).await?.get(0);
    let last_seq = client.query_one(LAST_SEQ, &[]).await?.get(0);
    Ok((last_seq, highest.unwrap_or(0)))
}

/// What is inserted from now on has a number that nobody had: a logical copy does not carry the sequence.
async fn raise_sequence(client: &Client) -> Result<(), PgError> {
    loop {
        let (last_seq, highest) = sequence(client).await?;
        match Raise::between(last_seq, highest) {
            Raise::Nothing => return Ok(()),
            Raise::Draw(count) => client.query_one(DRAW, &[&count]).await?,
            Raise::Set(seq) => client.query_one(SET, &[&seq]).await?,
        };
    }
}

async fn move_cursors(client: &mut Client) -> Result<(), RebaseError> {
    // What commits from here on is not touched: it has an xid of this cluster that `done` does not see.
    let transaction =
        client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).start().await?;
    transaction.batch_execute(UNBOUNDED).await?;
    let done: String = transaction.query_one(DONE, &[]).await?.get(0);
    // Nobody takes a lane, and no late write of a former owner gets in, until the epochs are raised.
    transaction.execute(LOCK_LANES, &[]).await?;
    if let Some(lease) = leases(&transaction).await?.into_iter().next() {
        return Err(Refusal::Owned(lease).into());
    }
    relabel(&transaction).await?;
    failpoint::hit("rebase-after-messages");
    transaction.execute(MOVE_CURSORS, &[&done]).await?;
    transaction.execute(SETTLE_IN, &[]).await?;
    failpoint::hit("rebase-before-commit");
    transaction.commit().await?;
    Ok(())
}

async fn relabel(transaction: &Transaction<'_>) -> Result<(), PgError> {
    for sql in [RENUMBER, RELABEL, RELABEL_PUBLICATIONS, END_PUBLICATIONS] {
        transaction.execute(sql, &[]).await?;
    }
    Ok(())
}

fn xid(text: &str) -> Result<u64, PgError> {
    text.parse().map_err(|_| PgError::Setup(format!("`{text}` is not a transaction id")))
}

fn priority(number: i16) -> Result<Priority, PgError> {
    number.try_into().map_err(|error: NotAPriority| PgError::Setup(error.to_string()))
}
