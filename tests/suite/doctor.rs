//! `outboxd doctor` finds what is wrong, says what mends it, and is silent where nothing is.

use std::time::Duration;

use serde_json::Value;

use crate::support::{Kafka, Outboxd, PASSWORD, Postgres, eventually};

const SOON: Duration = Duration::from_secs(60);

/// What it found, as (check, what, fix); its exit code must fit.
async fn findings(outboxd: &Outboxd, more: &[&str]) -> Vec<(String, String, String)> {
    let output = outboxd.run(&[&["doctor", "--json"], more].concat()).await;
    assert_eq!(output.stderr, "", "{output:?}");
    let lines: Vec<Value> = serde_json::from_str(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let found: Vec<_> = lines
        .iter()
        .filter(|line| line["state"] == "found")
        .map(|line| (text(&line["name"]), text(&line["what"]), text(&line["fix"])))
        .collect();
    assert_eq!(output.code, i32::from(!found.is_empty()), "{found:?}");
    assert!(found.iter().all(|(_, what, fix)| !what.is_empty() && !fix.is_empty()), "{found:?}");
    found
}

/// In one run it finds all of these: the check, words of what it found, words of the fix.
async fn finds(outboxd: &Outboxd, expected: &[(&str, &str, &str)]) {
    holds(&findings(outboxd, &[]).await, expected);
}

fn holds(found: &[(String, String, String)], expected: &[(&str, &str, &str)]) {
    for (check, words, remedy) in expected {
        let is_it = |(name, what, fix): &(String, String, String)| {
            name == check && what.contains(words) && fix.contains(remedy)
        };
        assert!(found.iter().any(is_it), "{check}: {words}: {remedy}: {found:#?}");
    }
}

#[tokio::test]
async fn nothing_is_found_where_all_is_well() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let topic = kafka.topic(1).await;
    let outboxd = Outboxd::new(&database, kafka).group(&topic, &topic, "kind = \"log\"");
    let (producer, consumer) = (outboxd.producer(), outboxd.consumer(&[&topic]));
    producer.ready().await;
    consumer.ready().await;
    database.execute("select outboxd.enqueue($1, 'x')", &[&topic]).await;
    database.reach(&topic, "published", 1).await;
    eventually("nothing is found", SOON, async || {
        let output = outboxd.run(&["doctor", "--long", "1h"]).await;
        output.code == 0 && output.stdout.ends_with("nothing to mend\n")
    })
    .await;
    let output = outboxd.run(&["doctor", "--json", "--long", "1h"]).await;
    let lines: Vec<Value> = serde_json::from_str(&output.stdout).unwrap();
    let names: Vec<&str> = lines.iter().map(|line| line["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "settings",
            "connections",
            "clock",
            "vacuum",
            "schema",
            "rights",
            "indexes",
            "sequence",
            "partitions",
            "lanes",
            "aside",
            "agents",
            "groups",
            "retention",
            "dead-letters",
            "jobs",
            "kafka",
            "brokers",
            "topics",
            "topic-settings"
        ]
    );
    let is_fine = |line: &&Value| line["state"] == if line["name"] == "vacuum" { "skipped" } else { "ok" };
    assert_eq!(lines.iter().filter(|line| !is_fine(line)).collect::<Vec<_>>(), Vec::<&Value>::new());
}

#[tokio::test]
async fn what_cannot_be_reached_is_found_and_the_rest_is_looked_at() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let nowhere = format!("postgres://agent:{PASSWORD}@127.0.0.1:1/app");
    let without_postgres =
        Outboxd::new(&database, kafka).postgres_url(&nowhere).group("g", "missing", "kind = \"log\"");
    finds(
        &without_postgres,
        &[("postgres", "127.0.0.1:1", "[postgres] url"), ("topics", "missing", "kafka-topics --create")],
    )
    .await;
    let without_kafka = Outboxd::without_kafka(&database);
    finds(
        &without_kafka,
        &[("kafka", "127.0.0.1:1", "[kafka] brokers"), ("lanes", "nobody owns", "outboxd-producer")],
    )
    .await;
    let empty = Postgres::shared().await.empty_database().await;
    finds(&Outboxd::new(&empty, kafka).owner(), &[("schema", "no schema", "outboxd migrate")]).await;
}

