use std::path::Path;
use std::time::Duration;

use super::reference::uncommented;
use super::*;
use crate::domain::schedule::Schedule;

const URL: &str = "[postgres]\nurl = \"postgres://u@h/db\"\n";
const GROUP: &str = "[groups.orders]\ntopics = [\"orders\"]\nhandler = { kind = \"log\" }\n";

fn parse(text: &str, environment: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::parse(text, Some(Path::new("outboxd.toml")), environment)
}

fn valid(text: &str) -> Config {
    parse(text, &[]).unwrap_or_else(|error| panic!("{error}")).config
}

fn error(text: &str) -> String {
    parse(text, &[]).map(|_| ()).unwrap_err().to_string()
}

/// What is wrong with one line behind a valid beginning of two, without the line and its caret.
fn problem(line: &str) -> String {
    error(&format!("{URL}{line}")).lines().next().unwrap().to_owned()
}

fn with(name: &str, value: &str) -> Result<Config, String> {
    parse(&format!("{URL}{GROUP}"), &[(name, value)])
        .map(|loaded| loaded.config)
        .map_err(|error| error.to_string())
}

#[test]
fn an_unknown_key_is_pointed_at_with_the_nearest() {
    let text = format!("{URL}\n[agent]\n\theartbeet = \"30s\"\n");
    assert_eq!(
        error(&text),
        "\
outboxd.toml:5:2: unknown key `heartbeet` in [agent]; did you mean `heartbeat`?
  |
5 | \theartbeet = \"30s\"
  | \t^^^^^^^^^"
    );
}

#[test]
fn a_wrong_type_is_pointed_at() {
    assert_eq!(
        error(&format!("{URL}pool_size = \"many\" # ä\n")),
        "\
outboxd.toml:3:13: `pool_size` must be a whole number, not a string
  |
3 | pool_size = \"many\" # ä
  |             ^^^^^^"
    );
}

