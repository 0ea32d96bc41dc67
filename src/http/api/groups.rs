//! `/api/groups`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Json;
use axum::{Extension, http::StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Page, Paged, operator};
use crate::http::Site;
use crate::http::input::{Asked, Named};
use crate::http::problem::Problem;
use crate::http::server::Peer;
use crate::pg::connect::Connection;
use crate::pg::group_orders::GroupOrder;
use crate::pg::groups::{self, Group, Shown};

/// What has become of an order.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct Done {
    /// False: it was so already.
    pub(super) changed: bool,
}

/// All groups that this database knows
#[utoipa::path(
    get, path = "/api/groups", params(Paged),
    responses(
        (status = 200, body = Page<Group>)
    )
)]
pub(super) async fn list(
    State(site): State<Arc<Site>>,
    Asked(paged): Asked<Paged>,
) -> Result<Json<Page<Group>>, Problem> {
    let client = site.database.lend().await?;
    let all = groups::list(&client, site.inactive_after).await?;
    Page::among(all, &paged, |group| group.name.clone()).map(Json)
}

/// One group: who is at work, what failed, where it stands
#[utoipa::path(
    get, path = "/api/groups/{name}", params(("name" = String, Path)),
    responses(
        (status = 200, body = Shown)
    )
)]
pub(super) async fn show(
    State(site): State<Arc<Site>>,
    Named(name): Named<String>,
) -> Result<Json<Shown>, Problem> {
    let client = site.database.lend().await?;
    let group = find(&site, &client, &name).await?;
    Ok(Json(groups::show(&client, group).await?))
}

async fn find(site: &Site, client: &Connection, name: &str) -> Result<Group, Problem> {
    let groups = groups::list(client, site.inactive_after).await?;
    let found = groups.into_iter().find(|group| group.name == name);
    found.ok_or_else(|| Problem::not_found("no group of that name is known here"))
}

/// Does it, on record.
pub(in crate::http) async fn order(
    site: &Site,
    order: GroupOrder,
    name: &str,
    peer: Extension<Peer>,
) -> Result<bool, Problem> {
    let by = operator(peer);
    let mut client = site.database.lend().await?;
    let group = find(site, &client, name).await?;
    if matches!(order, GroupOrder::Forget { .. }) && !group.agents.is_empty() {
        let agents = group.agents.join(", ");
        return Err(Problem::conflict(format!("it has agents alive ({agents}): stop them first")));
    }
    Ok(order.carry_out(&mut client, name, &by).await?)
}

/// Start nothing more of it until it is resumed
#[utoipa::path(
    post, path = "/api/groups/{name}/pause", params(("name" = String, Path)),
    responses(
        (status = 200, body = Done)
    )
)]
pub(super) async fn pause(
    State(site): State<Arc<Site>>,
    Named(name): Named<String>,
    peer: Extension<Peer>,
) -> Result<Json<Done>, Problem> {
    Ok(Json(Done { changed: order(&site, GroupOrder::Pause, &name, peer).await? }))
}

/// Let it go on, and close its breaker
#[utoipa::path(
    post, path = "/api/groups/{name}/resume", params(("name" = String, Path)),
    responses(
        (status = 200, body = Done)
    )
)]
pub(super) async fn resume(
    State(site): State<Arc<Site>>,
    Named(name): Named<String>,
    peer: Extension<Peer>,
) -> Result<Json<Done>, Problem> {
    Ok(Json(Done { changed: order(&site, GroupOrder::Resume, &name, peer).await? }))
}

/// Forget one that will not come back, so that retention does not wait for it
#[utoipa::path(
    post, path = "/api/groups/{name}/forget", params(("name" = String, Path)),
    responses(
        (status = 200, body = Done)
    )
)]
pub(super) async fn forget(
    State(site): State<Arc<Site>>,
    Named(name): Named<String>,
    peer: Extension<Peer>,
) -> Result<Json<Done>, Problem> {
    let forget = GroupOrder::Forget { inactive_after: site.inactive_after };
    if order(&site, forget, &name, peer).await? {
        return Ok(Json(Done { changed: true }));
    }
    Err(Problem::new(StatusCode::CONFLICT, "an agent of it has just started"))
}
