//! The HTTP server of a daemon: health, metrics, an API, a dashboard.
//!
//! Health and metrics answer anyone and never ask the database. The rest is guarded (`guard`), reads through a few
//! connections of its own (`database`), and does what operators do by the same functions as the commands.

mod api;
mod bulk;
mod database;
mod flow;
mod guard;
mod health;
mod input;
mod pages;
mod problem;
mod server;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state, map_response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::config::{self, http::LISTEN};
use crate::domain::health::Report;
use crate::pg::Connector;
use bulk::Bulk;
use database::Database;
use flow::Flow;

/// How many ports after the default are tried.
const PORTS_TRIED: u16 = 100;

/// The longest body that is read.
const MOST_BYTES: usize = 16 << 20;

/// What a site is made of.
pub struct Parts {
    pub report: Box<dyn Fn() -> Report + Send + Sync>,
    pub metrics: Box<dyn Fn() -> String + Send + Sync>,
    pub connector: Connector,
    pub settings: config::Http,
    /// Who is silent for longer is not alive.
    pub inactive_after: Duration,
    /// Kafka's limit for one record.
    pub largest_record: usize,
}

/// What requests are answered from.
struct Site {
    report: Box<dyn Fn() -> Report + Send + Sync>,
    metrics: Box<dyn Fn() -> String + Send + Sync>,
    database: Database,
    settings: config::Http,
    is_local: bool,
    inactive_after: Duration,
    largest_record: usize,
    bulk: Bulk,
    flow: Flow,
}

/// Binds the address that the operator chose, or the default, or the next free port.
pub async fn bind(config: &config::Http) -> std::io::Result<TcpListener> {
    if let Some(address) = config.listen {
        return TcpListener::bind(address)
            .await
            .map_err(|error| std::io::Error::new(error.kind(), format!("[http] listen {address}: {error}")));
    }
    let first: SocketAddr = LISTEN.parse().unwrap_or_else(|_| (Ipv4Addr::LOCALHOST, 9464).into());
    let mut last = None;
    for port in first.port()..first.port() + PORTS_TRIED {
        match TcpListener::bind((first.ip(), port)).await {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| std::io::ErrorKind::AddrInUse.into()))
}

/// Answers until it is dropped.
pub async fn answer(listener: TcpListener, parts: Parts) -> std::io::Result<()> {
    let is_local = listener.local_addr()?.ip().is_loopback();
    if !is_local && parts.settings.token_file.is_none() {
        tracing::info!("dashboard and API are closed: off loopback they need `[http] token_file`");
    }
    let site = Arc::new(Site {
        report: parts.report,
        metrics: parts.metrics,
        database: Database::new(parts.connector),
        settings: parts.settings,
        is_local,
        inactive_after: parts.inactive_after,
        largest_record: parts.largest_record,
        bulk: Bulk::default(),
        flow: Flow::default(),
    });
    let _flow = AbortOnDropHandle::new(tokio::spawn(flow::keep(Arc::clone(&site))));
    server::serve(listener, routes(site)).await;
    Ok(())
}

fn routes(site: Arc<Site>) -> Router {
    let guarded = api::routes()
        .merge(pages::routes())
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(from_fn_with_state(Arc::clone(&site), guard::check));
    Router::new()
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics))
        .merge(guarded)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .fallback(problem::not_found)
        .layer(from_fn_with_state(guard::PATIENCE, guard::limit_time))
        .layer(from_fn(pages::tell_browsers))
        .layer(map_response(guard::confine))
        .layer(DefaultBodyLimit::max(MOST_BYTES))
        .with_state(site)
}
