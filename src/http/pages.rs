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
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::middleware::{Next, from_fn, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use maud::{Markup, html};

use super::Site;
use super::input::no_query;
use super::problem::Problem;

/// A page, or why there is none, which becomes one too.
type Page = Result<Markup, Problem>;

/// What a browser asks for, outside the API.
pub(super) fn is_wanted(uri: &Uri, headers: &HeaderMap) -> bool {
    let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    !uri.path().starts_with("/api/") && accepts.is_some_and(|accepts| accepts.contains("text/html"))
}

/// Whatever else a browser asks for here: what is wrong with it is told by a page.
pub(super) async fn tell_browsers(request: Request, next: Next) -> Response {
    let is_wanted = is_wanted(request.uri(), request.headers());
    let response = next.run(request).await;
    if is_wanted { tell(response).await } else { response }
}

/// A problem, by a page.
async fn tell(mut response: Response) -> Response {
    let Some(problem) = response.extensions_mut().remove::<Problem>() else { return response };
    let body = html! {
        h1 { (problem.title()) }
        p { (problem.detail()) }
        p { a href="/" { "Back to the overview" } }
    };
    (problem.status(), layout::bare(problem.title(), &body)).into_response()
}

/// Bytes of a sign-in, the only body that is read of a stranger.
const MOST_LOGIN: usize = 8 << 10;

pub(super) fn routes() -> Router<Arc<Site>> {
    let asked = Router::new()
        .route("/messages", get(messages::list))
        .route("/messages/{id}", get(messages::show))
        .route("/failures", get(failures::list))
        .route("/failures/decide", get(decide::preview).post(decide::carry_out));
    let plain = Router::new()
        .route("/", get(overview::show))
        .route("/operations/{id}", get(decide::show))
        .route("/operations/{id}/cancel", post(decide::cancel))
        .route("/agents", get(fleet::agents))
        .route("/agents/{id}/{order}", post(fleet::order_agent))
        .route("/groups", get(fleet::groups))
        .route("/groups/{name}/{order}", post(fleet::order))
        .route("/jobs", get(jobs::list))
        .route("/jobs/{name}/{order}", post(jobs::order))
        .route("/login", get(login::show).post(login::enter).layer(DefaultBodyLimit::max(MOST_LOGIN)))
        .route_layer(from_fn(no_query));
    let assets = Router::new()
        .route(
            "/assets/style.css",
            get(async || asset("text/css; charset=utf-8", include_str!("pages/style.css"))),
        )
        .route(
            "/assets/script.js",
            get(async || asset("text/javascript; charset=utf-8", include_str!("pages/script.js"))),
        );
    asked.merge(plain).route_layer(map_response(tell)).merge(assets)
}

fn asset(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CACHE_CONTROL, HeaderValue::from_static("max-age=300")),
    ];
    (headers, text).into_response()
}