#[test]
fn a_bad_element_of_a_list_is_pointed_at() {
    assert_eq!(
        error(&format!("{URL}[groups.orders]\ntopics = [\"ä\", \"a b\"]\nhandler.kind = \"log\"\n")),
        "\
outboxd.toml:4:11: `topics` holds `ä`, which Kafka forbids as a topic: 1 to 249 letters, digits, dots, dashes and underscores, not `.` or `..`
  |
4 | topics = [\"ä\", \"a b\"]
  |           ^^^"
    );
}

#[test]
fn what_is_not_toml_is_pointed_at() {
    let text = error(&format!("{URL}[agent\nname = \"x\"\n"));
    assert!(text.starts_with("outboxd.toml:3:7: "), "{text}");
    assert!(text.ends_with("\n  |\n3 | [agent\n  |       ^"), "{text}");
}

#[test]
fn a_password_is_never_shown_at_a_place() {
    assert_eq!(
        error("[postgres]\nurl = \"postgres://u:hunter2@h:port/db\"\n"),
        "\
outboxd.toml:2:7: `url` is not a connection string: invalid value for option `port`
  |
2 | url = \"postgres://u:***@h:port/db\"
  |       ^^^^^^^^^^^^^^^^^^^^^^^^^^^^"
    );
    for text in [
        "[postgres]\nurl = \"host=h password=hunter2 sslmode=maybe\"\n",
        "[postgres]\nurl = \"postgres://u@h/db?password=a&hunter2=b\"\n",
        "[postgres]\nurl = \"postgres://u@h/db?password=hunter2&sslmode=maybe\"\n",
        "[kafka.client]\n\"sasl.password\" = \"hunter2\n",
        "[kafka.client]\n\"sasl.password\" = [\"hunter2\"]\n",
        "[kafka.client]\n\"sasl.pasword\" = \"hunter2\"\n",
        "[kafka.client]\n\"ssl.key.pem\" = \"\"\"\nhunter2 \\q\n\"\"\"\n",
        "[postgres]\nurl = \"\"\"postgres://u:hunter2@h\n/db\"\"\" x\n",
    ] {
        let text = error(text);
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[test]
fn bad_values_say_what_would_be_right() {
    for (line, expected) in [
        ("[agent]\nheartbeat = \"soon\"", "`heartbeat` must be a duration such as \"30s\""),
        ("[agent]\nheartbeat = \"500ms\"", "`heartbeat` must be from 1s to 1h, not 500ms"),
        ("[agent]\nheartbeat = 30", "must be a duration such as \"30s\" or \"1m 30s\", not an integer"),
        ("[agent]\nheartbeat = \"5m\"", "`heartbeat` (5m) must be shorter than `inactive_after` (5m)"),
        ("[agent]\ninactive_after = \"10s\"", "`inactive_after` (10s) must be longer than `heartbeat` (30s)"),
        ("[agent]\nname = \"a b\"", "without spaces"),
        ("[producer]\nlease = \"0s\"", "`lease` must be from 1s to 1h, not 0s"),
        ("[producer]\nbatch_bytes = \"8 MB\"", "`batch_bytes` must be a size such as \"8MiB\""),
        ("[producer]\nbatch_bytes = -1", "`batch_bytes` must be a size"),
        ("[producer]\nbatch_bytes = 1", "`batch_bytes` must be from 64KiB to 1GiB, not 1B"),
        ("[http]\nlisten = \"9464\"", "`listen` must be an IP address and a port"),
        ("pool_size = 0", "`pool_size` must be from 1 to 200, not 0"),
        ("pool_size = 201", "not 201"),
        ("roles.app = \"pg_app\"", "keeps that name"),
        ("roles.app = \"outboxd_reader\"", "`reader` is `outboxd_reader`, the same as `app`"),
        ("[kafka]\nbrokers = \"kafka:\"", "`brokers` must be brokers as host:port"),
        ("[groups.\"a b\"]", "`a b` is not a name for a group"),
        ("[topics.orders]\non_poison = \"hold\"", "`on_poison` must be one of `park`, `hold-key`, `stop`"),
        ("[groups]\norders = 7", "`orders` must be a table, not an integer"),
        ("[groups.orders]", "`topics` is missing in [groups.orders]"),
        (
            "[groups.orders]\ntopic = [\"orders\"]",
            "unknown key `topic` in [groups.orders]; did you mean `topics`?",
        ),
        ("[groups.orders]\ntopics = []", "`topics` must not be empty"),
        ("[groups.orders]\ntopics = \"orders\"", "`topics` must be a list of strings, not a string"),
        ("[groups.orders]\ntopics = [\"a\", \"a\"]", "`topics` names `a` twice"),
        ("[groups.orders]\ntopics = [\"a\"]", "`kind` is missing in [groups.orders.handler]"),
        (
            "[jobs.reap-agent]",
            "`action` is missing: there is no built-in job `reap-agent`, and one of your own needs it; did you mean `reap-agents`?",
        ),
        ("[jobs.reap-agents]\nschedule = \"61 * * * *\"", "`schedule` `61` is not a valid minute"),
        ("[jobs.reap-agents]\nschedule = \"0 0 30 2 *\"", "`schedule` no day fits"),
        (
            "[jobs.reap-agents]\nschedule = \"@daily\"\ntimezone = \"Europe/Pariss\"",
            "did you mean `Europe/Paris`?",
        ),
        (
            "[jobs.reap-agents]\nschedule = \"every 5s\"\ntimezone = \"Europe/Paris\"",
            "`timezone` needs a cron expression",
        ),
        ("[jobs.reap-agents]\nenabled = 1", "`enabled` must be `true` or `false`, not an integer"),
        ("[retentions]", "unknown key `retentions` in the configuration"),
    ] {
        let problem = problem(line);
        assert!(problem.contains(expected), "{line}\n{problem}");
    }
}

#[test]
fn each_kind_of_handler_has_its_own_keys() {
    for (handler, expected) in [
        (
            "kind = \"htpp\"",
            "`kind` must be one of `log`, `exec`, `http`, `sql`, `embedded`; did you mean `http`?",
        ),
        ("knd = \"http\"", "unknown key `knd` in [groups.orders.handler]; did you mean `kind`?"),
        ("kind = \"log\", url = \"http://h\"", "unknown key `url` in [groups.orders.handler]"),
        ("kind = \"exec\"", "`command` is missing"),
        ("kind = \"exec\", command = []", "`command` must not be empty"),
        ("kind = \"exec\", command = [\"\"]", "`command` must begin with a program"),
        (
            "kind = \"exec\", command = [\"x\"], timeout = \"0s\"",
            "`timeout` must be from 1ms to 1day, not 0s",
        ),
        ("kind = \"exec\", command = [\"x\"], mode = \"works\"", "`mode` must be one of `each`, `worker`"),
        (
            "kind = \"http\", url = \"http://h\", permanent_statuses = [200]",
            "must be a list of statuses from 300",
        ),
        (
            "kind = \"http\", url = \"http://h\", permanent_statuses = 404",
            "must be a list of statuses from 300",
        ),
        ("kind = \"http\"", "`url` is missing"),
        ("kind = \"http\", url = \"ftp://h\"", "`url` must begin with http:// or https://, not ftp://"),
        ("kind = \"http\", url = \"/orders\"", "`url` must be a URL such as"),
        ("kind = \"http\", url = \"http://h\", client_cert = \"x\"", "`client_cert` needs `client_key` too"),
        ("kind = \"http\", url = \"http://h\", headers = { Host = \"x\" }", "`Host` is set by outboxd"),
        ("kind = \"sql\"", "`function` is missing"),
        ("kind = \"sql\", function = \"f(); drop table x\"", "`function` must be the name of a function"),
        ("kind = \"sql\", function = \"a.b.c\"", "`function` must be the name of a function"),
        ("kind = \"sql\", function = \"App.f\"", "`function` must be the name of a function"),
    ] {
        let problem = problem(&format!("[groups.orders]\ntopics = [\"orders\"]\nhandler = {{ {handler} }}"));
        assert!(problem.contains(expected), "{handler}\n{problem}");
    }
}

#[test]
fn a_static_member_has_a_name_that_is_chosen_and_kafka_takes() {
    let group = |agent: &str| {
        format!("{agent}[groups.a]\ntopics = [\"a\"]\nhandler.kind = \"log\"\nstatic_membership = true\n")
    };
    assert_eq!(
        problem(&group("")),
        "outboxd.toml:6:21: `static_membership` needs a name that is the same after a restart: set `[agent] name`"
    );
    assert!(problem(&group("[agent]\nname = \"a@b\"\n")).contains("and `a@b` is none"));
    assert!(Config::parse(&format!("{URL}{}", group("[agent]\nname = \"a.b\"\n")), None, []).is_ok());
}

#[test]
fn two_groups_with_one_name_in_kafka_are_refused() {
    let handler = "topics = [\"a\"]\nhandler.kind = \"log\"\n";
    let problem = problem(&format!("[groups.a]\n{handler}[groups.b]\nkafka_group = \"a\"\n{handler}"));
    assert_eq!(
        problem,
        "outboxd.toml:7:15: `kafka_group` `a` is that of group `a` already: each needs its own"
    );
}

#[test]
fn what_the_guarantees_stand_on_is_refused_with_the_reason() {
    assert_eq!(
        error(&format!("{URL}[kafka.producer]\n\"acks\" = 1\n")),
        "\
outboxd.toml:4:1: `acks` cannot be set: publishing in order and without gaps stands on it, and outboxd sets it
  |
4 | \"acks\" = 1
  | ^^^^^^"
    );
    for (table, property, expected) in [
        ("client", "bootstrap.servers = \"h\"", "set `[kafka] brokers`"),
        ("client", "enable.idempotence = false", "in order"),
        ("producer", "message.timeout.ms = 1", "never the end of a message"),
        ("producer", "\"acks_file\" = \"/x\"", "`acks` cannot be set"),
        ("producer", "queue.buffering.max.kbytes = 1", "`[producer] buffer_bytes`"),
        ("consumer", "group.id = \"x\"", "`[groups.NAME] kafka_group`"),
        ("consumer", "enable.auto.commit = true", "behind the work"),
        ("consumer", "rebalance_cb = \"x\"", "takes a function"),
        ("client", "\"sasl.pasword\" = \"x\"", "librdkafka has no property `sasl.pasword`"),
        ("client", "\"sasl.pasword_file\" = \"/x\"", "librdkafka has no property `sasl.pasword`"),
        ("client", "\"security.protocol\" = \"SASL_SSLL\"", "`security.protocol` is wrong: "),
        ("producer", "batch.size = 0", "`batch.size` is wrong: "),
    ] {
        let problem = problem(&format!("[kafka.{table}]\n{property}"));
        assert!(problem.contains(expected), "{property}\n{problem}");
    }
}

#[test]
fn properties_of_librdkafka_are_taken_quoted_and_dotted() {
    let config = valid(&format!(
        "{URL}[kafka.client]\n\"sasl.username\" = \"u\"\nsasl.password_file = \"/run/x\"\n[kafka.client.socket]\nkeepalive.enable = true\ntimeout.ms = 1_000\n"
    ));
    let client: Vec<(&str, &str)> =
        config.kafka.client.0.iter().map(|(name, value)| (&**name, &**value)).collect();
    let expected = [
        ("sasl.password_file", "/run/x"),
        ("sasl.username", "u"),
        ("socket.keepalive.enable", "true"),
        ("socket.timeout.ms", "1000"),
    ];
    assert_eq!(client, expected);
    let twice = problem("[kafka.client]\n\"sasl.password\" = \"x\"\nsasl.password_file = \"/run/x\"");
    assert!(twice.contains("`sasl.password` is set twice: by `"), "{twice}");
}

#[test]
fn a_variable_overrides_any_key_in_the_kind_that_the_key_wants() {
    assert_eq!(
        with("OUTBOXD__POSTGRES__URL", "postgres://other@h/db").unwrap().postgres.url.address(),
        "other@h:5432/db"
    );
    assert_eq!(with("OUTBOXD__POSTGRES__POOL_SIZE", "20").unwrap().postgres.pool_size, 20);
    assert_eq!(with("outboxd__agent__heartbeat", "10s").unwrap().agent.heartbeat, Duration::from_secs(10));
    assert_eq!(with("OUTBOXD__AGENT__NAME", "42").unwrap().agent.name.as_deref(), Some("42"));
    assert_eq!(with("OUTBOXD__AGENT__NAME", "1.0").unwrap().agent.name.as_deref(), Some("1.0"));
    assert_eq!(with("OUTBOXD__AGENT__NAME", "\"quoted\"").unwrap().agent.name.as_deref(), Some("quoted"));
    assert_eq!(with("OUTBOXD__GROUPS__ORDERS__BATCH", "10").unwrap().groups["orders"].batch, 10);
    assert_eq!(
        with("OUTBOXD__GROUPS__ORDERS__TOPICS", "[\"a\", \"b\"]").unwrap().groups["orders"].topics,
        ["a", "b"]
    );
    assert!(!with("OUTBOXD__JOBS__REAP_AGENTS__ENABLED", "false").unwrap().jobs["reap-agents"].enabled);
    assert_eq!(
        with("OUTBOXD__KAFKA__CLIENT__SASL_PASSWORD_FILE", "/x").unwrap().kafka.client.0["sasl.password_file"],
        "/x"
    );
    assert_eq!(
        with("OUTBOXD__KAFKA__CLIENT__SASL__USERNAME", "7").unwrap().kafka.client.0["sasl.username"],
        "7"
    );
}

#[test]
fn a_variable_meets_names_that_it_cannot_spell() {
    let text = format!(
        "{URL}[groups.Order-events]\ntopics = [\"orders\"]\nhandler.kind = \"log\"\n[kafka.client]\n\"sasl.password\" = \"x\"\n"
    );
    let environment = [
        ("OUTBOXD__GROUPS__ORDER_EVENTS__BATCH", "7"),
        ("OUTBOXD__KAFKA__CLIENT__SASL_PASSWORD_FILE", "/run/x"),
    ];
    let config = parse(&text, &environment).unwrap().config;
    assert_eq!(config.groups["Order-events"].batch, 7);
    // What the variable says replaces what the file says of the same property.
    let client: Vec<&str> = config.kafka.client.0.keys().map(String::as_str).collect();
    assert_eq!(client, ["sasl.password_file"]);
}

#[test]
fn a_bad_variable_is_named() {
    for (name, value, expected) in [
        (
            "OUTBOXD__POSTGRES__POL_SIZE",
            "1",
            "unknown key `pol_size` in [postgres]; did you mean OUTBOXD__POSTGRES__POOL_SIZE?",
        ),
        (
            "OUTBOXD__POSTGRS__URL",
            "x",
            "unknown key `postgrs` in the configuration; did you mean OUTBOXD__POSTGRES__URL?",
        ),
        ("OUTBOXD__POSTGRES__POOL_SIZE", "many", "`pool_size` must be a whole number, not a string"),
        ("OUTBOXD__GROUPS__ORDERS__TOPICS", "[1]", "`topics` must be a list of strings"),
        ("OUTBOXD__POSTGRES", "x", "`postgres` must be a table, not a string"),
        ("OUTBOXD__POSTGRES__URL__X", "x", "`postgres.url` is not a table"),
        ("OUTBOXD____X", "x", "names no key"),
        ("OUTBOXD__KAFKA__PRODUCER__ACKS", "1", "`acks` cannot be set"),
    ] {
        let problem = with(name, value).unwrap_err();
        assert!(
            problem.starts_with(&format!("environment variable {name}: ")) && problem.contains(expected),
            "{problem}"
        );
    }
    assert!(with("OUTBOXD_CONFIG", "not an override").is_ok());
}

#[test]
fn without_a_file_the_environment_is_enough_and_without_a_url_it_says_how_to_set_it() {
    let environment = [("OUTBOXD__POSTGRES__URL".to_owned(), "postgres://u@h/db".to_owned())];
    let loaded = Config::parse("", None, environment).unwrap();
    assert_eq!((loaded.path, loaded.config.kafka.brokers.as_str()), (None, "localhost:9092"));
    let error = Config::parse("", None, []).unwrap_err().to_string();
    assert_eq!(
        error,
        "`url` is missing in [postgres]: there is no file (looked for --config, $OUTBOXD_CONFIG, ./outboxd.toml, \
         /etc/outboxd/outboxd.toml); it can also be set by OUTBOXD__POSTGRES__URL"
    );
}

#[test]
fn a_file_that_is_named_must_exist() {
    let error = Config::load(Some(Path::new("/nowhere/outboxd.toml"))).unwrap_err().to_string();
    assert!(error.starts_with("the configuration /nowhere/outboxd.toml cannot be read: "), "{error}");
}

#[test]
fn systemds_credential_is_the_password_if_the_file_names_none() {
    let folder = tempfile::tempdir().unwrap();
    let credential = folder.path().join("postgres-password");
    std::fs::write(&credential, "x").unwrap();
    let environment = [("CREDENTIALS_DIRECTORY", folder.path().to_str().unwrap())];
    let loaded = parse(URL, &environment).unwrap();
    assert_eq!(loaded.config.postgres.password_file, Some(credential));
    assert!(loaded.dump().contains("  # systemd credential\n"));
    let named = parse(&format!("{URL}password_file = \"/x\"\n"), &environment).unwrap();
    assert_eq!(named.config.postgres.password_file.as_deref(), Some(Path::new("/x")));
}

#[test]
fn a_dump_is_toml_with_sources_and_without_secrets() {
    let text = "\
[postgres]
url = 'postgres://u:hunter2@h/db'
[kafka.client]
sasl.password = 'hunter2'
[groups.orders]
topics = ['orders']
[groups.orders.handler]
kind = 'http'
url = 'https://u:hunter2@h/'
headers = { \"X-Api-Key\" = 'hunter2', \"X-Shop\" = '7' }
";
    let loaded = parse(text, &[("OUTBOXD__PRODUCER__BATCH_BYTES", "1048576")]).unwrap();
    let dump = loaded.dump();
    for line in [
        "url = \"postgres://u:***@h/db\"  # outboxd.toml:2",
        "# password_file is not set",
        "pool_size = 8  # default",
        "prepared_statements = true  # default",
        "[kafka.client]",
        "\"sasl.password\" = \"***\"  # outboxd.toml:4",
        "heartbeat = \"30s\"  # default",
        "batch_bytes = \"1MiB\"  # OUTBOXD__PRODUCER__BATCH_BYTES",
        "topics = [\"orders\"]  # outboxd.toml:6",
        "X-Api-Key = \"***\"  # outboxd.toml:10",
        "X-Shop = \"7\"  # outboxd.toml:10",
    ] {
        assert!(dump.lines().any(|found| found == line), "{line}\n{dump}");
    }
    let json = loaded.dump_json();
    assert_eq!(json["postgres"]["pool_size"], serde_json::json!({ "value": 8, "source": "default" }));
    assert_eq!(json["groups"]["orders"]["handler"]["kind"]["value"], "http");
    assert!(!format!("{dump}{json}{:?}", loaded.config.postgres).contains("hunter2"));
    // It reads back, and means the same.
    let again = Config::parse(&dump, None, []).unwrap();
    assert_eq!(again.dump_json()["producer"]["batch_bytes"]["value"], "1MiB");
    assert_eq!(again.entries.len(), loaded.entries.len());
}

#[test]
fn a_schedule_is_read_in_its_timezone() {
    let config =
        valid(&format!("{URL}[jobs.reap-agents]\nschedule = \"@daily\"\ntimezone = \"Europe/Paris\"\n"));
    let expected = Schedule::parse("@daily", chrono_tz::Europe::Paris).unwrap();
    assert_eq!(config.jobs["reap-agents"].schedule, Some(expected));
}

const EXAMPLE: &str = include_str!("../../outboxd.toml.example");

#[test]
fn the_example_is_valid_as_it_is_and_with_everything_uncommented() {
    valid(EXAMPLE);
    let everything = parse(&uncommented(), &[]).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(everything.config.groups.len(), 5);
    for loaded in [everything, parse(EXAMPLE, &[]).unwrap()] {
        let dump = loaded.dump();
        assert_eq!(
            parse(&dump, &[]).unwrap_or_else(|error| panic!("{error}")).entries.len(),
            loaded.entries.len()
        );
    }
}

#[test]
fn the_example_shows_the_defaults() {
    let everything = parse(&uncommented(), &[]).unwrap();
    let as_it_is = parse(EXAMPLE, &[]).unwrap();
    for default in as_it_is.entries.iter().filter(|entry| entry.source == sources::Source::Default) {
        let shown = everything.entries.iter().find(|entry| entry.path == default.path).unwrap();
        if default.value.is_some() {
            assert_eq!(shown.value, default.value, "{}", default.path.join("."));
        }
    }
}

#[test]
fn no_damage_to_a_file_goes_unanswered_or_shows_its_secrets() {
    let whole = uncommented().replace("outboxd@localhost", "outboxd:hunter2@localhost");
    let mut random = fastrand::Rng::with_seed(7);
    let mut refused = 0;
    for _ in 0..3000 {
        let mut chars: Vec<char> = whole.chars().collect();
        for _ in 0..random.usize(1..3) {
            let at = random.usize(..chars.len());
            // The secret and what marks it as one stay whole, also by what is cut out from before it on.
            let near = &chars[at.saturating_sub(30)..chars.len().min(at + 210)];
            match random.u8(0..3) {
                _ if near.windows(3).any(|part| part == ['h', 'u', 'n']) => {}
                0 => drop(chars.remove(at)),
                1 => chars.insert(
                    at,
                    *random.choice(&['"', '\'', '=', '[', ']', '\n', '\r', 'ä', '{', '\u{0}', '\t']).unwrap(),
                ),
                _ => drop(chars.drain(at..(at + random.usize(1..200)).min(chars.len()))),
            }
        }
        let text: String = chars.into_iter().collect();
        if let Err(error) = parse(&text, &[]) {
            refused += 1;
            let error = error.to_string();
            assert!(error.starts_with("outboxd.toml:") && !error.contains("hunter2"), "{error}");
        }
    }
    assert!(refused > 1000, "the damage must be felt: {refused}");
}

#[test]
fn the_intervals_of_the_original_are_one_key_away() {
    let config = valid(include_str!("../../examples/csharp-intervals.toml"));
    let schedules: Vec<(&str, String)> = config
        .jobs
        .iter()
        .map(|(name, job)| (name.as_str(), job.schedule.as_ref().unwrap().to_string()))
        .collect();
    let expected = [("cleanup", "every 1h"), ("process-pending", "every 5s"), ("process-retry", "every 10s")];
    assert_eq!(schedules, expected.map(|(name, schedule)| (name, schedule.to_owned())));
    assert_eq!(config.agent.heartbeat, Duration::from_secs(30));
}
