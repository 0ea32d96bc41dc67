//! The rooms of `docs/architecture.md`: which may import which.

use std::fs;
use std::path::{Path, PathBuf};

/// Room, and the rooms that it may import besides itself. `main`, `lib` and `app` are not bound.
const ROOMS: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("failpoint", &[]),
    ("failure", &["domain"]),
    ("config", &["domain"]),
    ("telemetry", &["domain", "config"]),
    ("lifecycle", &["domain"]),
    ("outside", &["domain", "config", "telemetry"]),
    ("pg", &["domain", "config", "failure", "telemetry", "failpoint"]),
    ("kafka", &["domain", "config", "failure", "telemetry"]),
    ("http", &["domain", "config", "telemetry", "pg"]),
    ("producer", &["domain", "config", "failure", "telemetry", "failpoint", "pg", "kafka"]),
    ("consumer", &["domain", "config", "failure", "telemetry", "failpoint", "outside", "pg", "kafka"]),
    ("jobs", &["domain", "config", "failure", "telemetry", "failpoint", "outside", "pg", "kafka"]),
    ("agents", &["domain", "config", "failure", "telemetry", "failpoint", "pg", "kafka"]),
    ("bench", &["domain", "config", "failure", "telemetry", "lifecycle", "pg", "kafka"]),
    ("cli", &["app", "bench", "config", "domain", "failure", "telemetry", "pg", "kafka"]),
];

/// Crates that keep out of a room.
const CRATES: &[(&str, &[&str])] = &[
    ("domain", &["tokio", "tracing", "rdkafka"]),
    ("app", &["clap"]),
    ("producer", &["clap", "axum"]),
    ("http", &["rdkafka"]),
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn no_room_reaches_into_one_that_it_may_not_know() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    assert!(files.len() > 30, "the sources were not found");
    let mut wrong = Vec::new();
    for file in files {
        let inside = file.strip_prefix(&src).unwrap().with_extension("");
        let room = inside.iter().next().unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&file).unwrap();
        let allowed = ROOMS.iter().find(|(name, _)| *name == room).map(|(_, allowed)| *allowed);
        assert!(
            allowed.is_some() || matches!(room.as_str(), "main" | "lib" | "app"),
            "{room} is not in the table"
        );
        for (place, _) in text.match_indices("crate::") {
            let imported: String =
                text[place + 7..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let known = ROOMS.iter().any(|(name, _)| *name == imported) || imported == "app";
            if known
                && imported != room
                && allowed.is_some_and(|allowed| !allowed.contains(&imported.as_str()))
            {
                wrong.push(format!("{}: {room} imports {imported}", inside.display()));
            }
        }
        let kept_out = CRATES.iter().find(|(name, _)| *name == room).map_or(&[][..], |(_, crates)| crates);
        wrong.extend(
            kept_out
                .iter()
                .filter(|name| text.contains(&format!("use {name}::")))
                .map(|name| format!("{}: {room} uses {name}", inside.display())),
        );
    }
    assert_eq!(wrong, Vec::<String>::new());
}

/// A lease is timed by the database's clock and by our monotonic one: a step of the host's clock reaches neither.
#[test]
fn the_relay_never_reads_the_clock_of_the_host() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![src.join("producer.rs"), src.join("pg/lanes.rs")];
    for folder in ["producer", "pg/lanes"] {
        sources(&src.join(folder), &mut files);
    }
    assert!(files.len() > 5, "the sources were not found");
    let reads = |file: &PathBuf| {
        let text = fs::read_to_string(file).unwrap();
        ["SystemTime", "Utc::now", "Local::now", "UNIX_EPOCH"].iter().any(|clock| text.contains(clock))
    };
    assert_eq!(files.into_iter().filter(reads).collect::<Vec<_>>(), Vec::<PathBuf>::new());
}
