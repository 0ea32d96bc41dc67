//! Every measurement, as the table of `docs/performance.md`.

use std::fmt::Write;

use serde_json::Value;

use crate::Services;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/performance.md");
const BEGIN: &str = "<!-- measured by `make bench`: begin -->";
const END: &str = "<!-- measured by `make bench`: end -->";

const SCENARIOS: &str = "held-transaction,held-snapshot,late-commit,large-backlog";

/// Measures everything and writes the table; says whether all that was published was read back, in order.
pub fn write(services: &Services) -> bool {
    // A broker compiles for minutes, each part of it once that has run for a while: a minute alone is not enough before the
    // latency, so the other rows of its kind come first. The large backlog, whose gigabytes the disks write for long, is last.
    let insert = services.measure(&["insert"]);
    let idle = services.measure(&["idle"]);
    let takeover = services.measure(&["takeover"]);
    let latency = services.measure(&["latency"]);
    let consume = services.measure(&["consume", "--messages", "500000"]);
    let keyed = services.measure(&["consume", "--messages", "500000", "--idempotency-keys"]);
    let relay = services.measure(&["relay", "--scenario", SCENARIOS]);
    let mut text = String::new();
    table(&mut text, ["relay", "messages a second", "beside it", "ratio", "budget"], relay_rows(&relay));
    table(
        &mut text,
        ["of the relay", "per million messages", "beside it", "ratio", "budget"],
        cost_rows(&relay),
    );
    let others = [
        latency_rows(&latency),
        insert_rows(&insert),
        idle_rows(&idle),
        takeover_rows(&takeover),
        consume_rows(&consume, &keyed),
    ]
    .concat();
    table(&mut text, ["", "measured", "beside it", "ratio", "budget"], others);
    let server = |setting| relay["postgres"][setting].as_str().unwrap().to_owned();
    let _ = writeln!(
        text,
        "PostgreSQL {}, fsync {}, synchronous_commit {}; {} rounds of {} messages of {} bytes, {} keys, {} partitions; \
         {} messages read back, {} lost, {} out of order, {} repeats.",
        server("version"),
        server("fsync"),
        server("synchronous_commit"),
        relay["rounds"],
        relay["messages"],
        relay["payload_bytes"],
        relay["keys"],
        relay["partitions"],
        total(&relay, "records"),
        total(&relay, "lost"),
        total(&relay, "out_of_order"),
        total(&relay, "repeats"),
    );
    let document = std::fs::read_to_string(DOCUMENT).unwrap();
    let (before, rest) = document.split_once(BEGIN).expect("the document has a place for the table");
    let (_, after) = rest.split_once(END).expect("the place for the table has an end");
    std::fs::write(DOCUMENT, format!("{before}{BEGIN}\n\n{text}\n{END}{after}")).unwrap();
    println!("{text}");
    total(&relay, "lost") + total(&relay, "out_of_order") == 0
}

type Row = [String; 5];

fn table(text: &mut String, columns: [&str; 5], rows: Vec<Row>) {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    *text += &line(&columns.map(str::to_owned));
    *text += "|---|---|---|---|---|\n";
    for row in rows {
        *text += &line(&row);
    }
    *text += "\n";
}

fn number(report: &Value, path: &str) -> f64 {
    report.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path} of {report}"))
}

/// Over all that the relay and its bound published.
fn total(relay: &Value, count: &str) -> u64 {
    let scenarios = relay["scenarios"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|report| [&report["relay"], &report["normal"]]);
    [&relay["relay"], &relay["bound"]]
        .into_iter()
        .chain(scenarios)
        .filter_map(|drains| drains[count].as_u64())
        .sum()
}

fn thousands(value: f64) -> String {
    format!("{:.0}k", value / 1000.0)
}

fn row(what: &str, measured: String, beside: String, ratio: Option<f64>, budget: &str) -> Row {
    let ratio = ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
    [what.to_owned(), measured, beside, ratio, budget.to_owned()]
}

fn relay_rows(relay: &Value) -> Vec<Row> {
    let rate = |path: &str| thousands(number(relay, &format!("{path}/messages_per_second")));
    let mut rows = vec![row(
        "backlog, one transaction per 1,000",
        rate("/relay"),
        format!("{} streamed and sent without bookkeeping", rate("/bound")),
        Some(number(relay, "/ratio")),
        "≥ 0.8",
    )];
    for (place, (scenario, beside, budget)) in [
        ("a transaction held open", rate("/relay"), "≥ 0.9"),
        ("a snapshot held for the whole run", rate("/relay"), "≥ 0.9"),
        ("late commit of 1 M rows", rate("/relay"), "≥ 0.5"),
        ("backlog of 10 M, of 100 k", rate("/scenarios/3/normal"), "≥ 0.9"),
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/scenarios/{place}");
        let ratio = number(relay, &format!("{path}/ratio"));
        rows.push(row(scenario, rate(&format!("{path}/relay")), beside, Some(ratio), budget));
    }
    rows
}

