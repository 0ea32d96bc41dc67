//! What the guides tell an operator to run, run; and what is packaged fits the program.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use outboxd::telemetry::metrics;

use crate::support::{Database, Outboxd, Postgres};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The blocks of SQL on a page.
fn sql(page: &str) -> Vec<String> {
    let blocks = page.split("```sql").skip(1).map(|rest| rest.split_once("```").unwrap().0.to_owned());
    blocks.collect()
}

/// All messages in their order, as `topic key payload`.
async fn messages(database: &Database) -> Vec<String> {
    let all =
        "select concat_ws(' ', topic, key, convert_from(payload, 'UTF8')) from outboxd.messages order by seq";
    database.query(all, &[]).await.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn the_guide_from_a_polling_table_loses_and_turns_nothing() {
    let database = Postgres::shared().await.database().await;
    let [table, turn, take] = <[String; 3]>::try_from(sql(&read("docs/from-polling.md"))).unwrap();
    database.batch(&table).await;
    database
        .batch(
            "insert into outbox (topic, key, payload) select 't', 'k', to_jsonb(n) from generate_series(1, 3) n;
             update outbox set processed_at = now() where id = 1",
        )
        .await;
    database.batch(&turn).await;
    database.batch("grant insert on outbox to app").await;
    let insert = "insert into outbox (topic, key, payload) values ('t', 'k', '9')";
    database.connect_app().await.execute(insert, &[]).await.unwrap();
    database.batch(&take).await;
    assert_eq!(messages(&database).await, ["t k 9", "t k 2", "t k 3"]);
    assert_eq!(database.count("select count(*) from outbox_old where processed_at is null").await, 0);
}

#[tokio::test]
async fn the_guide_from_debezium_turns_its_table_into_messages() {
    let database = Postgres::shared().await.database().await;
    database
        .batch(
            "create table outboxevent (id uuid primary key, aggregatetype text not null, aggregateid text not null,
               type text not null, payload jsonb)",
        )
        .await;
    let page = read("docs/from-debezium.md");
    let [turn, slots] = <[String; 2]>::try_from(sql(&page)).unwrap();
    database.batch(&turn).await;
    database.batch(&slots).await;
    let rule = page.split('`').find(|text| text.starts_with("create rule")).expect("the rule is told");
    database.batch(rule).await;
    database.batch("grant insert, delete, select on outboxevent to app").await;
    let app = database.connect_app().await;
    app.batch_execute(
        "begin;
         insert into outboxevent values ('0199e0c4-35a1-7d27-9a7e-5be91bd1c5f2', 'order', '42', 'Placed', '{\"a\": 1}');
         delete from outboxevent where id = '0199e0c4-35a1-7d27-9a7e-5be91bd1c5f2';
         commit",
    )
    .await
    .unwrap();
    assert_eq!(messages(&database).await, ["outbox.event.order 42 {\"a\": 1}"]);
    let id = database.query_one("select id::text || type from outboxd.messages", &[]).await;
    assert_eq!(id.get::<_, String>(0), "0199e0c4-35a1-7d27-9a7e-5be91bd1c5f2Placed");
}

/// A table of the manifest in a flow style that needs no parser: the text of a key's line.
fn after<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    let lines = text.lines().filter_map(|line| line.trim_start().strip_prefix(key));
    lines.map(str::trim).collect()
}

#[tokio::test]
async fn the_example_for_kubernetes_is_valid_and_drains_inside_the_grace_period() {
    let manifest = read("packaging/kubernetes/outboxd.yaml");
    let (_, rest) = manifest.split_once("outboxd.toml: |\n").unwrap();
    let config: Vec<&str> = rest
        .lines()
        .take_while(|line| line.is_empty() || line.starts_with("    "))
        .map(|line| line.get(4..).unwrap_or_default())
        .collect();
    let config = config.join("\n");
    let checked = Outboxd::with_config(&config).run(&["config", "check"]).await;
    assert_eq!(checked.code, 0, "{checked:?}");

    let parsed: toml::Table = config.parse().unwrap();
    let drain = parsed["agent"]["drain_timeout"].as_str().unwrap();
    let drain = humantime::parse_duration(drain).unwrap().as_secs();
    let graces = after(&manifest, "terminationGracePeriodSeconds:");
    assert_eq!(graces.len(), 2);
    assert!(graces.iter().all(|grace| grace.parse::<u64>().unwrap() >= drain + 5), "{graces:?}");
    for (probe, path) in [("livenessProbe:", "/healthz"), ("readinessProbe:", "/readyz")] {
        let probes = after(&manifest, probe);
        assert_eq!(probes.len(), 2);
        assert!(
            probes.iter().all(|probe| probe.contains(path) && probe.contains("timeoutSeconds")),
            "{probes:?}"
        );
    }
    let secrets = config.lines().filter(|line| line.contains("password") && !line.trim().starts_with('#'));
    assert!(secrets.clone().count() == 2 && secrets.into_iter().all(|line| line.contains("_file")));
}

