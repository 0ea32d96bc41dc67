//! `/api/retry`: what waits for an operator's decision, as `outboxd retry` has it.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{Page, operator};
use crate::http::Site;
use crate::http::bulk::{self, Chosen};
use crate::http::input::{Asked, Body, Named, limit};
use crate::http::problem::Problem;
use crate::http::server::Peer;
use crate::pg::connect::Connection;
use crate::pg::operations::Operation;
use crate::pg::retry::{self, Decision, Entry, STATES, WAITING};
use crate::pg::{failures, parked};

/// A preview shows no more than these.
const PREVIEW: usize = 20;

/// Ids that one request may name.
const MOST_IDS: usize = 1_000;

/// Where a message stands about which a decision may be made.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::http) enum Stage {
    Parked,
    Held,
    Failing,
    Dead,
    Discarded,
}

impl Stage {
    pub(in crate::http) fn name(self) -> &'static str {
        match self {
            Self::Parked => "parked",
            Self::Held => "held",
            Self::Failing => "failing",
            Self::Dead => "dead",
            Self::Discarded => "discarded",
        }
    }
}

/// What narrows them down: a message must fit all that is given.
#[derive(Clone, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Filter {
    #[schema(pattern = "^[^\\u0000]*$")]
    pub(in crate::http) group: Option<String>,
    #[schema(pattern = "^[^\\u0000]*$")]
    pub(in crate::http) topic: Option<String>,
    #[schema(pattern = "^[^\\u0000]*$")]
    pub(in crate::http) key: Option<String>,
    #[serde(rename = "type")]
    #[schema(pattern = "^[^\\u0000]*$")]
    pub(in crate::http) event_type: Option<String>,
    /// A part of the error, in upper or lower case
    #[schema(pattern = "^[^\\u0000]*$")]
    pub(in crate::http) error: Option<String>,
    /// Given up since then
    pub(in crate::http) since: Option<DateTime<Utc>>,
    /// Given up before then
    pub(in crate::http) until: Option<DateTime<Utc>>,
    /// Those that wait for a decision if it is not given
    #[schema(inline)]
    pub(in crate::http) state: Option<Stage>,
}

/// A page of those that fit.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    #[param(pattern = "^[^\\u0000]*$")]
    group: Option<String>,
    #[param(pattern = "^[^\\u0000]*$")]
    topic: Option<String>,
    #[param(pattern = "^[^\\u0000]*$")]
    key: Option<String>,
    #[serde(rename = "type")]
    #[param(pattern = "^[^\\u0000]*$")]
    event_type: Option<String>,
    /// A part of the error, in upper or lower case
    #[param(pattern = "^[^\\u0000]*$")]
    error: Option<String>,
    /// Given up since then
    since: Option<DateTime<Utc>>,
    /// Given up before then
    until: Option<DateTime<Utc>>,
    /// Those that wait for a decision if it is not given
    #[param(inline)]
    state: Option<Stage>,
    /// The next page: the `next` of the one before
    after: Option<Uuid>,
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

impl Filter {
    pub(in crate::http) fn read(&self, after: Option<Uuid>, limit: Option<i64>) -> retry::Filter {
        let states = match &self.state {
            Some(state) => vec![state.name().to_owned()],
            None => WAITING.map(str::to_owned).to_vec(),
        };
        let Self { group, topic, key, event_type, error, since, until, state: _ } = self.clone();
        retry::Filter { states, group, topic, key, event_type, error, since, until, after, limit }
    }
}

/// What a decision is about, as JSON has it: these,
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "describes JSON")]
struct SelectedByIds {
    #[schema(min_items = 1, max_items = 1000)]
    ids: Vec<Uuid>,
    /// Tell which they are, and change nothing
    #[serde(default)]
    dry_run: bool,
}

/// or those that fit; all there are takes `all`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "describes JSON")]
struct SelectedByFilter {
    filter: Option<Filter>,
    #[serde(default)]
    all: bool,
    /// Tell which they are, and change nothing
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "describes JSON")]
enum SelectionSchema {
    Ids(SelectedByIds),
    Filter(SelectedByFilter),
}

/// What a decision is about: ids, or what narrows them down, or all.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Selection {
    pub(in crate::http) ids: Option<Vec<Uuid>>,
    pub(in crate::http) filter: Option<Filter>,
    #[serde(default)]
    pub(in crate::http) all: bool,
    #[serde(default)]
    pub(in crate::http) dry_run: bool,
}

/// Which they would be.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct Preview {
    /// Counted up to 10,000
    pub(in crate::http) messages: usize,
    /// The first of them
    pub(in crate::http) items: Vec<Entry>,
}

