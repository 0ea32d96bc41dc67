//! Deciding: first which messages it would be, then how far it is.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Redirect, Response};
use maud::html;

use super::failures::{Filter, rows};
use super::{Page, layout};
use crate::http::Site;
use crate::http::api::operator;
use crate::http::bulk::{self, Chosen};
use crate::http::input::{Asked, Filled, Named};
use crate::http::problem::Problem;
use crate::http::server::Peer;
use crate::pg::connect::Connection;
use crate::pg::operations;
use crate::pg::retry::{self, Decision};

/// A preview shows no more than these.
const PREVIEW: usize = 20;

impl Filter {
    fn decision(&self) -> Result<Decision, Problem> {
        match self.decision.as_deref() {
            Some("replay") => Ok(Decision::Replay),
            Some("discard") => Ok(Decision::Discard),
            _ => Err(Problem::bad("`decision` is replay or discard")),
        }
    }

    async fn select(&self, client: &Connection) -> Result<Chosen, Problem> {
        let decision = self.decision()?;
        if let Some(id) = self.id {
            return Ok(Chosen::These(retry::find(client, decision.states(), &[id]).await?));
        }
        let filter = self.read(None);
        filter.check(decision).map_err(Problem::conflict)?;
        Ok(Chosen::AllThatFit(filter))
    }
}

pub(super) async fn preview(State(site): State<Arc<Site>>, Asked(filter): Asked<Filter>) -> Page {
    let decision = filter.decision()?;
    let client = site.database.lend().await?;
    let entries = filter.select(&client).await?.counted(&client).await?;
    drop(client);
    let (title, verb) = match decision {
        Decision::Replay => ("Replay", "Send again"),
        Decision::Discard => ("Discard", "Discard for good"),
    };
    let count = entries.len();
    let many = layout::count(i64::try_from(count).unwrap_or(i64::MAX));
    let body = html! {
        h1 { (title) " " (many) @if count == 1 { " message" } @else { " messages" } }
        @if entries.is_empty() { p.none { "No message fits: nothing to do." } } @else {
            @if !filter.read(None).is_narrow() && filter.id.is_none() {
                p.notice role="status" { "Nothing narrows them down: these are all there are." }
            }
            form method="post" action="/failures/decide" {
                @for (name, value) in filter.pairs() { @if let Some(value) = value { input type="hidden" name=(name) value=(value); } }
                @if let Some(id) = filter.id { input type="hidden" name="id" value=(id); }
                input type="hidden" name="decision" value=(filter.decision.as_deref().unwrap_or_default());
                p.actions {
                    @if !site.settings.read_only { button { (verb) } }
                    a href={ "/failures?" (layout::query(&filter.pairs())) } { "Back" }
                }
            }
            section { (rows(&entries[..count.min(PREVIEW)], false)) }
            @if count > PREVIEW { p { "These are the first " (PREVIEW) " of them." } }
        }
    };
    Ok(layout::page(&site, "/failures", title, false, &body))
}

pub(super) async fn carry_out(
    State(site): State<Arc<Site>>,
    peer: Extension<Peer>,
    Filled(filter): Filled<Filter>,
) -> Result<Response, Problem> {
    let decision = filter.decision()?;
    let client = site.database.lend().await?;
    let chosen = filter.select(&client).await?;
    drop(client);
    let operation = bulk::begin(&site, decision, chosen, operator(peer)).await?;
    Ok(Redirect::to(&format!("/operations/{}", operation.id)).into_response())
}

pub(super) async fn show(State(site): State<Arc<Site>>, Named(id): Named<i64>) -> Page {
    let client = site.database.lend().await?;
    let operation = operations::show(&client, id).await?;
    drop(client);
    let operation =
        operation.ok_or_else(|| Problem::not_found("no operation of that number is on record"))?;
    let is_open = operation.ended_at.is_none();
    let body = html! {
        h1 { (operation.command) }
        p role="status" {
            strong { (operation.messages) @if operation.messages == 1 { " message" } @else { " messages" } @if is_open { " so far" } } "; "
            @if let Some(result) = &operation.result { (result) } @else { "it goes on" }
            "."
        }
        dl.facts {
            dt { "began" } dd { (layout::ago(operation.began_at)) }
            dt { "by" } dd { (operation.os_user) " from " (operation.host) }
            dt { "selection" } dd { code { (operation.selection.to_string()) } }
        }
        @if is_open && !site.settings.read_only {
            form method="post" action={ "/operations/" (id) "/cancel" } { button { "Cancel" } }
        }
        p { a href="/failures" { "Back to failures" } }
    };
    Ok(layout::page(&site, "/failures", "Operation", is_open, &body))
}

pub(super) async fn cancel(
    State(site): State<Arc<Site>>,
    Named(id): Named<i64>,
) -> Result<Redirect, Problem> {
    if !site.bulk.cancel(id) {
        return Err(Problem::conflict("it is not under way in this agent"));
    }
    Ok(Redirect::to(&format!("/operations/{id}")))
}
