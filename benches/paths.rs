//! The pure paths that every message takes.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use outboxd::domain::acks::AckPrefix;
use outboxd::domain::cursor::{Cursor, FloorCandidate};
use outboxd::domain::identity::{self, Tag};
use outboxd::domain::message::Message;
use outboxd::domain::snapshot::Snapshot;
use uuid::Uuid;

const TICKETS: u64 = 10_000;

fn message() -> Message {
    let id = Tag::new(7, 7).message_id(chrono::DateTime::UNIX_EPOCH, 7);
    Message {
        seq: 7,
        message_id: id,
        own_id: None,
        topic: "orders".into(),
        key: Some("customer-7".into()),
        payload: Some(vec![b'x'; 300]),
        unread: None,
        headers: vec![("content-type".into(), "application/json".into())],
        event_type: Some("OrderPlaced".into()),
        idempotency_key: None,
        is_scheduled: false,
        dispatch: None,
    }
}

fn identities(criterion: &mut Criterion) {
    let message = message();
    criterion.bench_function("headers of a record", |bencher| {
        bencher.iter(|| {
            black_box(&message).each_header(|name, value| {
                black_box((name, value));
            });
        });
    });
    let (id, payload) = (Uuid::from_u128(7), [b'x'; 300]);
    criterion.bench_function("sum of a record of 300 bytes", |bencher| {
        bencher.iter(|| identity::sum(black_box(id), "orders", Some(b"customer-7"), Some(&payload)));
    });
}

fn acknowledgements(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("acknowledgements");
    group.throughput(Throughput::Elements(TICKETS));
    // As eight partitions answer: each in order, all of them mixed.
    let mixed: Vec<u64> = (0..8).flat_map(|partition| (partition..TICKETS).step_by(8)).collect();
    for (name, tickets) in [("in order", (0..TICKETS).collect()), ("of eight partitions", mixed)] {
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                AckPrefix::default,
                |mut acks| {
                    for ticket in &tickets {
                        acks.ack(*ticket);
                    }
                    acks.get()
                },
                BatchSize::SmallInput,
            );
        });
    }
}

fn cursors(criterion: &mut Criterion) {
    // Hundreds of sessions idle in transaction.
    let text =
        format!("1000:9000:{}", (0..300).map(|n| (1000 + n * 20).to_string()).collect::<Vec<_>>().join(","));
    criterion.bench_function("a snapshot with 300 transactions, parsed", |bencher| {
        bencher.iter(|| black_box(text.as_str()).parse::<Snapshot>());
    });
    let snapshot: Snapshot = text.parse().unwrap_or_else(|_| Snapshot::nothing());
    let cursor = Cursor { target: Some(snapshot.clone()), ..Cursor::new() };
    let candidate = FloorCandidate { last_seq: 100, next_xid: 9_100 };
    criterion.bench_function("a cursor turned to the next window", |bencher| {
        bencher.iter(|| black_box(&cursor).turn(Some(snapshot.clone()), candidate));
    });
}

criterion_group!(paths, identities, acknowledgements, cursors);
criterion_main!(paths);
