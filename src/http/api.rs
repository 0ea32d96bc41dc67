//! The API, and the document that describes it: made from the same functions and types that answer.

mod agents;
mod groups;
mod jobs;
mod messages;
mod operations;
mod retry;

use std::sync::Arc;

use axum::middleware::from_fn;
use axum::response::Json;
use axum::routing::{get, post};
use axum::{Extension, Router};
use serde::{Deserialize, Serialize};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, ResponseBuilder};
use utoipa::{IntoParams, Modify, OpenApi, ToSchema};

use super::Site;
use super::input::{limit, no_query};
use super::problem::{self, Problem};
use super::server::Peer;
use crate::pg::operations::Operator;
pub(super) use agents::order as order_agent;
pub(super) use groups::order;
pub(super) use jobs::order as order_job;
pub(super) use messages::Stage;
pub(super) use retry::Stage as Waiting;

/// A page of a list.
#[derive(Serialize, ToSchema)]
struct Page<T: ToSchema> {
    items: Vec<T>,
    /// For `after`, if there may be more.
    next: Option<String>,
}

impl<T: ToSchema> Page<T> {
    /// Full, it may have a next one.
    fn of(items: Vec<T>, limit: i64, cursor: impl Fn(&T) -> String) -> Self {
        let is_full = i64::try_from(items.len()).is_ok_and(|count| count >= limit);
        let next = items.last().filter(|_| is_full).map(cursor);
        Self { items, next }
    }

    /// Of those that are few enough to be looked up as a whole, in the order of what names them.
    fn among(mut all: Vec<T>, paged: &Paged, cursor: impl Fn(&T) -> String) -> Result<Self, Problem> {
        let limit = limit(paged.limit)?;
        all.sort_by_cached_key(&cursor);
        all.retain(|item| paged.after.as_ref().is_none_or(|after| cursor(item) > *after));
        all.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(Self::of(all, limit, cursor))
    }
}

/// Which page of a list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Paged {
    /// The next page: the `next` of the one before
    after: Option<String>,
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "outboxd",
        description = "Messages, what became of them, and what an operator decides. `/healthz`, `/readyz` and `/metrics` are beside it."
    ),
    modifiers(&Token, &Common),
    components(schemas(Problem)),
    paths(
        messages::insert, messages::list, messages::show, agents::list,
        agents::drain,
        agents::resume, groups::list, groups::show, groups::pause,
        groups::resume, groups::forget, retry::list, retry::show, retry::run, retry::discard, operations::show,
        operations::cancel, jobs::list, jobs::runs, jobs::run, jobs::pause, jobs::resume
    )
)]
struct Document;

struct Token;

impl Modify for Token {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(bearer));
        let needed = utoipa::openapi::security::SecurityRequirement::new::<_, [&str; 0], &str>("token", []);
        document.security = Some(vec![utoipa::openapi::security::SecurityRequirement::default(), needed]);
    }
}

/// What all of them have: problems for answers, and a name of their own.
struct Common;

impl Modify for Common {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
        let response = ResponseBuilder::new()
            .description("What is wrong")
            .content(problem::CONTENT_TYPE, problem)
            .build();
        for path in document.paths.paths.values_mut() {
            for operation in [&mut path.get, &mut path.post].into_iter().flatten() {
                let of = operation.tags.iter().flatten().next().cloned().unwrap_or_default();
                operation.operation_id = operation.operation_id.take().map(|name| format!("{of}_{name}"));
                for status in ["4XX", "5XX"] {
                    operation.responses.responses.insert(status.to_owned(), response.clone().into());
                }
            }
        }
    }
}

pub(super) fn routes() -> Router<Arc<Site>> {
    let asked = Router::new()
        .route("/api/messages", get(messages::list))
        .route("/api/agents", get(agents::list))
        .route("/api/groups", get(groups::list))
        .route("/api/retry", get(retry::list))
        .route("/api/jobs", get(jobs::list))
        .route("/api/jobs/{name}/runs", get(jobs::runs));
    let plain = Router::new()
        .route("/api/openapi.json", get(document))
        .route("/api/messages", post(messages::insert))
        .route("/api/messages/{id}", get(messages::show))
        .route("/api/agents/{id}/drain", post(agents::drain))
        .route("/api/agents/{id}/resume", post(agents::resume))
        .route("/api/groups/{name}", get(groups::show))
        .route("/api/groups/{name}/pause", post(groups::pause))
        .route("/api/groups/{name}/resume", post(groups::resume))
        .route("/api/groups/{name}/forget", post(groups::forget))
        .route("/api/retry/{id}", get(retry::show))
        .route("/api/retry/run", post(retry::run))
        .route("/api/retry/discard", post(retry::discard))
        .route("/api/jobs/{name}/run", post(jobs::run))
        .route("/api/jobs/{name}/pause", post(jobs::pause))
        .route("/api/jobs/{name}/resume", post(jobs::resume))
        .route("/api/operations/{id}", get(operations::show))
        .route("/api/operations/{id}/cancel", post(operations::cancel))
        .route_layer(from_fn(no_query));
    asked.merge(plain)
}

async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}

/// As it is on record.
pub(super) fn operator(Extension(Peer(address)): Extension<Peer>) -> Operator {
    Operator { os_user: "http".to_owned(), host: address.to_string() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_document_has_every_path_that_is_answered_and_no_other() {
        // axum does not tell its routes.
        let answered = include_str!("api.rs")
            .split("route(\"")
            .skip(1)
            .filter(|rest| rest.starts_with("/api/"))
            .filter_map(|rest| rest.split('"').next());
        let answered: BTreeSet<&str> = answered.filter(|path| *path != "/api/openapi.json").collect();
        let document = Document::openapi();
        let described: BTreeSet<&str> = document.paths.paths.keys().map(String::as_str).collect();
        assert!(described.len() > 10);
        assert_eq!(answered, described);
    }
}
