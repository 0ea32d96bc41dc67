use std::path::Path;

use crate::config::Config;

const HEAD: &str = "postgres.url = \"postgres://u@h/db\"\n";

/// The first line of what is said, without the file's name, and how far the caret reaches.
fn problem(lines: &str) -> (String, String) {
    let parsed = Config::parse(&format!("{HEAD}{lines}\n"), Some(Path::new("f")), []);
    let text = parsed.map(drop).expect_err(lines).to_string();
    let (mut said, caret) = (text.lines(), text.lines().last().unwrap());
    let first = said.next().unwrap().strip_prefix("f:").unwrap().to_owned();
    (first, caret.trim_start_matches([' ', '|']).to_owned())
}

#[test]
fn what_is_wrong_with_a_job_is_said_at_its_place() {
    let job = |keys: &str| format!("[jobs.mine]\nschedule = \"@daily\"\n{keys}");
    let action = |keys: &str| job(&format!("action = {{ {keys} }}"));
    let sql = "action = { kind = \"sql\", statement = \"select 1\" }";
    for (lines, place, words) in [
        (job(""), "2:1", "`action` is missing"),
        (
            format!("[jobs.mine]\n{sql}"),
            "2:1",
            "`schedule` is missing: when is it to run? `on` can say that too",
        ),
        (format!("[jobs.mine]\nschedule = \"0 0 30 2 *\"\n{sql}"), "3:12", "no day fits"),
        (format!("[jobs.mine]\nschedule = \"every 0s\"\n{sql}"), "3:12", "`schedule`"),
        (format!("[jobs.mine]\nschedule = \"sometimes\"\n{sql}"), "3:12", "`schedule`"),
        (job(&format!("timezone = \"Mars/Base\"\n{sql}")), "4:12", "`timezone` must be a timezone"),
        (
            format!("[jobs.mine]\nschedule = \"every 5s\"\ntimezone = \"Europe/Paris\"\n{sql}"),
            "4:12",
            "needs a cron expression",
        ),
        (format!("{}\n{}", job(sql), job(sql)), "5:7", "duplicate key"),
        (job(&format!("when = \"delete from t\"\n{sql}")), "4:8", "must be a query that gives one boolean"),
        (job(&format!("when = \"select 1, 2\"\n{sql}")), "4:8", "this is a query of several columns"),
        (
            job(&format!("when = \"select count(*) from invoices\"\n{sql}")),
            "4:8",
            "this is a value, and no comparison of it",
        ),
        (format!("[jobs.mine]\non = \"true\"\n{sql}"), "3:6", "must be a query that gives one boolean"),
        (
            format!("[jobs.mine]\non = \"select true\"\noverlap = \"queue\"\n{sql}"),
            "4:1",
            "unknown key `overlap`",
        ),
        (job(&format!("cooldown = \"1m\"\n{sql}")), "4:1", "unknown key `cooldown`"),
        (
            format!("[jobs.mine]\non = \"select true\"\nscope = \"agent\"\n{sql}"),
            "4:9",
            "must be \"cluster\" with `on`",
        ),
        (job(&format!("overlap = \"both\"\n{sql}")), "4:11", "`skip`, `queue`"),
        (job(&format!("misfire = \"twice\"\n{sql}")), "4:11", "`skip`, `once`, `all`"),
        (job(&format!("misfire_cap = 0\n{sql}")), "4:15", "`misfire_cap` must be from 1"),
        (job(&format!("timeout = \"0s\"\n{sql}")), "4:11", "`timeout` must be from 1s"),
        (job(&format!("jitter = \"2days\"\n{sql}")), "4:10", "`jitter` must be from 0s"),
        (job(&format!("run_as = \"\"\n{sql}")), "4:10", "must be the name of a role"),
        (job(&format!("role = \"both\"\n{sql}")), "4:8", "`producer`, `consumer`"),
        (job(&format!("statement_timeout = \"0s\"\n{sql}")), "4:21", "`statement_timeout` must be from"),
        (action(""), "4:10", "`kind` is missing in [jobs.mine.action]"),
        (action("kind = \"sqll\""), "4:19", "did you mean `sql`?"),
        (action("kind = \"sql\""), "4:10", "`statement` is missing"),
        (action("kind = \"sql\", statement = \"commit\""), "4:38", "must not begin with `commit`"),
        (action("kind = \"sql\", statement = \"\""), "4:38", "must be a statement"),
        (action("kind = \"enqueue\""), "4:10", "`topic` is missing"),
        (action("kind = \"enqueue\", topic = \"a b\""), "4:38", "which Kafka forbids as a topic"),
        (action("kind = \"enqueue\", topic = \"a\", headers = { id = \"1\" }"), "4:55", "is set by outboxd"),
        (action("kind = \"http\""), "4:10", "`url` is missing"),
        (action("kind = \"http\", url = \"shop\""), "4:33", "`url`"),
        (action("kind = \"exec\""), "4:10", "`command` is missing"),
        (action("kind = \"exec\", command = []"), "4:37", "`command` must not be empty"),
        (action("kind = \"exec\", command = [\"x\"], topic = \"a\""), "4:44", "unknown key `topic`"),
        (format!("[jobs.\"my job\"]\n{sql}"), "2:7", "is not a name for a job"),
        (format!("[jobs.consume-orders]\n{sql}"), "2:7", "is configured elsewhere"),
        (
            "[jobs.cleanup]\naction = { kind = \"sql\", statement = \"select 1\" }".into(),
            "3:1",
            "unknown key `action`",
        ),
        ("[jobs.process-pending]\ntimeout = \"5s\"".into(), "3:1", "unknown key `timeout`"),
    ] {
        let (said, caret) = problem(&lines);
        assert!(
            said.starts_with(&format!("{place}: ")) && said.contains(words),
            "{lines}\n{place} {words}\n{said}"
        );
        assert!(!caret.is_empty() && caret.chars().all(|c| c == '^'), "{lines}\n{said}\n{caret}");
    }
}
