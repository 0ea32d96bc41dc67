//! P4 to P7 under faults in any order: a seeded schedule, as that of the relay. Three groups read what applications write:
//! one has its effects in the database, one calls a server of this test that is often not well, one has workers that are no
//! better; and now and then comes a message that kills the process of whoever gives it to these.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use fastrand::Rng;
use tempfile::TempDir;
use uuid::Uuid;

use super::soak::{SERVICE_FAULTS, Services, from_environment, let_pass};
use crate::support::ledger::Ledger;
use crate::support::{Daemon, Database, Outboxd, database, eventually, until_none_is_left};

const SECONDS: u64 = 30;

/// After the last fault something has to happen within this time: takeovers, failures of the longest backoff.
const PATIENCE: Duration = Duration::from_secs(60);

const WRITERS: u64 = 1;

/// Between two faults, and how long one lasts, at the most.
const PAUSE: u64 = 2_000;

/// Of the server, the function and the workers: so many of a hundred calls fail.
const TROUBLE: u8 = 5;

const GROUPS: [&str; 3] = ["effects", "calls", "works"];

/// With every so many faults comes a message that kills.
const DEADLY_EVERY: usize = 20;
const FIRST_DEADLY: usize = 2;

const FUNCTION: &str = "
    create table public.effects (n bigserial, id uuid);
    create table public.well ();
    create function public.apply(delivery outboxd.delivery) returns void language plpgsql as $$
    begin
      insert into public.effects (id) values (delivery.id);
      if random() < 0.05 and to_regclass('public.well') is not null then
        raise exception 'not now';
      end if;
    end $$;
    grant insert, select on public.effects to outboxd_agent;
    grant usage on sequence public.effects_n_seq to outboxd_agent";

/// Where the group `calls` delivers: what it said yes to, by message.
#[derive(Clone, Default)]
struct Server {
    done: Arc<Mutex<HashMap<String, usize>>>,
    is_well: Arc<AtomicBool>,
}

impl Server {
    async fn listen(self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let router = Router::new().route("/", post(Self::answer)).with_state(self);
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }

    async fn answer(State(server): State<Self>, headers: HeaderMap) -> Response {
        let id = headers["ce-id"].to_str().unwrap().to_owned();
        if !server.is_well.load(Ordering::Relaxed) && fastrand::u8(0..100) < TROUBLE {
            match fastrand::u8(0..4) {
                0 => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
                1 => return (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "1")]).into_response(),
                // Not a wait: longer than the handler's time limit, before and after the effect.
                2 => tokio::time::sleep(Duration::from_secs(3)).await,
                _ => {
                    *server.done.lock().unwrap().entry(id.clone()).or_default() += 1;
                    // Not a wait either.
                    tokio::time::sleep(Duration::from_secs(3)).await;
                    return StatusCode::OK.into_response();
                }
            }
        }
        *server.done.lock().unwrap().entry(id).or_default() += 1;
        StatusCode::OK.into_response()
    }
}

/// The program of the group `works`, and what it has done.
struct Worker(TempDir);

impl Worker {
    fn new() -> Self {
        let worker = Self(TempDir::with_prefix("outboxd-worker-").unwrap());
        let program = format!(
            r#"n=$$
while IFS= read -r line; do
  id=${{line#'{{"id":"'}}
  id=${{id%%'"'*}}
  case $line in *'"payload":"deadly"'*) kill -9 $PPID; exit;; esac
  n=$((n + 1))
  trouble=none
  [ -e {well} ] || [ $((n % 100)) -ge {TROUBLE} ] || trouble=$((n % 4))
  case $trouble in
    0) printf '{{"id":"%s","outcome":"retry","after":1}}
' "$id"; continue;;
    1) exit 1;;
  esac
  echo "$id" >> {done}
  case $trouble in
    2) echo nonsense;;
    3) sleep 3;;
    *) printf '{{"id":"%s","outcome":"done"}}
' "$id";;
  esac
done
"#,
            well = worker.file("well"),
            done = worker.file("done")
        );
        fs::write(worker.file("done"), "").unwrap();
        fs::write(worker.file("program"), program).unwrap();
        worker
    }

    fn file(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn is_well(&self) {
        fs::write(self.file("well"), "").unwrap();
    }

    fn handler(&self) -> String {
        let program = self.file("program");
        format!("kind = \"exec\"\nmode = \"worker\"\ncommand = [\"sh\", \"{program}\"]\ntimeout = \"1s\"")
    }

    /// What it was called for, with an effect.
    fn done(&self) -> Vec<String> {
        fs::read_to_string(self.file("done")).unwrap().lines().map(str::to_owned).collect()
    }
}