/// Those that wait for a decision: what Kafka refused, then what groups failed to handle
#[utoipa::path(
    get, path = "/api/retry", params(ListQuery),
    responses(
        (status = 200, body = Page<Entry>)
    )
)]
pub(super) async fn list(
    State(site): State<Arc<Site>>,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<Page<Entry>>, Problem> {
    let limit = limit(query.limit)?;
    let ListQuery { group, topic, key, event_type, error, since, until, state, after, .. } = query;
    let filter = Filter { group, topic, key, event_type, error, since, until, state };
    let client = site.database.lend().await?;
    let entries = retry::list(&client, &filter.read(after, Some(limit))).await?;
    Ok(Json(Page::of(entries, limit, |entry| entry.id.to_string())))
}

/// One of them, for each group that failed to handle it, with its content and its history
#[utoipa::path(
    get, path = "/api/retry/{id}", params(("id" = Uuid, Path)),
    responses(
        (status = 200, body = Page<Object>)
    )
)]
pub(super) async fn show(
    State(site): State<Arc<Site>>,
    Named(id): Named<Uuid>,
) -> Result<Json<Value>, Problem> {
    let client = site.database.lend().await?;
    let mut items: Vec<Value> = Vec::new();
    for entry in retry::find(&client, &STATES, &[id]).await? {
        items.extend(parked::show(&client, &entry).await?.map(|story| json!(story)));
        items.extend(failures::show(&client, &entry).await?.map(|story| json!(story)));
    }
    if items.is_empty() {
        return Err(Problem::not_found(format!("no message {id} was given up or is tried again")));
    }
    Ok(Json(json!({ "items": items, "next": null })))
}

/// Send them again
#[utoipa::path(
    post, path = "/api/retry/run", request_body = SelectionSchema,
    responses(
        (status = 200, body = Preview, description = "Which they would be (`dry_run`)"),
        (status = 202, body = Operation, description = "It is under way, or done")
    )
)]
pub(super) async fn run(
    State(site): State<Arc<Site>>,
    peer: Extension<Peer>,
    Body(selection): Body<Selection>,
) -> Result<Response, Problem> {
    decide(&site, peer, Decision::Replay, &selection).await
}

/// Give them up for good
#[utoipa::path(
    post, path = "/api/retry/discard", request_body = SelectionSchema,
    responses(
        (status = 200, body = Preview, description = "Which they would be (`dry_run`)"),
        (status = 202, body = Operation, description = "It is under way, or done")
    )
)]
pub(super) async fn discard(
    State(site): State<Arc<Site>>,
    peer: Extension<Peer>,
    Body(selection): Body<Selection>,
) -> Result<Response, Problem> {
    decide(&site, peer, Decision::Discard, &selection).await
}

async fn decide(
    site: &Arc<Site>,
    peer: Extension<Peer>,
    decision: Decision,
    selection: &Selection,
) -> Result<Response, Problem> {
    let client = site.database.lend().await?;
    let chosen = select(&client, decision, selection).await?;
    if selection.dry_run {
        return Ok(Json(preview(chosen.counted(&client).await?)).into_response());
    }
    drop(client);
    let operation = bulk::begin(site, decision, chosen, operator(peer)).await?;
    Ok((StatusCode::ACCEPTED, Json(operation)).into_response())
}

pub(in crate::http) fn preview(mut entries: Vec<Entry>) -> Preview {
    let messages = entries.len();
    entries.truncate(PREVIEW);
    Preview { messages, items: entries }
}

pub(in crate::http) async fn select(
    client: &Connection,
    decision: Decision,
    selection: &Selection,
) -> Result<Chosen, Problem> {
    let Selection { ids, filter, all, .. } = selection;
    let Some(ids) = ids else {
        let given = filter.clone().unwrap_or_default();
        let filter = given.read(None, None);
        if !filter.is_narrow() && !all {
            return Err(Problem::conflict("that means all of them, which takes `all`"));
        }
        filter.check(decision).map_err(Problem::conflict)?;
        return Ok(Chosen::AllThatFit(filter));
    };
    if filter.is_some() || *all || ids.is_empty() || ids.len() > MOST_IDS {
        return Err(Problem::bad(format!("either 1 to {MOST_IDS} `ids`, or `filter`, or `all`")));
    }
    let states = decision.states();
    let entries = retry::find_each(client, states, ids).await?;
    let missing = |id| Problem::not_found(format!("no message {id} is {}", states.join(" or ")));
    entries.map(Chosen::These).map_err(missing)
}
