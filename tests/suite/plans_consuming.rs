//! What the consumer asks for each batch goes by primary keys, however much evidence and however many operations there
//! are: a sequential scan would be ten times slower at a million rows, and worse at more.

use outboxd::pg::{pool, sql};
use serde_json::Value;

use crate::support::{Database, Postgres};

const IDS: &str = "array[gen_random_uuid(), gen_random_uuid()]";
const KEYS: &str = "array['a', 'b']";
const NAMESPACES: &str = "array['key', 'key']";
const PLACES: &str = "array[1, 1]";

/// Statement, and its arguments in order.
const PLANNED: &[(&str, &[&str])] = &[
    ("LOOK_UP", &["'g'", IDS, PLACES, "array[1, 2]", "array['a', 'b']::bytea[]", PLACES, "array['t']"]),
    ("CLAIM", &["'g'", NAMESPACES, KEYS, IDS, "array[1, 2]", "gen_random_uuid()", "1000"]),
    ("FIND_KEYS", &["'g'", NAMESPACES, KEYS, "array[1, 2]"]),
    ("RELEASE_CLAIMS", &["'g'", NAMESPACES, KEYS, "array[1, 2]"]),
    ("FINISH_CLAIMS", &["'g'", NAMESPACES, KEYS, "array[1, 2]"]),
    ("FIND_FAILURES", &["array['dead']", IDS]),
    ("MOVE", &["'g'", "'c'", "array['t', 't']", "array[0, 1]", "array[1, 1]", IDS]),
];

/// What grows with all that was ever handled.
const LARGE: &[&str] = &["handled", "idempotency_keys", "failures", "held_keys"];

fn nodes(plan: &Value) -> Vec<&Value> {
    let below = plan["Plans"].as_array().into_iter().flatten();
    std::iter::once(plan).chain(below.flat_map(nodes)).collect()
}

async fn faults(database: &Database) -> Vec<String> {
    let client = database.connect().await;
    client.batch_execute(pool::SESSION).await.unwrap();
    let statements = sql::all();
    let mut faults = Vec::new();
    for mode in ["force_generic_plan", "force_custom_plan"] {
        client.batch_execute(&format!("set plan_cache_mode = {mode}")).await.unwrap();
        for (name, arguments) in PLANNED {
            let found = statements.iter().find(|(known, _)| known == name);
            let (_, text) = found.unwrap_or_else(|| panic!("there is no statement {name} any more"));
            client.batch_execute(&format!("prepare planned as {text}")).await.unwrap();
            let explain = format!("explain (format json) execute planned ({})", arguments.join(", "));
            let plan: Value = client.query_one(&explain, &[]).await.unwrap().get(0);
            client.batch_execute("deallocate planned").await.unwrap();
            let scans = nodes(&plan[0]["Plan"]).into_iter().filter(|node| {
                let relation = node["Relation Name"].as_str().unwrap_or_default();
                let reads_all =
                    ["Seq Scan", "Bitmap Heap Scan"].contains(&node["Node Type"].as_str().unwrap());
                // All between two ids, each compared with each of the batch.
                let condition = node["Index Cond"].as_str().unwrap_or_default();
                let reads_a_range = relation.starts_with("handled") && !condition.contains("(message_id = ");
                (reads_all || reads_a_range) && LARGE.iter().any(|large| relation.starts_with(large))
            });
            faults.extend(
                scans.map(|node| format!("{mode}, {name}: {} {}", node["Node Type"], node["Relation Name"])),
            );
        }
    }
    faults
}

#[tokio::test]
async fn a_batch_is_looked_up_and_completed_by_primary_keys_however_much_was_handled() {
    let database = Postgres::shared().await.database().await;
    let analyze = "analyze outboxd.handled, outboxd.idempotency_keys, outboxd.failures, outboxd.held_keys";
    database
        .batch(
            "select outboxd.make_evidence_leaf(hour - interval '2 hours', hour),
               outboxd.make_evidence_leaf(hour, hour + interval '2 hours')
             from date_trunc('hour', now()) as hour",
        )
        .await;
    // What is kept of such a plan is used while the tables fill.
    database.batch(analyze).await;
    assert_eq!(faults(&database).await, Vec::<String>::new(), "analyzed while empty");
    // In a leaf, in the default partition, and none in the leaf of the next hours.
    database
        .batch(
            "insert into outboxd.handled (consumer_group, message_id, topic, partition, \"offset\", agent, attempt)
             select 'g', case when i % 10 = 0 then gen_random_uuid()
               else outboxd.message_id(date_trunc('hour', now()) - interval '1 hour', i) end, 't', 0, i, 'a', 1
             from generate_series(1, 100000) i;
             insert into outboxd.idempotency_keys
               (consumer_group, namespace, key, message_id, payload_hash, state, owner, done_at)
             select 'g', 'key', 'k' || i, gen_random_uuid(), 0, 'done', gen_random_uuid(), now()
             from generate_series(1, 100000) i;
             insert into outboxd.failures
               (consumer_group, message_id, state, topic, partition, \"offset\", key, header_names, header_values)
             select 'other', gen_random_uuid(), 'held', 't', 0, i, 'k', '{}', '{}' from generate_series(1, 20000) i;
             insert into outboxd.held_keys (consumer_group, topic, key_digest, message_id)
             select 'other', 't', sha256(i::text::bytea), gen_random_uuid() from generate_series(1, 20000) i;",
        )
        .await;
    assert_eq!(faults(&database).await, Vec::<String>::new(), "not analyzed");
    database.batch(analyze).await;
    assert_eq!(faults(&database).await, Vec::<String>::new(), "analyzed");
}
