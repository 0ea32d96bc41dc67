//! Operations that groups do once: idempotency keys and messages' own ids, claimed while they are done, done for good.

use std::collections::HashMap;
use std::time::Duration;

use deadpool_postgres::GenericClient;
use tokio_postgres::Row;
use uuid::Uuid;

use super::connect::PgError;
use super::pool::Lent;
use super::sql::{millis, statements};

statements! {
    /// Takes keys that are free, whose claim has ended, or that an earlier start of this message left behind: it died, or
    /// its partition was taken from it. Sorted, all in one statement, and returned as they are taken: joined to what was
    /// wanted they would be compared each with each.
    CLAIM = "
        insert into outboxd.idempotency_keys as k
          (consumer_group, namespace, key, message_id, payload_hash, state, owner, expires_at)
        select $1, w.namespace, w.key, w.message_id, w.payload_hash, 'claimed', $6,
          clock_timestamp() + $7::bigint * interval '1 ms'
        from unnest($2::text[], $3::text[], $4::uuid[], $5::bigint[]) as w (namespace, key, message_id, payload_hash)
        where (select outboxd.durable()) order by w.namespace, w.key collate \"C\"
        on conflict (consumer_group, namespace, key) do update set message_id = excluded.message_id,
          payload_hash = excluded.payload_hash, claim = excluded.claim, owner = excluded.owner,
          expires_at = excluded.expires_at
        where k.state = 'claimed' and (k.expires_at < clock_timestamp() or k.message_id = excluded.message_id)
        returning k.namespace, k.key, k.claim";

    /// As `CLAIM`, but finished at once: for effects in the same transaction.
    CLAIM_DONE = "
        insert into outboxd.idempotency_keys as k
          (consumer_group, namespace, key, message_id, payload_hash, state, owner, done_at)
        select $1, w.namespace, w.key, w.message_id, w.payload_hash, 'done', $6, clock_timestamp()
        from unnest($2::text[], $3::text[], $4::uuid[], $5::bigint[]) as w (namespace, key, message_id, payload_hash)
        order by w.namespace, w.key collate \"C\"
        on conflict (consumer_group, namespace, key) do update set message_id = excluded.message_id,
          payload_hash = excluded.payload_hash, state = 'done', claim = excluded.claim, owner = excluded.owner,
          expires_at = null, done_at = excluded.done_at
        where k.state = 'claimed' and (k.expires_at < clock_timestamp() or k.message_id = excluded.message_id)";

    FIND_KEYS = "
        select w.namespace, w.key, k.state = 'done', k.message_id, k.payload_hash = w.payload_hash
        from unnest($2::text[], $3::text[], $4::bigint[]) as w (namespace, key, payload_hash)
        cross join lateral (
          select state, message_id, payload_hash from outboxd.idempotency_keys k
          where k.consumer_group = $1 and k.namespace = w.namespace and k.key = w.key limit 1
        ) k";

    /// These two find each key by itself, whatever the planner believes of the table.
    RELEASE_CLAIMS = "
        delete from outboxd.idempotency_keys k
        using unnest($2::text[], $3::text[], $4::bigint[]) as c (namespace, key, claim)
        cross join lateral (
          select ctid from outboxd.idempotency_keys h
          where h.consumer_group = $1 and h.namespace = c.namespace and h.key = c.key and h.claim = c.claim
            and h.state = 'claimed' limit 1
        ) held
        where k.ctid = held.ctid and k.claim = c.claim and k.state = 'claimed'";

    FINISH_CLAIMS = "
        update outboxd.idempotency_keys k set state = 'done', done_at = clock_timestamp(), expires_at = null
        from unnest($2::text[], $3::text[], $4::bigint[]) as c (namespace, key, claim)
        cross join lateral (
          select ctid from outboxd.idempotency_keys h
          where h.consumer_group = $1 and h.namespace = c.namespace and h.key = c.key and h.claim = c.claim
            and h.state = 'claimed' limit 1
        ) held
        where k.ctid = held.ctid and k.claim = c.claim and k.state = 'claimed'";
}

/// An operation as a group knows it: an idempotency key, or a message's own id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationKey {
    pub namespace: &'static str,
    pub key: String,
}

/// A key that this agent holds until it completes or releases it.
#[derive(Clone, Debug)]
pub struct Claim {
    pub key: OperationKey,
    pub number: i64,
}

/// What became of an attempt to claim the keys of a message.
#[derive(Debug)]
pub enum Claimed {
    All(Vec<Claim>),
    /// Another message has done this operation.
    Done {
        by: Uuid,
        same_payload: bool,
    },
    /// Another start holds a key now; nothing is held by this one.
    Busy,
}

/// Who claims.
#[derive(Clone, Copy, Debug)]
pub struct Claimant<'a> {
    pub group: &'a str,
    pub agent: Uuid,
}

/// For which message, and what. Of the messages of one statement no two may want the same key.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub message_id: Uuid,
    pub payload_hash: i64,
    pub keys: &'a [OperationKey],
}

/// Claims all keys of a message or none, for each of these messages, in one statement. A claim that nobody completes
/// ends after `ttl`.
pub async fn claim(
    client: &Lent,
    claimant: Claimant<'_>,
    wanted: &[Wanted<'_>],
    ttl: Duration,
) -> Result<Vec<Claimed>, PgError> {
    let Columns { namespaces, names, ids, hashes } = columns(wanted);
    let ttl = millis(ttl);
    let Claimant { group, agent } = claimant;
    let statement = client.prepare_cached(CLAIM).await?;
    let rows = client.query(&statement, &[&group, &namespaces, &names, &ids, &hashes, &agent, &ttl]).await?;
    let taken: HashMap<(&str, &str), i64> =
        rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect();
    let claims = |message: &Wanted<'_>| -> Vec<Claim> {
        let number = |key: &OperationKey| taken.get(&(key.namespace, &*key.key)).copied();
        let claim = |key: &OperationKey| Some(Claim { key: key.clone(), number: number(key)? });
        message.keys.iter().filter_map(claim).collect()
    };
    let mut claimed: Vec<Claimed> = wanted.iter().map(|message| Claimed::All(claims(message))).collect();
    if taken.len() < names.len() {
        refuse_halves(client, group, wanted, &mut claimed).await?;
    }
    Ok(claimed)
}

