//! The programs of `docs/languages/`, as they stand there: each writes an order with its message, and takes one back. A
//! language that is not installed is left out, and drivers come from the registries of their languages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Database, PASSWORD, Postgres};

const PAGES: &[&str] = &["csharp", "go", "java", "node", "python", "rust"];

fn page(language: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/languages/{language}.md"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The first block of code on the page.
fn program(page: &str) -> &str {
    let (_, rest) = page.split_once("```").expect("it has a program");
    rest.split_once('\n').unwrap().1.split_once("```").expect("the program ends").0
}

#[test]
fn each_language_has_a_page_with_a_program_that_writes_in_its_own_transaction() {
    let overview = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/languages.md")).unwrap();
    for language in PAGES {
        assert!(overview.contains(&format!("languages/{language}.md")), "{language}");
        let page = page(language);
        let program = program(&page);
        assert!(program.contains("outboxd.enqueue(") && program.contains("insert into orders"), "{language}");
    }
}

/// A folder that is kept, so that a second run has its drivers.
fn folder(language: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/examples").join(language);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn is_installed(tool: &str) -> bool {
    Command::new(tool).arg("--version").output().is_ok() || Command::new(tool).arg("version").output().is_ok()
}

/// Runs lines of shell in the language's folder; what the last one prints.
fn run(database: &Database, language: &str, script: &str) -> String {
    let jdbc = database.app_url().replace(&format!("app:{PASSWORD}@"), "");
    let jdbc = format!("jdbc:{}?user=app&password={PASSWORD}", jdbc.replace("postgres://", "postgresql://"));
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(folder(language))
        .env("DATABASE_URL", database.app_url())
        .env("JDBC_URL", jdbc)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{language}: {said}\n{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

async fn database() -> Database {
    let database = Postgres::shared().await.database().await;
    database
        .batch(
            "create table orders (id integer generated always as identity, customer text);
             grant insert, select on orders to app",
        )
        .await;
    database
}

/// One order, one message with the id that was printed, nothing of what was rolled back.
async fn holds_what_it_printed(database: &Database, language: &str, printed: &str) {
    let rows =
        database.query("select id::text, key, type, idempotency_key from outboxd.message_states", &[]).await;
    assert_eq!(rows.len(), 1, "{language}");
    let text = |column: usize| rows[0].get::<_, String>(column);
    assert_eq!(
        (text(0).as_str(), text(1).as_str(), text(2).as_str()),
        (printed, "ada", "OrderPlaced"),
        "{language}"
    );
    assert_eq!(text(3), "order-1", "{language}");
    assert_eq!(database.count("select count(*) from orders").await, 1, "{language}");
}

async fn example(language: &str, tool: &str, file: &str, script: &str) {
    if !is_installed(tool) {
        println!("{language}: {tool} is not installed, its example is not run");
        return;
    }
    let path = folder(language).join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, program(&page(language))).unwrap();
    let database = database().await;
    let printed = run(&database, language, script);
    holds_what_it_printed(&database, language, &printed).await;
    println!("{language}: message {printed}");
}

#[tokio::test]
async fn the_example_in_python_does_what_it_says() {
    let script = "
        test -d .venv || python3 -m venv .venv >&2
        .venv/bin/pip install --quiet --disable-pip-version-check 'psycopg[binary]' >&2
        .venv/bin/python example.py";
    example("python", "python3", "example.py", script).await;
}

#[tokio::test]
async fn the_example_for_node_does_what_it_says() {
    let script = "
        test -d node_modules/pg || npm install --silent --no-audit --no-fund pg >&2
        node example.js";
    example("node", "node", "example.js", script).await;
}

#[tokio::test]
async fn the_example_in_go_does_what_it_says() {
    let script = "
        test -f go.mod || go mod init example >&2
        go mod tidy >&2
        go run . ";
    example("go", "go", "main.go", script).await;
}

#[tokio::test]
async fn the_example_in_java_does_what_it_says() {
    let script = "
        mvn --quiet --batch-mode dependency:copy -Dartifact=org.postgresql:postgresql:42.7.4 -DoutputDirectory=. >&2
        java -cp postgresql-42.7.4.jar PlaceOrder.java";
    example("java", "java", "PlaceOrder.java", script).await;
}

#[path = "../../examples/place_order.rs"]
#[allow(dead_code, reason = "it is a program")]
mod place_order;

#[tokio::test]
async fn the_example_in_rust_does_what_it_says() {
    let source = include_str!("../../examples/place_order.rs");
    assert_eq!(program(&page("rust")), source, "the page shows another program");
    let database = database().await;
    let mut client = database.connect_app().await;
    let message = place_order::place_order(&mut client, "ada").await.unwrap().unwrap();
    assert_eq!(place_order::place_order(&mut client, "nobody").await.unwrap(), None);
    holds_what_it_printed(&database, "rust", &message).await;
}
