//! The dashboard: pages made here, that work without their script and are read by keyboard as well.

mod decide;
mod failures;
mod fleet;
mod jobs;
mod layout;
mod login;
mod messages;
mod overview;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use maud::{Markup, html};
use serde::de::DeserializeOwned;

use super::Site;
use super::api::Asked;
use super::problem::Problem;

/// A page, or why there is none, as a page.
type Page = Result<Markup, Trouble>;

struct Trouble(Problem);

impl<E: Into<Problem>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Trouble {
    fn into_response(self) -> Response {
        let body = html! {
            h1 { (self.0.title()) }
            p { (self.0.detail()) }
            p { a href="/" { "Back to the overview" } }
        };
        (self.0.status(), layout::bare(self.0.title(), &body)).into_response()
    }
}

/// The query of a page; what is wrong with it is told by a page.
struct AskedHere<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for AskedHere<T> {
    type Rejection = Trouble;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Trouble> {
        Ok(Asked::from_request_parts(parts, state).await.map(|Asked(asked)| Self(asked))?)
    }
}

/// Bytes of a sign-in, the only body that is read of a stranger.
const MOST_LOGIN: usize = 8 << 10;

pub(super) fn routes() -> Router<Arc<Site>> {
    Router::new()
        .route("/", get(overview::show))
        .route("/messages", get(messages::list))
        .route("/messages/{id}", get(messages::show))
        .route("/failures", get(failures::list))
        .route("/failures/decide", get(decide::preview).post(decide::carry_out))
        .route("/operations/{id}", get(decide::show))
        .route("/operations/{id}/cancel", post(decide::cancel))
        .route("/agents", get(fleet::agents))
        .route("/agents/{id}/{order}", post(fleet::order_agent))
        .route("/groups", get(fleet::groups))
        .route("/groups/{name}/{order}", post(fleet::order))
        .route("/jobs", get(jobs::list))
        .route("/jobs/{name}/{order}", post(jobs::order))
        .route("/login", get(login::show).post(login::enter).layer(DefaultBodyLimit::max(MOST_LOGIN)))
        .route(
            "/assets/style.css",
            get(async || asset("text/css; charset=utf-8", include_str!("pages/style.css"))),
        )
        .route(
            "/assets/script.js",
            get(async || asset("text/javascript; charset=utf-8", include_str!("pages/script.js"))),
        )
}

fn asset(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CACHE_CONTROL, HeaderValue::from_static("max-age=300")),
    ];
    (headers, text).into_response()
}
