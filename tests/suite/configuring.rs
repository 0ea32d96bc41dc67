//! A configuration is right, or the program says where it is wrong before it does anything.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Daemon, Kafka, Outboxd, PASSWORD, Postgres, eventually_some};

const START: &str = "[postgres]\nurl = \"postgres://u@127.0.0.1:1/db\"\n[kafka]\nbrokers = \"127.0.0.1:1\"\n";

fn group(name: &str) -> String {
    format!("[groups.{name}]\ntopics = [\"{name}\"]\nhandler = {{ kind = \"log\" }}\n")
}

#[tokio::test]
async fn what_is_wrong_is_shown_at_its_place_by_every_command() {
    let wrong = [
        ("[agent]\nheartbeet = \"30s\"", "6:1", "did you mean `heartbeat`?"),
        ("[producer]\nlease = 10", "6:9", "`lease`"),
        ("[agent]\nheartbeat = \"often\"", "6:13", "`heartbeat`"),
        ("[jobs.reap-agents]\nschedule = \"61 * * * *\"", "6:12", "`schedule`"),
        ("[kafka.producer]\nacks = \"1\"", "6:1", "publishing in order and without gaps"),
        ("[kafka.consumer]\n\"enable.auto.commit\" = true", "6:1", "offsets are committed behind the work"),
        ("[agent\nname = \"a\"", "5:7", ""),
        ("[groups.orders]\ntopics = [\"a b\"]\nhandler = { kind = \"log\" }", "6:11", "a b"),
        ("[groups.orders]\ntopics = [\"a\"]\nhandler = { kind = \"exce\" }", "7:20", "`exec`"),
    ];
    for (text, place, words) in wrong {
        let outboxd = Outboxd::with_config(&format!("{START}{text}\n"));
        for command in [&["config", "check"][..], &["config", "dump"], &["producer"], &["lanes", "list"]] {
            let output = outboxd.run(command).await;
            assert_eq!((output.code, output.stdout.as_str()), (2, ""), "{command:?} {text}: {output:?}");
            let file = format!("{}:{place}: ", outboxd.config().display());
            assert!(output.stderr.contains(&file), "{text}: {}", output.stderr);
            assert!(
                output.stderr.contains(words) && output.stderr.contains('^'),
                "{text}: {}",
                output.stderr
            );
        }
    }
}