/// What breaks.
struct Site {
    services: Services,
    database: Database,
    outboxd: Outboxd,
    _producer: Daemon,
    consumers: [Daemon; 2],
    topic: String,
    /// Messages that kill, and consumers that died of them.
    deadly: Vec<Uuid>,
    deaths: usize,
}

impl Site {
    async fn new(url: &str, worker: &Worker) -> Self {
        let services = Services::start().await;
        let (database, topic) = (services.database().await, services.kafka().topic(4).await);
        database.batch(FUNCTION).await;
        let soon = "{ max_attempts = 1000, backoff = \"100ms\", max_backoff = \"1s\", deadline = \"3s\" }";
        let outboxd = services
            .outboxd(&database)
            .set("producer.lease = \"1s\"")
            .set("kafka.consumer.\"session.timeout.ms\" = \"6000\"")
            .set(&format!("groups.effects.retry = {soon}"))
            .set(&format!("groups.calls.retry = {soon}"))
            .set(&format!("groups.works.retry = {}", soon.replace(" }", ", max_starts = 3 }")))
            .group("effects", &topic, "kind = \"sql\"\nfunction = \"public.apply\"\ntimeout = \"5s\"")
            .group("calls", &topic, &format!("kind = \"http\"\nurl = \"{url}\"\ntimeout = \"1s\""))
            .group("works", &topic, &worker.handler());
        let producer = outboxd.producer();
        let consumers = [outboxd.consumer(&GROUPS), outboxd.consumer(&GROUPS)];
        Self {
            services,
            database,
            outboxd,
            _producer: producer,
            consumers,
            topic,
            deadly: Vec::new(),
            deaths: 0,
        }
    }

    fn consumer(&self) -> Daemon {
        self.outboxd.consumer(&GROUPS)
    }

    /// As systemd does.
    fn revive(&mut self) {
        for which in 0..self.consumers.len() {
            if !self.consumers[which].is_running() {
                self.deaths += 1;
                self.consumers[which] = self.consumer();
            }
        }
    }

    /// Without a key, so that it is never one that waits for another to be retried.
    async fn send_deadly(&mut self) {
        let insert = "insert into outboxd.messages (topic, payload) values ($1, 'deadly')
            returning outboxd.message_id(created_at, seq)";
        self.deadly.push(self.database.query_one(insert, &[&self.topic]).await.get(0));
    }

    /// Who dies with one that is alone in its process makes it the culprit, whoever was it.
    async fn nobody_is_alone(&mut self) {
        let client = self.database.connect().await;
        eventually("nobody is on its last start", PATIENCE, async || {
            self.revive();
            let alone = "select not exists (select from outboxd.starts where alone)";
            client.query_one(alone, &[]).await.unwrap().get(0)
        })
        .await;
    }

    async fn fault(&mut self, number: usize, rng: &mut Rng) {
        let time = Duration::from_millis(rng.u64(50..PAUSE));
        let which = usize::from(rng.bool());
        let kind = rng.u8(0..5 + SERVICE_FAULTS);
        println!("fault {number}: kind {kind}, consumer {which}, {time:?}");
        if number % DEADLY_EVERY == FIRST_DEADLY {
            self.send_deadly().await;
        }
        self.nobody_is_alone().await;
        match kind {
            0 | 1 => {
                self.consumers[which].kill();
                self.consumers[which] = self.consumer();
            }
            2 => {
                // Past its session: the other takes its partitions over, and this one wakes up.
                self.consumers[which].pause();
                let_pass(Duration::from_secs(6) + time).await;
                self.consumers[which].resume();
            }
            kind if kind < 3 + SERVICE_FAULTS => self.services.fault(kind - 3, time, rng).await,
            _ => {
                self.consumers[which].terminate();
                self.consumers[which].wait_exit().await;
                self.consumers[which] = self.consumer();
            }
        }
    }
}

/// What a group that stands still may wait for, in lines.
const STANDING: &str = "
    select format('failures %s: %s, attempts up to %s, next at %s, target %s, error %s', state, count(*), max(attempts),
      min(next_attempt_at), min(target::text), min(error)) from outboxd.failures where consumer_group = $1 group by state
    union all select format('keys held: %s', count(*)) from outboxd.held_keys where consumer_group = $1
    union all select format('operations claimed: %s', count(*)) from outboxd.idempotency_keys
      where consumer_group = $1 and state = 'claimed'
    union all select format('in doubt after %s starts: %s', starts, count(*)) from outboxd.starts
      where consumer_group = $1 group by starts
    union all select format('breaker until %s: %s', breaker_until, breaker_reason) from outboxd.groups
      where name = $1 and breaker_until is not null
    union all select format('session in %s for %s (%s), behind %s: %s', state, clock_timestamp() - state_change,
      wait_event, pg_blocking_pids(pid), left(query, 100)) from pg_stat_activity
      where usename = 'agent' and state <> 'idle' and application_name like 'outboxd/consumer%'
    union all select format('%s of partition %s, since %s', next_offset, partition, updated_at) from outboxd.group_positions
      where consumer_group = $1";

