//! The HTTP server of a daemon: is the process alive, is it ready, what does it count.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use axum::{Router, serve};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;

use crate::config::{self, http::LISTEN};
use crate::domain::health::Report;
use crate::telemetry::metrics;

/// How many ports after the default are tried.
const PORTS_TRIED: u16 = 100;

/// What is answered with, made when it is asked for.
pub struct Site {
    pub report: Box<dyn Fn() -> Report + Send + Sync>,
    pub metrics: Box<dyn Fn() -> String + Send + Sync>,
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

/// Answers until the process ends.
pub async fn answer(listener: TcpListener, site: Site) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Arc::new(site));
    serve(listener, routes).await
}

/// The process works: 200 also while it waits or drains.
async fn healthz(State(site): State<Arc<Site>>) -> Response {
    let alive = (site.report)().alive;
    let status = if alive { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "status": if alive { "ok" } else { "stuck" } }))).into_response()
}

/// It can do its work now; `?verbose` answers in lines.
async fn readyz(State(site): State<Arc<Site>>, RawQuery(query): RawQuery) -> Response {
    let report = (site.report)();
    let status = if report.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if query
        .is_some_and(|query| query.split('&').any(|part| part == "verbose" || part.starts_with("verbose=")))
    {
        let line = |name: &str, problem: Option<&str>| match problem {
            None => format!("[+] {name} ok\n"),
            Some(problem) => format!("[-] {name}: {problem}\n"),
        };
        let lines: String =
            report.checks.iter().map(|check| line(check.name, check.problem.as_deref())).collect();
        return (status, lines).into_response();
    }
    let checks: Map<String, Value> = report
        .checks
        .iter()
        .map(|check| (check.name.to_owned(), json!(check.problem.as_deref().unwrap_or("ok"))))
        .collect();
    (
        status,
        Json(json!({ "status": if report.is_ready() { "ready" } else { "not ready" }, "checks": checks })),
    )
        .into_response()
}

/// For Prometheus.
async fn metrics(State(site): State<Arc<Site>>) -> Response {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], (site.metrics)()).into_response()
}
