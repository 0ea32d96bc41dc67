//! The document that describes the API, held against the API by a fuzzer.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::producer;
use crate::support::http::request;

/// Of each kind of case, for each endpoint.
const EXAMPLES: &str = "12";

#[tokio::test]
async fn a_fuzzer_finds_nothing_that_the_document_does_not_say() {
    let (database, kafka, daemon) = producer(&["kafka.producer.\"message.max.bytes\" = 20000"]).await;
    // Something to be found.
    let topic = kafka.topic(1).await;
    super::parked(&database, &topic, &["a", "b"]).await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fuzzer = root.join("target/schemathesis/bin/schemathesis");
    assert!(fuzzer.exists(), "{} is missing: run `make schemathesis`", fuzzer.display());
    let url = format!("http://{}/api/openapi.json", daemon.listen);
    // It keeps what it has seen where it runs.
    let scratch = tempfile::TempDir::new().unwrap();
    let mut command = Command::new(fuzzer);
    command.arg("--config-file").arg(root.join("tests/services/schemathesis.toml")).args(["run", &url]);
    command.args(["--max-examples", EXAMPLES, "--seed", "1", "--no-color"]).current_dir(scratch.path());
    let ran = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let told = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{told}\n{}", String::from_utf8_lossy(&ran.stderr));
    assert!(!daemon.log().contains("panicked") && daemon.is_running());
}

#[tokio::test]
async fn every_path_of_the_document_is_there() {
    let (_database, _, daemon) = producer(&[]).await;
    let document = request(daemon.listen, "GET /api/openapi.json").send().await.json();
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() > 10);
    let operations = || paths.values().flat_map(|methods| methods.as_object().unwrap().values());
    let ids: BTreeSet<&str> =
        operations().map(|operation| operation["operationId"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), operations().count(), "generated clients name functions after these: {ids:?}");
    for (path, methods) in paths {
        let path = path.replace("{id}", "1").replace("{name}", "none");
        for method in methods.as_object().unwrap().keys() {
            let answer = request(daemon.listen, &format!("{} {path}", method.to_uppercase())).send().await;
            assert_ne!(answer.status, 405, "{method} {path}: {answer:?}");
            let nothing = answer.status == 404 && answer.body.contains("there is nothing here");
            assert!(!nothing, "{method} {path}: {answer:?}");
        }
    }
    let has_schema = |name: &str| document["components"]["schemas"][name] != Value::Null;
    assert!(["Problem", "MessageToInsert", "MessageStory", "Entry", "Shown"].into_iter().all(has_schema));
}
