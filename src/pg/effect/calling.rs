//! How the function of an `sql` handler is called.

use deadpool_postgres::Transaction;
use serde_json::{Map, Value};

use super::{Effect, Function};
use crate::domain::delivery::Delivery;

/// What comes behind a call in its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    Commit,
    /// Other calls, which may put their own checks off.
    Others,
}

/// Makes no check wait for the commit.
const CHECK: &str =
    "set constraints all immediate; set local statement_timeout to default; set local enable_seqscan = off";

/// The same, for those put off so far: the setting would outlive the savepoint of a part that is done.
const CHECK_SO_FAR: &str = "savepoint checked; set constraints all immediate; rollback to savepoint checked;
    release savepoint checked; set local statement_timeout to default; set local enable_seqscan = off";

/// Within its time, planned as its database says (our own statements are not), and with everything checked that it has put
/// off until the commit.
pub(super) async fn call(
    transaction: &Transaction<'_>,
    function: Function<'_>,
    effects: &[Effect<'_>],
    then: Then,
) -> Result<(), tokio_postgres::Error> {
    transaction
        .batch_execute(&format!(
            "set local statement_timeout = {}; set local enable_seqscan to default",
            function.statement_timeout
        ))
        .await?;
    let rows = Rows::new(effects.iter().map(|effect| effect.delivery));
    let statement = transaction.prepare_cached(&statement(function)).await?;
    let Rows { group, ids, types, keys, key_bytes, topics, partitions, offsets, .. } = &rows;
    let Rows { attempts, idempotency_keys, headers, payloads, .. } = &rows;
    transaction
        .execute(
            &statement,
            &[
                group,
                ids,
                types,
                keys,
                key_bytes,
                topics,
                partitions,
                offsets,
                attempts,
                idempotency_keys,
                headers,
                payloads,
            ],
        )
        .await?;
    transaction.batch_execute(if then == Then::Commit { CHECK } else { CHECK_SO_FAR }).await
}

/// Once for each delivery, or once with all of them, in order.
fn statement(function: Function<'_>) -> String {
    let deliveries = "select row($1::text, d.id, d.type, d.key, d.key_bytes, d.topic, d.partition, d.\"offset\", \
         d.attempt, d.idempotency_key, d.headers, d.payload)::outboxd.delivery as one, d.place
       from unnest($2::uuid[], $3::text[], $4::text[], $5::bytea[], $6::text[], $7::integer[], $8::bigint[], \
         $9::integer[], $10::text[], $11::jsonb[], $12::bytea[]) with ordinality \
         as d (id, type, key, key_bytes, topic, partition, \"offset\", attempt, idempotency_key, headers, payload, place)";
    let name = function.name;
    if function.takes_batch {
        format!("select {name}((select array_agg(one order by place) from ({deliveries}) all_of_them))")
    } else {
        format!("select {name}(one) from ({deliveries}) all_of_them")
    }
}

/// Deliveries as the statement takes them: a column each.
#[derive(Default)]
struct Rows<'a> {
    group: &'a str,
    ids: Vec<uuid::Uuid>,
    types: Vec<Option<String>>,
    keys: Vec<Option<String>>,
    key_bytes: Vec<Option<&'a [u8]>>,
    topics: Vec<&'a str>,
    partitions: Vec<i32>,
    offsets: Vec<i64>,
    attempts: Vec<i32>,
    idempotency_keys: Vec<Option<&'a str>>,
    headers: Vec<Value>,
    payloads: Vec<Option<&'a [u8]>>,
}

impl<'a> Rows<'a> {
    fn new(deliveries: impl Iterator<Item = &'a Delivery>) -> Self {
        let mut rows = Self::default();
        for delivery in deliveries {
            let record = &delivery.record;
            rows.group = &delivery.group;
            rows.ids.push(delivery.message_id);
            let event_type = delivery.event_type().filter(|event_type| !event_type.contains('\0'));
            rows.types.push(event_type.map(Into::into));
            rows.keys.push(record.key.as_deref().and_then(text));
            rows.key_bytes.push(record.key.as_deref());
            rows.topics.push(&record.topic);
            rows.partitions.push(record.partition);
            rows.offsets.push(record.offset);
            rows.attempts.push(i32::try_from(delivery.attempt).unwrap_or(i32::MAX));
            let idempotency_key = delivery.idempotency_key.as_deref();
            rows.idempotency_keys.push(idempotency_key.filter(|key| !key.contains('\0')));
            rows.headers.push(headers(delivery));
            rows.payloads.push(record.payload.as_deref());
        }
        rows
    }
}

/// Those that are text.
fn headers(delivery: &Delivery) -> Value {
    let headers: Map<String, Value> = delivery
        .record
        .headers
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), Value::String(value.as_deref().and_then(text)?))))
        .filter(|(name, _)| !name.contains('\0'))
        .collect();
    Value::Object(headers)
}

/// As Postgres takes it.
fn text(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok().filter(|text| !text.contains('\0'))
}