fn cost_rows(relay: &Value) -> Vec<Row> {
    let cost = |side: &str, what: &str| number(relay, &format!("{side}/{what}"));
    let seconds = |what: &str, field: &str| {
        let (measured, beside) = (cost("/relay", field), cost("/bound", field));
        row(what, format!("{measured:.2} s"), format!("{beside:.2} s"), Some(measured / beside), "")
    };
    let megabytes = |side: &str| format!("{:.0} MB at most", cost(side, "peak_memory_bytes") / 1e6);
    vec![
        seconds("CPU", "cpu_seconds_per_million"),
        seconds("CPU of PostgreSQL", "postgres_cpu_seconds_per_million"),
        row("memory", megabytes("/relay"), megabytes("/bound"), None, ""),
    ]
}

fn latency_rows(latency: &Value) -> Vec<Row> {
    let spread = |name: &str| {
        let at = |percentile: &str| number(latency, &format!("/{name}/{percentile}"));
        format!("p50 {:.1}, p95 {:.1}, p99 {:.1}, max {:.1} ms", at("p50"), at("p95"), at("p99"), at("max"))
    };
    let rate = number(latency, "/offered_per_second");
    let what = |until: &str| format!("commit to {until}, {rate:.0} tx/s");
    vec![
        row(&what("a consumer"), spread("commit_to_arrival_ms"), String::new(), None, "p50 ≤ 3, p99 ≤ 10 ms"),
        row(&what("the broker's log"), spread("commit_to_append_ms"), String::new(), None, ""),
    ]
}

fn insert_rows(insert: &Value) -> Vec<Row> {
    let rate =
        |side: &str| format!("{:.0} tx/s", number(insert, &format!("/{side}/transactions_per_second")));
    let bad = number(insert, "/outbox_offered/errors") + number(insert, "/outbox_offered/lock_waits");
    let offered = number(insert, "/offered_per_second");
    let quiet = format!("{}, {bad:.0} errors or lock waits", rate("outbox_offered"));
    let p99 = |side: &str| number(insert, &format!("/{side}/commit_ms/p99"));
    let waits = |side: &str| format!("{:.1} ms", p99(side));
    vec![
        row(
            "single-row inserts as fast as 8 clients can, relay at work",
            rate("outbox"),
            format!("{} without outboxd", rate("plain")),
            Some(number(insert, "/ratio")),
            "",
        ),
        row(
            &format!("the same, {offered:.0} tx/s offered"),
            quiet,
            rate("plain_offered"),
            Some(number(insert, "/ratio_offered")),
            "≥ 0.9, none",
        ),
        row("their commits, p99", waits("outbox_offered"), waits("plain_offered"), None, ""),
    ]
}

fn idle_rows(idle: &Value) -> Vec<Row> {
    let (relay, sessions) = (number(idle, "/cpu_percent"), number(idle, "/sessions_cpu_percent"));
    let memory = number(idle, "/peak_memory_bytes") / 1e6;
    let asking = number(idle, "/asking_cpu_percent") + number(idle, "/asking_session_cpu_percent");
    vec![row(
        "idle",
        format!(
            "{:.1} % of a core ({relay:.1} outboxd, {sessions:.1} its sessions), {memory:.0} MB",
            relay + sessions
        ),
        format!("{asking:.1} % a client that only asks as often"),
        Some((relay + sessions) / asking),
        "< 2 %, < 64 MB",
    )]
}

/// The longest wait of any message, in the worst round.
fn takeover_rows(takeover: &Value) -> Vec<Row> {
    let worst = |path: &str| {
        let waits = takeover[path].as_array().unwrap().iter().filter_map(Value::as_f64);
        format!("{:.0} ms", waits.fold(0.0, f64::max))
    };
    let lease = format!("a lease of {} s", number(takeover, "/lease_seconds"));
    vec![
        row("hand-over, longest wait of a message", worst("hand_over_ms"), String::new(), None, "< 100 ms"),
        row("takeover after a kill, the same", worst("takeover_ms"), lease, None, "< lease + 1 s"),
    ]
}

fn consume_rows(consume: &Value, keyed: &Value) -> Vec<Row> {
    let group = |what: &str, report: &Value, part: &str, beside: &str, budget: &str| {
        let number = |name: &str| number(report, &format!("/{part}/{name}"));
        row(
            what,
            format!("{} a second", thousands(number("handled_per_second"))),
            format!("{} {beside}", thousands(number("reading_per_second"))),
            Some(number("ratio")),
            budget,
        )
    };
    let (alone, defaults) = ("reading alone", "reading alone, by librdkafka's defaults");
    vec![
        group("a group, evidence for every message", consume, "beside_defaults", defaults, "≥ 0.25"),
        group("the same", consume, "whole", alone, "≥ 0.25"),
        group("the same, once both have started", consume, "steady", alone, ""),
        group("a group, an idempotency key on every message", keyed, "beside_defaults", defaults, "≥ 0.08"),
        group("the same", keyed, "whole", alone, "≥ 0.08"),
        group("the same, once both have started", keyed, "steady", alone, ""),
    ]
}