#[tokio::test]
async fn a_check_needs_neither_postgres_nor_kafka_and_tells_what_is_declared() {
    let outboxd = Outboxd::with_config(&(START.to_owned() + &group("orders") + &group("invoices")));
    let output = outboxd.run(&["config", "check"]).await;
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    for words in ["valid", "127.0.0.1:1", "orders", "invoices"] {
        assert!(output.stdout.contains(words), "{words}: {}", output.stdout);
    }
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_outboxd"));
    let output = command.args(["config", "check", "--config", "nowhere.toml"]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nowhere.toml"));
    let unset = Outboxd::with_config("").run(&["config", "check"]).await;
    assert_eq!(unset.code, 2, "no url: {unset:?}");
    assert!(unset.stderr.contains("url"), "{}", unset.stderr);
}

#[tokio::test]
async fn a_dump_tells_each_value_with_its_source_and_no_secret() {
    let secrets = format!(
        "[postgres]\nurl = \"postgres://u:{PASSWORD}@h/db\"\n[kafka.client]\n\"sasl.password\" = \"{PASSWORD}\"\n"
    );
    let outboxd = Outboxd::with_config(&secrets).env("OUTBOXD__PRODUCER__LEASE", "20s");
    let outboxd = outboxd.env("OUTBOXD__KAFKA__PRODUCER__SSL_KEY_PASSWORD", PASSWORD);
    let text = outboxd.run(&["config", "dump"]).await;
    assert_eq!(text.code, 0, "{text:?}");
    assert!(text.stdout.parse::<toml::Table>().is_ok(), "{}", text.stdout);
    let json = outboxd.run(&["config", "dump", "--json"]).await;
    let dump: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(dump["producer"]["lease"]["value"], "20s");
    assert_eq!(dump["producer"]["lease"]["source"], "OUTBOXD__PRODUCER__LEASE");
    assert_eq!(dump["agent"]["heartbeat"]["source"], "default");
    let source = format!("{}:2", outboxd.config().display());
    assert_eq!(dump["postgres"]["url"]["source"], source.as_str());
}

#[tokio::test]
async fn a_group_that_is_not_declared_is_refused_and_those_that_are_are_named() {
    let outboxd = Outboxd::with_config(&(START.to_owned() + &group("orders") + &group("invoices")));
    let output = outboxd.run(&["consumer", "--group", "orders", "--group", "order"]).await;
    assert_eq!(output.code, 2, "{output:?}");
    for name in ["`order`", "`orders`", "`invoices`"] {
        assert!(output.stderr.contains(name), "{}", output.stderr);
    }
    let none = Outboxd::with_config(START).run(&["consumer", "--all"]).await;
    assert_eq!(none.code, 2, "{none:?}");
    assert!(none.stderr.contains("[groups.NAME]"), "{}", none.stderr);
    assert_eq!(outboxd.run(&["consumer"]).await.code, 2);
    assert_eq!(outboxd.run(&["consumer", "--all", "--group", "orders"]).await.code, 2);
}

#[tokio::test]
async fn a_handler_that_cannot_start_is_found_at_the_start() {
    let handlers = [
        ("{ kind = \"exec\", command = [\"/nowhere/handle-order\"] }", "/nowhere/handle-order"),
        ("{ kind = \"exec\", command = [\"no-such-program-here\", \"--fast\"] }", "no-such-program-here"),
        ("{ kind = \"exec\", command = [\"/etc/passwd\"] }", "/etc/passwd"),
        ("{ kind = \"http\", url = \"http://h/\", bearer_file = \"/nowhere/token\" }", "/nowhere/token"),
    ];
    for (handler, words) in handlers {
        let text = format!("{START}[groups.orders]\ntopics = [\"orders\"]\nhandler = {handler}\n");
        let output = Outboxd::with_config(&text).run(&["consumer", "--group", "orders"]).await;
        assert_eq!(output.code, 2, "{handler}: {output:?}");
        assert!(output.stderr.contains("`orders`") && output.stderr.contains(words), "{}", output.stderr);
    }
}

#[tokio::test]
async fn a_function_that_does_not_exist_is_found_before_the_first_message() {
    let (postgres, kafka) = (Postgres::shared().await, Kafka::shared().await);
    let (database, topic) = (postgres.database().await, kafka.topic(1).await);
    kafka.produce(&topic, None, Some(b"x"), &[]).await;
    let outboxd =
        Outboxd::new(&database, kafka).group("orders", &topic, "kind = \"sql\"\nfunction = \"app.on_order\"");
    let consumer = outboxd.consumer(&["orders"]);
    assert_eq!(consumer.wait_exit().await, Some(2), "{}", consumer.log());
    assert!(consumer.log().contains("app.on_order(outboxd.delivery)"), "{}", consumer.log());
    assert_eq!(database.count("select count(*) from outboxd.group_positions").await, 0);
}

#[tokio::test]
async fn an_address_that_was_chosen_and_is_taken_is_an_error_that_names_it() {
    let database = Postgres::shared().await.database().await;
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let in_the_file = Outboxd::without_kafka(&database).set(&format!("http.listen = \"{address}\""));
    let outputs = [
        in_the_file.run(&["producer"]).await,
        Outboxd::without_kafka(&database).run(&["producer", "--listen", &address]).await,
    ];
    for output in outputs {
        assert_eq!(output.code, 1, "{output:?}");
        assert!(output.stderr.contains(&format!("listen {address}")), "{}", output.stderr);
    }
}

#[tokio::test]
async fn a_default_address_that_is_taken_gives_way_to_the_next_and_that_is_told() {
    let default: SocketAddr = outboxd::config::http::LISTEN.parse().unwrap();
    // Whoever has it: it is taken.
    let _taken = TcpListener::bind(default);
    let database = Postgres::shared().await.database().await;
    let outboxd = Outboxd::without_kafka(&database);
    let directory = Arc::new(TempDir::new().unwrap());
    let start = |name: &str| {
        let mut command = outboxd.command(&["producer", "--name", name]);
        Daemon::start(name, &mut command, default, Arc::clone(&directory))
    };
    // Their logs share a file.
    let _daemons = [start("one"), start("two")];
    let agents = eventually_some("both are listed", Duration::from_secs(60), async || {
        let listed = outboxd.run(&["agents", "list", "--json"]).await;
        let listed: Value = serde_json::from_str(&listed.stdout).unwrap();
        listed.as_array().filter(|agents| agents.len() == 2).cloned()
    })
    .await;
    let addresses: Vec<SocketAddr> = agents
        .iter()
        .map(|agent| agent["http"].as_str().unwrap().strip_prefix("http://").unwrap().parse().unwrap())
        .collect();
    assert!(addresses[0] != addresses[1] && !addresses.contains(&default), "{addresses:?}");
    for (agent, address) in agents.iter().zip(addresses) {
        let answer = tokio::net::TcpStream::connect(address).await;
        assert!(answer.is_ok(), "{agent}");
    }
}