impl Site {
    /// Messages without evidence of that group that it has not given up.
    async fn unhandled(&self, group: &str) -> Option<i64> {
        let client = database::try_connect(&self.database.url).await.ok()?;
        let count =
            "select count(*) from outboxd.messages m, outboxd.message_id(m.created_at, m.seq) as own (id)
            where topic = $1
              and not exists (select from outboxd.handled where consumer_group = $2 and message_id = own.id)
              and not exists (select from outboxd.failures
                where consumer_group = $2 and message_id = own.id and state = 'dead')";
        client.query_one(count, &[&self.topic, &group]).await.ok().map(|row| row.get(0))
    }

    /// By their group and their reason.
    async fn dead(&self) -> Vec<(String, String, Uuid)> {
        let dead = "select consumer_group, reason, message_id from outboxd.failures where state = 'dead'";
        let rows = self.database.query(dead, &[]).await;
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
    }

    async fn standing(&self, group: &str) -> String {
        let mut lines: Vec<String> =
            self.database.query(STANDING, &[&group]).await.iter().map(|row| row.get(0)).collect();
        for consumer in &self.consumers {
            let (_, report) = consumer.get("/readyz?verbose").await.unwrap_or_default();
            lines.push(format!("{}: {}", consumer.listen, report.trim().replace('\n', "; ")));
        }
        lines.join("\n")
    }
}

#[tokio::test]
async fn no_schedule_of_faults_skips_a_message_or_repeats_an_effect() {
    let seed = from_environment("SOAK_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    let time = Duration::from_secs(from_environment("SOAK_SECONDS").unwrap_or(SECONDS));
    println!("SOAK_SEED={seed}, for {time:?}");
    let mut rng = Rng::with_seed(seed);
    let server = Server::default();
    let worker = Worker::new();
    let mut site = Site::new(&server.clone().listen().await, &worker).await;
    let ledger = Ledger::new(&site.database, &site.topic);
    let writers = ledger.keep_writing(WRITERS);
    ledger.flows(&site.database).await;
    let begun = Instant::now();
    let mut faults = 0;
    while begun.elapsed() < time {
        faults += 1;
        site.fault(faults, &mut rng).await;
        let_pass(Duration::from_millis(rng.u64(50..PAUSE))).await;
    }
    writers.stop().await;
    server.is_well.store(true, Ordering::Relaxed);
    worker.is_well();
    site.database.batch("drop table public.well").await;
    eventually("what kills is given up", PATIENCE * 3, async || {
        site.revive();
        site.dead().await.len() >= site.deadly.len()
    })
    .await;
    for group in GROUPS {
        let what = format!("messages that {group} has to handle");
        until_none_is_left(
            &what,
            PATIENCE,
            async || site.unhandled(group).await,
            async || site.standing(group).await,
        )
        .await;
    }
    let messages = site.database.count("select count(*) from outboxd.messages where retry is null").await;
    Ledger::check_effects(messages, &site.database).await;
    let done = server.done.lock().unwrap().clone();
    assert_eq!(i64::try_from(done.len()).unwrap(), messages, "a message was called for, with success");
    let again: usize = done.values().map(|times| times - 1).sum();
    let given_up: HashSet<_> = site.dead().await.into_iter().collect();
    let expected = site.deadly.iter().map(|id| ("works".to_owned(), "starts".to_owned(), *id));
    assert_eq!(given_up, expected.collect(), "nobody is blamed but who kills");
    let works = worker.done();
    let distinct: HashSet<&String> = works.iter().collect();
    let survivors = messages - i64::try_from(site.deadly.len()).unwrap();
    assert_eq!(i64::try_from(distinct.len()).unwrap(), survivors, "a message was worked on, with success");
    println!(
        "SOAK_SEED={seed}: {faults} faults, {messages} messages, {again} calls repeated, {} works repeated, {} deaths by \
         {} messages",
        works.len() - distinct.len(),
        site.deaths,
        site.deadly.len()
    );
    assert!(site.consumers.iter().all(Daemon::is_running));
}
