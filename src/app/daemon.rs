//! What every daemon has: a listener, a report of its health, an agent in the database, a drain that ends in time.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::reload::{Reload, Reloaded};
use crate::agents::{self, Member, Pulse};
use crate::config::Config;
use crate::domain::health::{Check, Report, STUCK_AFTER, Vitals, WAITING_FOR};
use crate::domain::schedule::Schedule;
use crate::failure::{Exit, Failure, Kind};
use crate::jobs::own::Prepared;
use crate::jobs::runner::{self, Event, Job, Observer, Order, Runner, RunnerStatus};
use crate::lifecycle::{self, Lifecycle};
use crate::pg::agents::Registration;
use crate::pg::migrate::{self, Fit};
use crate::pg::{Connector, PgError};
use crate::producer::Gate;
use crate::telemetry::metrics::{Alone, Gauges, JobPolicy, Metrics, Version};
use crate::{http, jobs};

/// Between two tries to get started.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// How often a wait is told.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// What a role tells of itself.
pub(super) trait Role: Vitals + Gauges {}
impl<T: Vitals + Gauges> Role for T {}

/// A daemon in the making: it listens and answers health checks, and waits for its database.
pub(super) struct Daemon {
    pub(super) config: Config,
    pub(super) lifecycle: Lifecycle,
    role: &'static str,
    groups: Vec<String>,
    address: SocketAddr,
    board: Arc<Board>,
    runner: Arc<RunnerStatus>,
    /// The user's.
    own_jobs: Vec<Prepared>,
    jobs: Option<AbortOnDropHandle<()>>,
    /// To the runner, for jobs that are configured anew.
    swaps: Option<mpsc::UnboundedSender<Vec<Job>>>,
    reload: Option<Reload>,
    /// Of the relay.
    pub(super) gate: Arc<Gate>,
    tasks: Vec<AbortOnDropHandle<()>>,
}

/// Checks that a start can wait for.
const DATABASE: &str = "database";
const SCHEMA: &str = "schema";

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the health report is made of.
struct Board {
    fingerprint: Mutex<String>,
    roles: Vec<Arc<dyn Role>>,
    runner: Arc<RunnerStatus>,
    metrics: Arc<Metrics>,
    lifecycle: Lifecycle,
    heartbeat: Duration,
    role: &'static str,
    /// What the start waits for, and which check that is.
    waiting: Mutex<Option<(&'static str, String)>>,
    /// What waits in the database that nobody moves.
    standing: Mutex<Option<String>>,
    pulse: OnceLock<Arc<Pulse>>,
}

impl Board {
    fn vitals(&self) -> impl Iterator<Item = &dyn Vitals> {
        let roles = self.roles.iter().map(|role| -> &dyn Vitals { &**role });
        roles.chain(std::iter::once::<&dyn Vitals>(&*self.runner))
    }