#[tokio::test]
async fn settings_that_hurt_are_found_as_a_daemon_gets_them() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let alter = |setting: &str| format!("alter role agent in database {} set {setting}", database.name);
    database.batch(&alter("synchronous_commit = off")).await;
    database.batch(&alter("statement_timeout = '5s'")).await;
    let outboxd = Outboxd::new(&database, kafka);
    finds(
        &outboxd,
        &[
            ("settings", "synchronous_commit is off for agent", "synchronous_commit"),
            ("settings", "statement_timeout is 5s for agent", "alter role \"agent\""),
        ],
    )
    .await;
    let greedy = Outboxd::new(&database, kafka)
        .set("postgres.pool_size = 200")
        .group("a", "t", "kind = \"log\"")
        .group("b", "t", "kind = \"log\"");
    finds(&greedy, &[("connections", "max_connections", "pool_size")]).await;
}

#[tokio::test]
async fn transactions_that_are_open_for_long_and_slots_without_a_reader_are_found() {
    let (postgres, kafka) = (Postgres::private().await, Kafka::shared().await);
    let database = postgres.database().await;
    let idle = database.connect().await;
    idle.batch_execute("set application_name = 'forgetful'; begin; select txid_current()").await.unwrap();
    let prepared = database.connect().await;
    prepared.batch_execute("begin; create table t (); prepare transaction 'orphan'").await.unwrap();
    database.batch("select pg_create_physical_replication_slot('unread', true)").await;
    let outboxd = Outboxd::new(&database, kafka).owner();
    let found = findings(&outboxd, &["--long", "1ms"]).await;
    holds(
        &found,
        &[
            ("vacuum", "forgetful) has been idle in a transaction", "pg_terminate_backend"),
            ("vacuum", "'orphan'", "rollback prepared 'orphan'"),
            ("vacuum", "slot unread has no reader", "pg_drop_replication_slot('unread')"),
        ],
    );
    let patient = findings(&outboxd, &["--long", "1h"]).await;
    assert!(!patient.iter().any(|(_, what, _)| what.contains("forgetful")), "{patient:#?}");
}

#[tokio::test]
async fn each_right_that_is_missing_is_found() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let outboxd = Outboxd::new(&database, kafka);
    let rights = async || {
        let found = findings(&outboxd, &[]).await.into_iter();
        found.filter(|(name, ..)| name == "rights").collect::<Vec<_>>()
    };
    assert_eq!(rights().await, []);
    for (revoke, words) in [
        (
            "insert (key) on outboxd.messages from outboxd_app",
            "outboxd_app may not: insert on outboxd.messages (key)",
        ),
        ("usage on sequence outboxd.messages_seq from outboxd_app", "usage on outboxd.messages_seq"),
        ("execute on function outboxd.make_leaf from outboxd_agent", "execute on outboxd.make_leaf"),
        (
            "select on outboxd.dead_letters from outboxd_reader",
            "outboxd_reader may not: select on outboxd.dead_letters",
        ),
    ] {
        database.batch(&format!("revoke {revoke}")).await;
        let found = rights().await;
        assert!(found.iter().any(|(_, what, _)| what.contains(words)), "{revoke}: {found:#?}");
    }
    assert!(
        rights()
            .await
            .iter()
            .any(|(_, what, fix)| what.contains("agent, whom") && fix.contains("outboxd_agent"))
    );
    Outboxd::new(&database, kafka).owner().run(&["migrate"]).await;
    assert_eq!(rights().await, [], "as it says, `migrate` grants them anew");
    let other = Outboxd::new(&database, kafka).set("postgres.roles.app = \"nobody_made_me\"");
    finds(&other, &[("rights", "nobody_made_me does not exist", "outboxd migrate")]).await;
    let stranger = Outboxd::new(&database, kafka).postgres_url(&database.app_url());
    finds(&stranger, &[("schema", "permission denied", "outboxd_agent for the daemons")]).await;
}

#[tokio::test]
async fn a_sequence_that_was_set_back_or_caches_is_found() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let outboxd = Outboxd::new(&database, kafka);
    database
        .execute("insert into outboxd.messages (topic) select 't' from generate_series(1, 50)", &[])
        .await;
    database
        .batch("select setval('outboxd.messages_seq', 7); alter sequence outboxd.messages_seq cache 5")
        .await;
    finds(
        &outboxd,
        &[
            ("sequence", "stands at 7, and a message that is there is at 50", "rebase --after restore"),
            ("sequence", "a cache of 5", "cache 1"),
        ],
    )
    .await;
    database.batch("update outboxd.outbox set system_identifier = 1").await;
    finds(&outboxd, &[("sequence", "of another cluster", "rebase --after restore")]).await;
}

#[tokio::test]
async fn a_default_with_rows_and_leaves_that_run_out_are_found() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let outboxd = Outboxd::new(&database, kafka);
    database.batch("select setval('outboxd.messages_seq', 9000000); insert into outboxd.messages (topic) values ('t')").await;
    finds(
        &outboxd,
        &[("partitions", "default partition", "producer"), ("partitions", "leaves cover 0 more", "producer")],
    )
    .await;
}

