//! Failures that an operator has tried again. Where a group's messages wait behind a failed one of their key, so do these:
//! the first of a key is due, the others wait behind it, in the order in which they failed.

use std::collections::{BTreeMap, HashMap, HashSet};

use tokio_postgres::{IsolationLevel, Transaction};
use uuid::Uuid;

use super::connect::{Connection, PgError};
use super::held;
use super::sql::statements;

statements! {
    PICK = "
        select f.consumer_group, f.message_id, f.place, f.topic, case when coalesce(g.holds_keys, true) then f.key_digest end
        from unnest($1::text[], $2::uuid[]) as w (consumer_group, message_id)
        join outboxd.failures f using (consumer_group, message_id)
        left join outboxd.groups g on g.name = f.consumer_group
        where outboxd.durable() and f.state in ('due', 'dead', 'discarded')
        order by 1, 2 for update of f";

    /// With the head that each key has from now on: it may have had one before. Nobody adds or frees until this commits.
    HOLD = "
        insert into outboxd.held_keys as h (consumer_group, topic, key_digest, message_id)
        select w.consumer_group, w.topic, w.key_digest, w.message_id
        from unnest($1::text[], $2::text[], $3::bytea[], $4::uuid[]) as w (consumer_group, topic, key_digest, message_id)
        order by 1, 2, 3
        on conflict (consumer_group, topic, key_digest) do update set message_id = h.message_id
        returning consumer_group, topic, key_digest, message_id";

    /// Of these heads the ones that only wait for their time. One that is just being given out, or decided about, stays.
    WAITING = "
        select f.consumer_group, f.message_id, f.place
        from unnest($1::text[], $2::uuid[]) as w (consumer_group, message_id)
        join outboxd.failures f using (consumer_group, message_id)
        where f.state = 'due' for update of f skip locked";

    /// Those of `$4` are due at once, the others wait; what they have cost so far is forgiven.
    REOPEN = "
        with picked as (
          select * from unnest($2::text[], $3::uuid[], $4::boolean[]) as w (consumer_group, message_id, is_due)
        ), reopened as (
          update outboxd.failures f set state = case when p.is_due then 'due' else 'held' end, reason = null,
            next_attempt_at = case when p.is_due then clock_timestamp() end,
            forgiven = case when f.state = 'due' then f.forgiven else f.attempts end, undelivered = 0, copied_at = null,
            operation = $1, changed_at = clock_timestamp()
          from picked p where f.consumer_group = p.consumer_group and f.message_id = p.message_id
        )
        update outboxd.operations set messages = messages + (select count(*) from picked) where id = $1";

    STEP_BACK = "
        update outboxd.failures f set state = 'held', next_attempt_at = null, changed_at = clock_timestamp()
        from unnest($1::text[], $2::uuid[]) as w (consumer_group, message_id)
        where f.consumer_group = w.consumer_group and f.message_id = w.message_id";
}

/// A group's topic, and a key in it.
type Key = (String, String, Vec<u8>);

struct Picked {
    group: String,
    message_id: Uuid,
    place: i64,
    /// If others of its key wait for it.
    key: Option<Key>,
}

/// Those that have changed meanwhile are left alone; says how many were not.
pub(super) async fn reopen(
    client: &mut Connection,
    operation: i64,
    groups: &[&str],
    ids: &[Uuid],
) -> Result<i64, PgError> {
    let transaction =
        client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?;
    let rows = transaction.query(PICK, &[&groups, &ids]).await?;
    let picked: Vec<Picked> = rows
        .iter()
        .map(|row| Picked {
            group: row.get(0),
            message_id: row.get(1),
            place: row.get(2),
            key: row.get::<_, Option<Vec<u8>>>(4).map(|digest| (row.get(0), row.get(3), digest)),
        })
        .collect();
    let heads = hold(&transaction, &picked).await?;
    let is_due = |one: &Picked| one.key.as_ref().is_none_or(|key| heads.get(key) == Some(&one.message_id));
    let groups: Vec<&str> = picked.iter().map(|one| &*one.group).collect();
    let ids: Vec<Uuid> = picked.iter().map(|one| one.message_id).collect();
    let are_due: Vec<bool> = picked.iter().map(is_due).collect();
    transaction.execute(REOPEN, &[&operation, &groups, &ids, &are_due]).await?;
    transaction.commit().await?;
    Ok(i64::try_from(picked.len()).unwrap_or(i64::MAX))
}

/// Holds their keys. Returns the head of each: the first of them, unless an earlier one is at the head, or one that is
/// under way.
async fn hold(transaction: &Transaction<'_>, picked: &[Picked]) -> Result<BTreeMap<Key, Uuid>, PgError> {
    let mut first: BTreeMap<&Key, &Picked> = BTreeMap::new();
    for one in picked {
        let Some(key) = &one.key else { continue };
        let first = first.entry(key).or_insert(one);
        if one.place < first.place {
            *first = one;
        }
    }
    if first.is_empty() {
        return Ok(BTreeMap::new());
    }
    let keys = first.keys().map(|(group, topic, digest)| (&**group, &**topic, &**digest));
    let (groups, topics, digests) = held::columns(keys);
    let ids: Vec<Uuid> = first.values().map(|first| first.message_id).collect();
    let rows = transaction.query(HOLD, &[&groups, &topics, &digests, &ids]).await?;
    let mut heads: BTreeMap<Key, Uuid> =
        rows.iter().map(|row| ((row.get(0), row.get(1), row.get(2)), row.get(3))).collect();
    let (groups, ids): (Vec<&str>, Vec<Uuid>) =
        heads.iter().map(|((group, ..), head)| (&**group, *head)).unzip();
    let rows = transaction.query(WAITING, &[&groups, &ids]).await?;
    let waiting: HashMap<(&str, Uuid), i64> =
        rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect();
    let picked: HashSet<(&str, Uuid)> = picked.iter().map(|one| (&*one.group, one.message_id)).collect();
    let (mut led, mut behind) = (Vec::new(), Vec::new());
    for (key, first) in first {
        let Some(head) = heads.get_mut(key).filter(|head| **head != first.message_id) else { continue };
        let former = (&*first.group, *head);
        let is_picked = picked.contains(&former);
        if !is_picked && waiting.get(&former).is_none_or(|place| *place < first.place) {
            continue;
        }
        if !is_picked {
            behind.push(former);
        }
        *head = first.message_id;
        led.push((key, first.message_id));
    }
    let (groups, ids): (Vec<&str>, Vec<Uuid>) = behind.into_iter().unzip();
    transaction.execute(STEP_BACK, &[&groups, &ids]).await?;
    held::lead(
        transaction,
        led.iter().map(|((group, topic, digest), head)| ((&**group, &**topic, &**digest), *head)),
    )
    .await?;
    Ok(heads)
}