    fn wait_for(&self, what: Option<(&'static str, String)>) {
        *locked(&self.waiting) = what;
    }

    /// For what, whatever it is.
    fn waits(&self) -> Option<String> {
        let of_one = |vitals: &dyn Vitals| vitals.kafka_away().into_iter().chain(vitals.waiting_for());
        let mut reasons: Vec<String> = self.vitals().flat_map(of_one).collect();
        reasons.dedup();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    fn has_config(&self, config: &Config) {
        *locked(&self.fingerprint) = fingerprint(config);
    }

    fn report(&self) -> Report {
        let waiting = locked(&self.waiting).clone();
        let since_turn = self.vitals().map(Vitals::since_turn).max().unwrap_or_default();
        let stuck = waiting.is_none() && since_turn >= STUCK_AFTER;
        let pulse = self.pulse.get();
        let beat_age = pulse.map(|pulse| pulse.age()).unwrap_or_default();
        let waits = |check| waiting.as_ref().filter(|(name, _)| *name == check).map(|(_, what)| what.clone());
        let joined = |reasons: Vec<String>| (!reasons.is_empty()).then(|| reasons.join("; "));
        let checks = vec![
            Check {
                name: DATABASE,
                problem: waits(DATABASE).or_else(|| pulse.and_then(|pulse| pulse.trouble())),
            },
            Check {
                name: SCHEMA,
                problem: waits(SCHEMA).or_else(|| waits(DATABASE).map(|_| "it is not known yet".to_owned())),
            },
            Check {
                name: "heartbeat",
                problem: (beat_age > self.heartbeat * 2)
                    .then(|| format!("the last one arrived {}s ago", beat_age.as_secs())),
            },
            Check {
                name: "draining",
                problem: self.lifecycle.drain.is_cancelled().then(|| "no new work is taken on".to_owned()),
            },
            Check {
                name: "loop",
                problem: stuck.then(|| format!("a loop has not turned for {}s", since_turn.as_secs())),
            },
            Check { name: "kafka", problem: joined(self.vitals().filter_map(Vitals::kafka_away).collect()) },
            Check {
                name: if self.role == "producer" { "lanes" } else { "retries" },
                problem: locked(&self.standing).clone(),
            },
            Check { name: "work", problem: joined(self.vitals().filter_map(Vitals::waiting_for).collect()) },
        ];
        Report { checks, alive: !stuck }
    }

    /// The answer of `/metrics`. It asks nobody: what the database has to say is asked at intervals.
    fn metrics(&self) -> String {
        for role in &self.roles {
            role.show();
        }
        let draining = self.lifecycle.drain.is_cancelled();
        self.metrics.draining.get_or_create(&Alone).set(draining.into());
        self.metrics.text().unwrap_or_default()
    }

    fn health(&self) -> Value {
        let mut document = Map::new();
        for part in self.vitals().map(Vitals::health) {
            if let Value::Object(part) = part {
                document.extend(part);
            }
        }
        document.insert(WAITING_FOR.into(), self.waits().into());
        document.insert("config".into(), Value::from(&**locked(&self.fingerprint)));
        Value::Object(document)
    }
}

/// Of what a file says for the whole cluster: agents whose files differ in it are told apart by this.
fn fingerprint(config: &Config) -> String {
    let groups: Vec<_> =
        config.groups.iter().map(|(name, group)| (name, &group.topics, group.retry)).collect();
    let said = format!("{:?}", (&config.retention, groups, &config.jobs));
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64(said.as_bytes()))
}

/// Why a start is not possible yet, or never.
enum Hindrance {
    /// For what the check of that name tells.
    Wait(&'static str, String),
    Never(String),
}

impl From<PgError> for Hindrance {
    fn from(error: PgError) -> Self {
        Self::Wait(DATABASE, error.to_string())
    }
}

impl Daemon {
    /// Binds the listener and tells systemd that the start is over; the rest is waited for.
    pub(super) async fn start(
        config: Config,
        lifecycle: Lifecycle,
        role: &'static str,
        groups: Vec<String>,
        vitals: Vec<Arc<dyn Role>>,
        metrics: Arc<Metrics>,
        reload: Option<Reload>,
    ) -> anyhow::Result<Self> {
        // Before anything is joined: what is wrong with one is the operator's to mend.
        let own_jobs = jobs::own::prepare(&config.jobs, role)
            .map_err(|error| Failure::new(Kind::Configuration, error.to_string()))?;
        let runner = Arc::new(RunnerStatus::default());
        let listener = http::bind(&config.http).await?;
        let address = listener.local_addr()?;
        let version = Version { version: env!("CARGO_PKG_VERSION") };
        metrics.build_info.get_or_create(&version).set(1);
        let board = Arc::new(Board {
            fingerprint: Mutex::new(fingerprint(&config)),
            roles: vitals,
            runner: Arc::clone(&runner),
            metrics,
            lifecycle: lifecycle.clone(),
            heartbeat: config.agent.heartbeat,
            role,
            waiting: Mutex::new(Some((DATABASE, "PostgreSQL has not been asked yet".into()))),
            standing: Mutex::default(),
            pulse: OnceLock::new(),
        });
        tracing::info!("health on http://{address}/healthz and /readyz");
        let connector = Connector::new(&config.postgres, format!("outboxd/{role}/http"));
        let (settings, inactive_after) = (config.http.clone(), config.agent.inactive_after);
        let largest_record = config.kafka.largest_record().map_err(anyhow::Error::msg)?;
        let (answered, informed) = (Arc::clone(&board), Arc::clone(&board));
        let tasks = vec![
            AbortOnDropHandle::new(tokio::spawn(async move {
                let (reports, measures) = (Arc::clone(&answered), answered);
                let parts = http::Parts {
                    report: Box::new(move || reports.report()),
                    metrics: Box::new(move || measures.metrics()),
                    connector,
                    settings,
                    inactive_after,
                    largest_record,
                };
                if let Err(error) = http::answer(listener, parts).await {
                    tracing::error!("the HTTP server has ended: {error}");
                }
            })),
            AbortOnDropHandle::new(tokio::spawn(lifecycle::keep_systemd_informed(move || informed.report()))),
        ];
        Ok(Self {
            config,
            lifecycle,
            role,
            groups,
            address,
            board,
            runner,
            own_jobs,
            jobs: None,
            swaps: None,
            reload,
            gate: Arc::new(Gate::new(false)),
            tasks,
        })
    }