#[tokio::test]
async fn an_index_that_is_mostly_air_is_found_and_one_that_is_broken() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let fill = "insert into outboxd.handled_default (consumer_group, message_id, topic, partition, \"offset\", agent, attempt)
        select repeat('g', 250), gen_random_uuid(), 't', 0, n, 'a', 1 from generate_series(1, 80000) n";
    database.batch(&format!("set synchronous_commit = off; {fill}")).await;
    database.batch("delete from outboxd.handled_default where \"offset\" > 100").await;
    database.batch("vacuum analyze outboxd.handled_default").await;
    database
        .batch("update pg_index set indisvalid = false where indexrelid = 'outboxd.agents_name'::regclass")
        .await;
    let outboxd = Outboxd::new(&database, kafka);
    finds(
        &outboxd,
        &[
            ("indexes", "handled_default_pkey has", "reindex index concurrently"),
            ("indexes", "agents_name is not valid", "reindex index concurrently"),
        ],
    )
    .await;
}

#[tokio::test]
async fn messages_that_wait_left_the_line_or_were_given_up_are_found() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let outboxd = Outboxd::new(&database, kafka);
    database
        .batch(
            "insert into outboxd.messages (topic, created_at) values ('t', clock_timestamp() - interval '1 hour');
             insert into outboxd.set_aside (priority, seq, state, reason, topic, headers, created_at) values
               (0, 1001, 'parked', 'too large', 'big', '{}', now()), (0, 1002, 'held', 'no such topic', 'gone', '{}', now());
             insert into outboxd.failures (consumer_group, message_id, state, topic, partition, \"offset\", header_names,
               header_values, reason, next_attempt_at) values
               ('orders', gen_random_uuid(), 'dead', 't', 0, 1, '{}', '{}', 'attempts', null),
               ('orders', gen_random_uuid(), 'due', 't', 0, 2, '{}', '{}', null, now() - interval '1 hour')",
        )
        .await;
    finds(
        &outboxd,
        &[
            ("lanes", "nobody owns", "outboxd-producer"),
            ("lanes", "1 retry due", "outboxd-producer"),
            ("lanes", "lane normal has 1 pending message, the oldest for 1h", "producer"),
            ("aside", "1 message of topic big parked: too large", "messages list --state parked"),
            ("aside", "of topic gone held: no such topic", ""),
            ("dead-letters", "group orders has given up 1 message", "outboxd retry"),
            ("topics", "topic gone", "kafka-topics"),
        ],
    )
    .await;
}

#[tokio::test]
async fn agents_that_fell_silent_and_groups_that_retention_waits_for_are_found() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let outboxd = Outboxd::new(&database, kafka).set("retention.published = \"0s\"").group(
        "new",
        "t",
        "kind = \"log\"",
    );
    database
        .batch(
            "insert into outboxd.agents (id, name, role, host, pid, version, heartbeat, last_heartbeat_at) values
               (gen_random_uuid(), 'quiet', 'producer', 'h', 7, '0', '30s', now() - interval '1 hour');
             insert into outboxd.groups (name, kafka_group, cluster_id, topics, paused_at, paused_by, breaker_until, breaker_reason)
               values ('old', 'old', 'c', '{t}', now(), 'ada', now() + interval '1 hour', 'refused');
             insert into outboxd.messages (topic) select 't' from generate_series(1, 10);
             select setval('outboxd.messages_seq', 1048600);
             update outboxd.lanes set floor = 1048600;
             insert into outboxd.publications (priority, \"window\", done, target, first_seq, last_seq, messages, began_at, ended_at, offsets)
               values (0, 1, '3:3:', '4:4:', 1, 10, 10, now(), now(), '{\"t/0\": 9}')",
        )
        .await;
    finds(
        &outboxd,
        &[
            ("agents", "agent quiet (process 7 on h) has been silent for 1h", "agents prune"),
            ("groups", "group old has no consumer", "groups forget old"),
            ("groups", "group old is paused, by ada", "groups resume old"),
            ("groups", "breaker of group old is open: refused", "mend"),
            ("groups", "group new is declared", "outboxd-consumer@new"),
            ("retention", "waits for group old: t/0 goes up to offset 9", "groups forget old"),
        ],
    )
    .await;
}