/// Gives up what was claimed for messages that do not have all of their keys, and finds out who has the rest.
async fn refuse_halves(
    client: &Lent,
    group: &str,
    wanted: &[Wanted<'_>],
    claimed: &mut [Claimed],
) -> Result<(), PgError> {
    let mut given_up = Vec::new();
    let (mut refused, mut without): (Vec<&mut Claimed>, Vec<Wanted<'_>>) = (Vec::new(), Vec::new());
    for (message, claimed) in wanted.iter().zip(claimed) {
        if let Claimed::All(claims) = claimed
            && claims.len() < message.keys.len()
        {
            given_up.append(claims);
            refused.push(claimed);
            without.push(*message);
        }
    }
    release(client, group, &given_up).await?;
    let done = find_done(client, group, &without).await?;
    for (refused, done) in refused.into_iter().zip(done) {
        *refused = done.unwrap_or(Claimed::Busy);
    }
    Ok(())
}

/// The message that finished this key. If it is this very message, its evidence has gone by retention: state and
/// evidence commit together.
fn done(row: &Row) -> Option<Claimed> {
    row.get::<_, bool>(2).then(|| Claimed::Done { by: row.get(3), same_payload: row.get(4) })
}

/// A row for each key.
struct Columns<'a> {
    namespaces: Vec<&'static str>,
    names: Vec<&'a str>,
    ids: Vec<Uuid>,
    hashes: Vec<i64>,
}

fn columns<'a>(wanted: &[Wanted<'a>]) -> Columns<'a> {
    let pairs = || wanted.iter().flat_map(|message| message.keys.iter().map(move |key| (message, key)));
    Columns {
        namespaces: pairs().map(|(_, key)| key.namespace).collect(),
        names: pairs().map(|(_, key)| &*key.key).collect(),
        ids: pairs().map(|(message, _)| message.message_id).collect(),
        hashes: pairs().map(|(message, _)| message.payload_hash).collect(),
    }
}

fn claim_columns(claims: &[Claim]) -> (Vec<&'static str>, Vec<&str>, Vec<i64>) {
    let namespaces = claims.iter().map(|claim| claim.key.namespace).collect();
    let names = claims.iter().map(|claim| claim.key.key.as_str()).collect();
    let numbers = claims.iter().map(|claim| claim.number).collect();
    (namespaces, names, numbers)
}

/// Gives claims back, so that a later message of that operation can do it.
pub async fn release(client: &impl GenericClient, group: &str, claims: &[Claim]) -> Result<(), PgError> {
    if claims.is_empty() {
        return Ok(());
    }
    let (namespaces, names, numbers) = claim_columns(claims);
    let statement = client.prepare_cached(RELEASE_CLAIMS).await?;
    client.execute(&statement, &[&group, &namespaces, &names, &numbers]).await?;
    Ok(())
}

/// Their operations are done. Says how many of the claims had been lost to another agent.
pub async fn finish(client: &impl GenericClient, group: &str, claims: &[Claim]) -> Result<usize, PgError> {
    if claims.is_empty() {
        return Ok(0);
    }
    let (namespaces, names, numbers) = claim_columns(claims);
    let statement = client.prepare_cached(FINISH_CLAIMS).await?;
    let kept = client.execute(&statement, &[&group, &namespaces, &names, &numbers]).await?;
    Ok(claims.len().saturating_sub(usize::try_from(kept).unwrap_or(usize::MAX)))
}

/// Finishes the keys of messages whose effects are part of this transaction. Unless it is true some were not to be had,
/// and the transaction is to be rolled back.
pub async fn claim_done(
    transaction: &impl GenericClient,
    claimant: Claimant<'_>,
    wanted: &[Wanted<'_>],
) -> Result<bool, PgError> {
    let Columns { namespaces, names, ids, hashes } = columns(wanted);
    if names.is_empty() {
        return Ok(true);
    }
    let Claimant { group, agent } = claimant;
    let statement = transaction.prepare_cached(CLAIM_DONE).await?;
    let taken =
        transaction.execute(&statement, &[&group, &namespaces, &names, &ids, &hashes, &agent]).await?;
    Ok(usize::try_from(taken).is_ok_and(|taken| taken == names.len()))
}

/// Who has done the operation of each of these, if anybody has.
pub async fn find_done(
    client: &impl GenericClient,
    group: &str,
    wanted: &[Wanted<'_>],
) -> Result<Vec<Option<Claimed>>, PgError> {
    let Columns { namespaces, names, hashes, .. } = columns(wanted);
    if names.is_empty() {
        return Ok(wanted.iter().map(|_| None).collect());
    }
    let statement = client.prepare_cached(FIND_KEYS).await?;
    let rows = client.query(&statement, &[&group, &namespaces, &names, &hashes]).await?;
    let rows: HashMap<(&str, &str), &Row> = rows.iter().map(|row| ((row.get(0), row.get(1)), row)).collect();
    let of = |message: &Wanted<'_>| {
        message.keys.iter().find_map(|key| done(rows.get(&(key.namespace, &*key.key))?))
    };
    Ok(wanted.iter().map(of).collect())
}
