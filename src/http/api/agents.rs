//! `/api/agents`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Json;

use axum::Extension;
use uuid::Uuid;

use super::groups::Done;
use super::input::Named;
use super::{Page, operator};
use crate::http::Site;
use crate::http::database::Lent;
use crate::http::problem::Problem;
use crate::http::server::Peer;
use crate::pg::agents::{self, Agent};

/// All agents with their health
#[utoipa::path(
    get, path = "/api/agents",
    responses(
        (status = 200, body = Page<Agent>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn list(State(site): State<Arc<Site>>) -> Result<Json<Page<Agent>>, Problem> {
    let client = site.database.lend().await?;
    Ok(Json(Page::all(agents::list(&client).await?)))
}

/// Have it take nothing new on, until it is taken back
#[utoipa::path(
    post, path = "/api/agents/{id}/drain", params(("id" = Uuid, Path)),
    responses(
        (status = 200, body = Done),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn drain(
    State(site): State<Arc<Site>>,
    Named(id): Named<Uuid>,
    peer: Extension<Peer>,
) -> Result<Json<Done>, Problem> {
    let client = known(&site, id).await?;
    Ok(Json(Done { changed: agents::drain(&client, id, &operator(peer)).await? }))
}

/// Take it back into service
#[utoipa::path(
    post, path = "/api/agents/{id}/resume", params(("id" = Uuid, Path)),
    responses(
        (status = 200, body = Done),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn resume(
    State(site): State<Arc<Site>>,
    Named(id): Named<Uuid>,
    peer: Extension<Peer>,
) -> Result<Json<Done>, Problem> {
    let client = known(&site, id).await?;
    Ok(Json(Done { changed: agents::resume(&client, id, &operator(peer)).await? }))
}

/// A connection, if there is such an agent.
async fn known(site: &Site, id: Uuid) -> Result<Lent<'_>, Problem> {
    let client = site.database.lend().await?;
    if agents::list(&client).await?.iter().any(|agent| agent.id == id) {
        return Ok(client);
    }
    Err(Problem::not_found(format!("no agent {id} is known here")))
}