    /// Connections of this daemon, under the name that Postgres shows.
    pub(super) fn connector(&self, name: &str) -> Connector {
        Connector::new(&self.config.postgres, format!("outboxd/{}/{name}", self.role))
    }

    fn wanted_name(&self, host: &str) -> String {
        self.config.agent.name.clone().unwrap_or_else(|| {
            let mut name = format!("{host}-{}", self.role);
            for group in &self.groups {
                name.push('-');
                name.push_str(group);
            }
            name
        })
    }

    /// Registers the agent, as soon as the database and its schema are there; `None` if a drain came first.
    pub(super) async fn join(&mut self) -> anyhow::Result<Option<Member>> {
        let host = host_name();
        let name = self.wanted_name(&host);
        let registration = Registration {
            id: Uuid::new_v4(),
            name: name.clone(),
            name_is_chosen: self.config.agent.name.is_some(),
            role: self.role,
            groups: self.groups.clone(),
            host,
            pid: i32::try_from(std::process::id()).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").into(),
            http: Some(format!("http://{}", self.address)),
            heartbeat: self.config.agent.heartbeat,
        };
        let connector = self.connector(&name);
        let mut told: Option<(Instant, String)> = None;
        while !self.lifecycle.drain.is_cancelled() {
            let joined = tokio::select! {
                joined = self.try_join(&connector, registration.clone()) => joined,
                () = self.lifecycle.drain.cancelled() => break,
            };
            match joined {
                Ok(member) => {
                    self.board.wait_for(None);
                    let _ = self.board.pulse.set(member.pulse());
                    tracing::info!(agent = member.name, id = %member.id, "{} joined", self.role);
                    self.start_jobs(&member);
                    self.start_census(&member.name);
                    return Ok(Some(member));
                }
                Err(Hindrance::Never(reason)) => anyhow::bail!(reason),
                Err(Hindrance::Wait(check, reason)) => {
                    if told.as_ref().is_none_or(|(at, what)| *what != reason || at.elapsed() >= TELL_EVERY) {
                        tracing::warn!("waiting: {reason}");
                        told = Some((Instant::now(), reason.clone()));
                    }
                    self.board.wait_for(Some((check, reason)));
                }
            }
            let lifecycle = self.lifecycle.clone();
            tokio::select! {
                () = tokio::time::sleep(TRY_AGAIN_AFTER) => {}
                () = lifecycle.drain.cancelled() => {}
                () = self.reload_early() => {}
            }
        }
        Ok(None)
    }

    async fn try_join(&self, connector: &Connector, registration: Registration) -> Result<Member, Hindrance> {
        let connection = connector.connect().await?;
        match migrate::fit(&connection).await? {
            Fit::Fits { .. } => {}
            Fit::Behind { version } => {
                let newest = migrate::newest();
                let reason = format!("the schema is at version {version} of {newest}: run `outboxd migrate`");
                return Err(Hindrance::Wait(SCHEMA, reason));
            }
            Fit::TooNew { version, oldest_compatible } => {
                return Err(Hindrance::Never(migrate::too_new(version, oldest_compatible)));
            }
        }
        let board = Arc::clone(&self.board);
        Ok(agents::join(connector, registration, Arc::new(move || board.health())).await?)
    }

    fn start_census(&mut self, agent: &str) {
        let board = Arc::clone(&self.board);
        let census = agents::Census {
            agent: agent.to_owned(),
            is_producer: self.role == "producer",
            connector: self.connector(agent),
            metrics: Arc::clone(&self.board.metrics),
            published: self.config.retention.published,
            standing: Box::new(move |what| *locked(&board.standing) = what),
        };
        self.tasks.push(AbortOnDropHandle::new(tokio::spawn(census.run())));
    }

