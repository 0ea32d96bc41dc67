//! The token, for browsers: kept as a cookie that says nothing of it.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;

use super::layout;
use crate::http::input::Filled;
use crate::http::problem::Problem;
use crate::http::{Site, guard};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    token: String,
}

fn form(problem: Option<&str>) -> Markup {
    let body = html! {
        h1 { "Sign in" }
        @if let Some(problem) = problem { p.notice role="alert" { (problem) } }
        form.filters method="post" action="/login" {
            label { "Token" input type="password" name="token" required autofocus autocomplete="current-password"; }
            button { "Sign in" }
        }
    };
    layout::bare("Sign in", &body)
}

pub(super) async fn show() -> Markup {
    form(None)
}

pub(super) async fn enter(
    State(site): State<Arc<Site>>,
    Filled(entry): Filled<Entry>,
) -> Result<Response, Problem> {
    let Some(cookie) = guard::enter(&site, entry.token.trim()).await? else {
        return Ok(
            (axum::http::StatusCode::UNAUTHORIZED, form(Some("That is not the token."))).into_response()
        );
    };
    Ok(([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response())
}
