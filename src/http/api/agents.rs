//! `/api/agents`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Json;

use axum::Extension;
use uuid::Uuid;

use super::groups::Done;
use super::{Page, Paged, operator};
use crate::http::Site;
use crate::http::input::{Asked, Named};
use crate::http::problem::Problem;
use crate::http::server::Peer;
use crate::pg::agents::{self, Agent, AgentOrder};

/// All agents with their health
#[utoipa::path(
    get, path = "/api/agents", params(Paged),
    responses(
        (status = 200, body = Page<Agent>)
    )
)]
pub(super) async fn list(
    State(site): State<Arc<Site>>,
    Asked(paged): Asked<Paged>,
) -> Result<Json<Page<Agent>>, Problem> {
    let client = site.database.lend().await?;
    let all = agents::list(&client).await?;
    Page::among(all, &paged, |agent| format!("{} {} {}", agent.role, agent.name, agent.id)).map(Json)
}

/// Have it take nothing new on, until it is taken back
#[utoipa::path(
    post, path = "/api/agents/{id}/drain", params(("id" = Uuid, Path)),
    responses(
        (status = 200, body = Done)
    )
)]
pub(super) async fn drain(
    State(site): State<Arc<Site>>,
    Named(id): Named<Uuid>,
    peer: Extension<Peer>,
) -> Result<Json<Done>, Problem> {
    Ok(Json(order(&site, AgentOrder::Drain, id, peer).await?))
}

/// Take it back into service
#[utoipa::path(
    post, path = "/api/agents/{id}/resume", params(("id" = Uuid, Path)),
    responses(
        (status = 200, body = Done)
    )
)]
pub(super) async fn resume(
    State(site): State<Arc<Site>>,
    Named(id): Named<Uuid>,
    peer: Extension<Peer>,
) -> Result<Json<Done>, Problem> {
    Ok(Json(order(&site, AgentOrder::Resume, id, peer).await?))
}

/// If there is such an agent.
pub(in crate::http) async fn order(
    site: &Site,
    order: AgentOrder,
    id: Uuid,
    peer: Extension<Peer>,
) -> Result<Done, Problem> {
    let mut client = site.database.lend().await?;
    if !agents::list(&client).await?.iter().any(|agent| agent.id == id) {
        return Err(Problem::not_found(format!("no agent {id} is known here")));
    }
    Ok(Done { changed: order.carry_out(&mut client, id, &operator(peer)).await? })
}