    /// Its gate is open all the time, or at its firings.
    fn relay(&self, config: &Config) -> Job {
        let gate = Arc::clone(&self.gate);
        let config = config.jobs.get(jobs::services::PROCESS_PENDING);
        let schedule = config.and_then(|config| config.schedule.as_ref());
        let always = schedule.is_none_or(|schedule| *schedule == Schedule::Continuous);
        jobs::services::process_pending(move |order| match order {
            Order::Paused(paused) => gate.open(always && !paused),
            Order::Run => gate.ring(),
        })
    }

    fn start_jobs(&mut self, member: &Member) {
        let (id, name, ordered_out) = (member.id, member.name.clone(), member.ordered_out.clone());
        let jobs = self.jobs(&self.config, &self.own_jobs, &name);
        let (connector, status) = (self.connector(&name), Arc::clone(&self.runner));
        let (sender, swaps) = mpsc::unbounded_channel();
        let agent = runner::Agent { id, name, ordered_out };
        let runner = Runner::new(connector, agent, jobs, status, self.observer(), swaps);
        self.swaps = Some(sender);
        self.jobs = Some(AbortOnDropHandle::new(tokio::spawn(runner.run(self.lifecycle.drain.clone()))));
    }

    fn jobs(&self, config: &Config, own_jobs: &[Prepared], agent: &str) -> Vec<Job> {
        let connector = self.connector(agent);
        let mut jobs = vec![
            jobs::reap_agents::job(connector.clone(), &config.agent),
            jobs::services::heartbeat(config.agent.heartbeat),
        ];
        jobs.extend(self.groups.iter().map(|group| jobs::services::consume(group)));
        if self.role == "producer" {
            jobs.push(self.relay(config));
            jobs.push(jobs::partitions::job(connector.clone(), &config.retention));
            let retention = config.retention.clone();
            jobs.push(jobs::cleanup::job(connector.clone(), config.kafka.clone(), retention));
            jobs.push(jobs::process_retry::job(
                connector.clone(),
                config.groups.clone(),
                Arc::clone(&self.board.metrics),
            ));
            let Config { kafka, topics, groups, .. } = config;
            let client_id = format!("outboxd-{agent}");
            jobs.extend(jobs::dead_letters::job(connector, kafka.clone(), client_id, topics.clone(), groups));
        }
        let built_in = jobs.into_iter().map(|job| {
            let configured = config.jobs.get(&job.name);
            jobs::configured(job, configured)
        });
        let connector = self.connector(agent);
        let jobs: Vec<Job> = built_in.chain(own_jobs.iter().map(|own| own.job(&connector))).collect();
        for job in &jobs {
            self.board.metrics.foresee_job(&job.name);
        }
        jobs
    }

    /// Counts what becomes of jobs.
    fn observer(&self) -> Observer {
        let metrics = Arc::clone(&self.board.metrics);
        Arc::new(move |event| match event {
            Event::Ended { job, result, took } => metrics.count_run(job, result, took),
            Event::Missed { job, policy, firings } => {
                let missed = JobPolicy { job: job.to_owned(), policy };
                metrics.job_missed_fires.get_or_create(&missed).inc_by(firings.into());
            }
        })
    }

    /// At each SIGHUP what can be changed under way is changed.
    async fn reload_for(&self, agent: &str, reload: Option<Reload>, change: impl Fn(&Config)) {
        let Some(mut reload) = reload else { return std::future::pending().await };
        let mut config = self.config.clone();
        loop {
            let reloaded = reload.next(&config).await;
            config = reloaded.config;
            if let Some(swaps) = &self.swaps {
                let _ = swaps.send(self.jobs(&config, &reloaded.own_jobs, agent));
            }
            self.board.has_config(&config);
            change(&config);
            reload.done();
        }
    }

    /// A file that is read again before anything is begun.
    async fn reload_early(&mut self) {
        let Some(reload) = &mut self.reload else { return std::future::pending().await };
        let Reloaded { config, own_jobs } = reload.next(&self.config).await;
        self.board.has_config(&config);
        (self.config, self.own_jobs) = (config, own_jobs);
        reload.done();
    }

