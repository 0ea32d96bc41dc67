//! Copies of dead letters: complete for Spring's tools, and untouched.

use super::{PATIENCE, Scene};
use crate::support::eventually;

#[tokio::test]
async fn a_dead_letter_is_copied_as_it_was_with_springs_headers_in_binary() {
    let scene = Scene::new().await;
    let topic = format!("{}-dlt", scene.topic);
    let (key, payload): (&[u8], &[u8]) = (&[0, 0xff, b'k'], &[0xfe, 0, 1]);
    let values: Vec<Option<&[u8]>> = vec![Some(&[0xff, 0]), Some(b"first"), Some(b"second"), None];
    scene
        .database
        .execute(
            "insert into outboxd.failures (consumer_group, message_id, state, reason, topic, partition, \"offset\",
               recorded_at, key, payload, header_names, header_values, attempts, error)
             values ($1, gen_random_uuid(), 'dead', 'permanent', $2, 3, 77, to_timestamp(1790000000.123), $3, $4,
               '{trace,tenant,tenant,none}', $5, 20, 'no stock')",
            &[&scene.group, &scene.topic, &key, &payload, &values],
        )
        .await;
    let made = scene.outboxd().set(&format!("topics.\"{topic}\".create = {{ partitions = 1 }}"));
    let _producer = scene.with(made, "kind = \"log\"", &["retry.dead_letter_topic = true"]).producer();
    let copied = "select count(*) from outboxd.failures where copied_at is not null";
    eventually("it is copied", PATIENCE, async || scene.database.count(copied).await == 1).await;
    let records = scene.kafka.read_all(&topic).await;
    assert_eq!(records.len(), 1);
    assert_eq!((records[0].key.as_deref(), records[0].payload.as_deref()), (Some(key), Some(payload)));
    let header = |name: &str, value: &[u8]| (name.to_owned(), Some(value.to_vec()));
    let expected = [
        header("trace", &[0xff, 0]),
        header("tenant", b"first"),
        header("tenant", b"second"),
        ("none".to_owned(), None),
        header("kafka_dlt-original-topic", scene.topic.as_bytes()),
        header("kafka_dlt-original-partition", &3_i32.to_be_bytes()),
        header("kafka_dlt-original-offset", &77_i64.to_be_bytes()),
        header("kafka_dlt-original-timestamp", &1_790_000_000_123_i64.to_be_bytes()),
        header("kafka_dlt-original-timestamp-type", b"CreateTime"),
        header("kafka_dlt-original-consumer-group", scene.group.as_bytes()),
        header("kafka_dlt-exception-fqcn", b"outboxd.permanent"),
        header("kafka_dlt-exception-message", b"no stock"),
    ];
    assert_eq!(records[0].headers, expected);
}
