//! What went wrong, as `application/problem+json`; for people, as a page.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio_postgres::error::SqlState;
use utoipa::ToSchema;

use crate::pg::PgError;
use crate::pg::connect::QueryError;

pub(super) const CONTENT_TYPE: &str = "application/problem+json";

/// A problem as RFC 9457 has it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Problem {
    /// Always `about:blank`: the status says what kind of problem it is.
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("Problem"),
            status: status.as_u16(),
            detail: detail.into(),
        }
    }

    pub(super) fn bad(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    pub(super) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    pub(super) fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, detail)
    }

    pub(super) fn title(&self) -> &'static str {
        self.title
    }

    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    pub(super) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status();
        let body = serde_json::to_string(&self).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], body).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // For who tells it by a page.
        response.extensions_mut().insert(self);
        response
    }
}

impl From<PgError> for Problem {
    fn from(error: PgError) -> Self {
        let code = match &error {
            PgError::Query(QueryError(error)) => error.code().map_or("", SqlState::code).to_owned(),
            PgError::Unreachable { .. } | PgError::Setup(_) => String::new(),
        };
        let status = match &*code {
            // A value or a row that the database refuses: the request's fault.
            code if code.starts_with("22") || code.starts_with("23") => StatusCode::BAD_REQUEST,
            "42501" => StatusCode::FORBIDDEN,
            // A statement that took too long.
            "57014" => StatusCode::SERVICE_UNAVAILABLE,
            _ if error.is_connection() || error.is_conflict() => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!("a request failed: {error}");
        }
        Self::new(status, error.to_string())
    }
}

pub(super) async fn not_found() -> Problem {
    Problem::not_found("there is nothing here; GET /api/openapi.json lists what there is")
}

pub(super) async fn method_not_allowed() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "not by this method; GET /api/openapi.json lists what there is",
    )
}
