//! Is the process alive, is it ready, what does it count: for anyone who asks.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use serde_json::{Map, Value, json};

use super::Site;
use crate::telemetry::metrics;

/// The process works: 200 also while it waits or drains.
pub(super) async fn healthz(State(site): State<Arc<Site>>) -> Response {
    let alive = (site.report)().alive;
    let status = if alive { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "status": if alive { "ok" } else { "stuck" } }))).into_response()
}

/// It can do its work now; `?verbose` answers in lines.
pub(super) async fn readyz(State(site): State<Arc<Site>>, RawQuery(query): RawQuery) -> Response {
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
pub(super) async fn metrics(State(site): State<Arc<Site>>) -> Response {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], (site.metrics)()).into_response()
}