#[tokio::test]
async fn topics_that_are_missing_forbidden_or_set_to_lose_are_found() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let settings = [("max.message.bytes", "5000"), ("unclean.leader.election.enable", "true")];
    let (small, forbidden) = (format!("small-{:x}", fastrand::u64(..)), kafka.topic(1).await);
    kafka.create_topic(&small, 1, &settings).await;
    kafka.forbid(&forbidden).await;
    let outboxd = Outboxd::new(&database, kafka)
        .guarded(kafka)
        .group("a", &small, "kind = \"log\"")
        .group("b", &forbidden, "kind = \"log\"")
        .group("c", "made-by-us", "kind = \"log\"")
        .set("topics.made-by-us.create = {}");
    finds(
        &outboxd,
        &[
            ("topic-settings", "takes 5000 bytes", "max.message.bytes=1000000"),
            ("topic-settings", "unclean leaders", "unclean.leader.election.enable=false"),
            ("topics", &format!("{forbidden} (of group b) is forbidden"), "kafka-acls"),
        ],
    )
    .await;
    let found = findings(&outboxd, &[]).await;
    assert!(
        !found.iter().any(|(name, what, _)| name == "topics" && what.contains("made-by-us")),
        "{found:#?}"
    );
}

#[tokio::test]
async fn a_job_whose_condition_or_statement_the_database_would_refuse_is_found_and_nothing_is_done() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    database
        .batch(
            "create table secret (x integer); create table open (x integer); grant all on open to public;
             create sequence numbers; grant all on sequence numbers to public",
        )
        .await;
    let job = |outboxd: Outboxd, name: &str, condition: &str, statement: &str| {
        outboxd
            .set(&format!("jobs.{name}.schedule = \"@yearly\""))
            .set(&format!("jobs.{name}.{condition}"))
            .set(&format!("jobs.{name}.action = {{ kind = \"sql\", statement = \"{statement}\" }}"))
    };
    let insert = "insert into open select extract(year from $1)";
    let outboxd = Outboxd::new(&database, kafka);
    let outboxd = job(outboxd, "right", "when = \"select count(*) > 0 from open\"", insert);
    let outboxd = job(outboxd, "hidden", "on = \"select count(*) > 0 from secret\"", insert);
    let outboxd = job(outboxd, "vague", "when = \"select * from (values (1, 2)) v\"", insert);
    // Not a wait: a statement that its time limit ends.
    let outboxd = job(outboxd, "slow", "when = \"select pg_sleep(9) is null\"", insert)
        .set("jobs.slow.statement_timeout = \"100ms\"");
    let outboxd = job(outboxd, "gone", "when = \"select true\"", "insert into nowhere select $1");
    // What writes cannot be tried, and what comes after it can.
    let writes = "on = \"select nextval('numbers') > 0\"";
    let outboxd = job(outboxd, "writes", writes, insert);
    let outboxd = job(outboxd, "writes-and-vague", writes, insert)
        .set("jobs.writes-and-vague.when = \"select * from (values (1, 2)) v\"");
    let outboxd = job(outboxd, "writes-and-gone", writes, "insert into nowhere select $1");
    let outboxd = job(outboxd, "off", "when = \"select * from (values (1, 2)) v\"", insert)
        .set("jobs.off.enabled = false");
    let outboxd = job(outboxd, "as-nobody", "run_as = \"nobody-here\"", insert);
    let found = findings(&outboxd, &[]).await;
    let about = |name: &str| {
        found.iter().filter(|(check, what, _)| check == "jobs" && what.starts_with(name)).count()
    };
    holds(
        &found,
        &[
            ("jobs", "job hidden: `on`: permission denied for table secret", "[jobs.hidden]"),
            ("jobs", "job vague: `when` must give one boolean", "[jobs.vague]"),
            ("jobs", "job slow: `when`: canceling statement due to statement timeout", "[jobs.slow]"),
            ("jobs", "job gone: the action: relation \"nowhere\" does not exist", "[jobs.gone]"),
            ("jobs", "job writes-and-vague: `when` must give one boolean", "[jobs.writes-and-vague]"),
            ("jobs", "job writes-and-gone: the action: relation", "[jobs.writes-and-gone]"),
            ("jobs", "job as-nobody: the action: role \"nobody-here\" does not exist", "[jobs.as-nobody]"),
        ],
    );
    assert_eq!((about("job right"), about("job off"), about("job writes:")), (0, 0, 0), "{found:?}");
    assert_eq!(database.count("select count(*) from open").await, 0);
}

#[tokio::test]
async fn who_may_only_look_is_told_what_was_skipped() {
    let (database, kafka) = (Postgres::shared().await.database().await, Kafka::shared().await);
    let outboxd = Outboxd::new(&database, kafka).postgres_url(&database.reader_url());
    let output = outboxd.run(&["doctor"]).await;
    assert!(output.stdout.contains("skip  partitions"), "{}", output.stdout);
    assert!(output.stdout.contains("permission denied"), "{}", output.stdout);
}