    /// Works until it is done or aborted, says goodbye, and tells how it went. A second signal ends all of it at once.
    pub(super) async fn work(
        mut self,
        member: Member,
        work: impl Future<Output = anyhow::Result<Vec<String>>>,
        change: impl Fn(&Config),
    ) -> anyhow::Result<Exit> {
        let (jobs, reload, agent) = (self.jobs.take(), self.reload.take(), member.name.clone());
        let left = tokio::select! {
            biased;
            signal = self.lifecycle.second_signal() => {
                tracing::error!("left unfinished: {}", self.unfinished().join("; "));
                return Ok(Exit::of_signal(signal));
            }
            left = self.work_and_leave(member, work, jobs) => left?,
            () = Box::pin(self.reload_for(&agent, reload, change)) => unreachable!("it waits for the next"),
        };
        if left.is_empty() {
            tracing::info!("drained");
            return Ok(Exit::Done);
        }
        tracing::error!("the drain ended with work left: {}", left.join("; "));
        Ok(Exit::Failed)
    }

    /// What was left unfinished. Jobs that are under way end before the agent says goodbye.
    async fn work_and_leave(
        &self,
        member: Member,
        work: impl Future<Output = anyhow::Result<Vec<String>>>,
        jobs: Option<AbortOnDropHandle<()>>,
    ) -> anyhow::Result<Vec<String>> {
        let left = {
            tokio::pin!(work);
            tokio::select! {
                left = &mut work => left,
                () = self.lifecycle.drain.cancelled() => {
                    member.drain();
                    let all = async { (work.await, ended(jobs).await).0 };
                    tokio::select! {
                        left = all => left,
                        () = self.lifecycle.abort.cancelled() => Ok(self.unfinished()),
                    }
                }
            }
        };
        member.leave().await;
        left
    }

    fn unfinished(&self) -> Vec<String> {
        let left: Vec<String> = self.board.vitals().filter_map(Vitals::unfinished).collect();
        if left.is_empty() { vec![format!("the {} did not come to its end", self.role)] } else { left }
    }
}

/// A runner that panics has told so, and left nothing behind.
async fn ended(jobs: Option<AbortOnDropHandle<()>>) {
    if let Some(jobs) = jobs {
        let _ = jobs.await;
    }
}

/// As the kernel knows it.
fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "localhost".into(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Gauges for Loop {
        fn show(&self) {}
    }

    struct Loop {
        since_turn: Duration,
        waiting_for: Option<&'static str>,
    }

    impl Vitals for Loop {
        fn health(&self) -> Value {
            Value::Null
        }

        fn since_turn(&self) -> Duration {
            self.since_turn
        }

        fn waiting_for(&self) -> Option<String> {
            self.waiting_for.map(str::to_owned)
        }

        fn kafka_away(&self) -> Option<String> {
            None
        }

        fn unfinished(&self) -> Option<String> {
            None
        }
    }

    fn report(start_waits: bool, since_turn: Duration, waiting_for: Option<&'static str>) -> Report {
        let board = Board {
            fingerprint: Mutex::default(),
            roles: vec![Arc::new(Loop { since_turn, waiting_for })],
            runner: Arc::default(),
            metrics: Arc::default(),
            lifecycle: Lifecycle::manual(),
            heartbeat: Duration::from_secs(1),
            role: "producer",
            waiting: Mutex::new(start_waits.then(|| (DATABASE, "PostgreSQL".to_owned()))),
            standing: Mutex::default(),
            pulse: OnceLock::new(),
        };
        board.report()
    }

    #[test]
    fn a_stuck_loop_is_not_alive_and_one_that_waits_is() {
        let (soon, late) = (Duration::from_secs(59), Duration::from_secs(61));
        assert!(report(false, soon, None).is_ready());
        let stuck = report(false, late, None);
        assert!(!stuck.alive && stuck.problem() == Some("a loop has not turned for 61s"));
        let waits = report(false, soon, Some("Kafka"));
        assert!(waits.alive && !waits.is_ready() && waits.problem() == Some("Kafka"));
        let starts = report(true, late, None);
        assert!(starts.alive && !starts.is_ready() && starts.problem() == Some("PostgreSQL"));
    }
}