/// The metrics that queries name, without what a histogram appends.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let metrics = words.filter(|word| word.starts_with("outboxd_"));
    let histogram = |name: &str| {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        base.unwrap_or(name).to_owned()
    };
    metrics.map(histogram).collect()
}

/// The labels that queries group by, match or print.
fn labels_in(text: &str) -> BTreeSet<String> {
    let between = |open: &str, close: char| -> Vec<String> {
        let parts = text.split(open).skip(1).filter_map(|rest| rest.split(close).next().map(str::to_owned));
        parts.collect()
    };
    let grouped = ["by (", "on (", "without ("].iter().flat_map(|open| between(open, ')'));
    let matched = text
        .split("outboxd_")
        .skip(1)
        .filter_map(|rest| {
            rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_').strip_prefix('{')
        })
        .filter_map(|rest| rest.split('}').next().map(str::to_owned));
    let names = grouped.chain(matched).flat_map(|list| {
        let names = list
            .split(',')
            .map(|one| one.split(['=', '!', '~']).next().unwrap_or_default().trim().to_owned());
        names.collect::<Vec<_>>()
    });
    let printed = between("$labels.", ' ')
        .into_iter()
        .map(|name| name.trim_end_matches(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).to_owned());
    names.chain(printed).filter(|name| !name.is_empty()).collect()
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_there_are() {
    // What Prometheus adds, and a histogram's own.
    let mut labels: BTreeSet<&str> = ["instance", "job", "exported_job", "le"].into();
    labels.extend(metrics::ALL.iter().flat_map(|metric| metric.labels));
    let told = metrics::ALL.iter().map(|metric| metric.name);
    let known: BTreeSet<String> = told.map(str::to_owned).collect();
    let mut shown = BTreeSet::new();
    for file in [
        "packaging/prometheus/alerts.yml",
        "packaging/prometheus/alerts.test.yml",
        "packaging/grafana/outboxd.json",
    ] {
        let named = metrics_in(&read(file));
        assert!(named.len() > 5, "{file}");
        assert_eq!(named.difference(&known).collect::<Vec<_>>(), Vec::<&String>::new(), "{file}");
        let asked = labels_in(&read(file));
        assert!(asked.len() > 3, "{file}: {asked:?}");
        let unknown: Vec<&String> = asked.iter().filter(|label| !labels.contains(label.as_str())).collect();
        assert_eq!(unknown, Vec::<&String>::new(), "{file}");
        shown.extend(named);
    }
    assert_eq!(known.difference(&shown).collect::<Vec<_>>(), Vec::<&String>::new(), "nobody shows these");
}

/// `UPDATE_DOCS=1 cargo test ...` writes it instead.
fn assert_current(path: &str, current: &str) {
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(path), current).unwrap();
    } else {
        assert_eq!(read(path), current, "{path} is of another program: UPDATE_DOCS=1 writes it");
    }
}

#[test]
fn the_page_of_metrics_is_the_table_of_the_program() {
    let line = |metric: &metrics::Described| {
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        format!("| `{}` | {} | {} | {} |\n", metric.name, metric.kind, labels.join(", "), metric.help)
    };
    let table: String = metrics::ALL.iter().map(line).collect();
    let page = read("docs/metrics.md");
    let head = "|---|---|---|---|\n";
    let (before, old) = page.split_once(head).expect("it has a table");
    let after = old.find("\n\n").map_or("", |end| &old[end + 1..]);
    let new = format!("{before}{head}{table}{after}");
    assert_current("docs/metrics.md", &new);
}

#[tokio::test]
async fn the_page_of_configuration_is_what_the_program_prints() {
    let printed = Outboxd::with_config("").run(&["config", "reference"]).await;
    assert_eq!((printed.code, printed.stderr.as_str()), (0, ""));
    assert_current("docs/configuration.md", &printed.stdout);
}
