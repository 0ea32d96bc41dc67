//! `/api/groups`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Json;
use axum::{Extension, http::StatusCode};
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::input::Named;
use super::{Page, operator};
use crate::http::Site;
use crate::http::problem::Problem;
use crate::http::server::Peer;
use crate::pg::connect::Connection;
use crate::pg::groups::{self, Group, Shown};
use crate::pg::{PgError, control, operations};

/// What has become of an order.
#[derive(Serialize, ToSchema)]
pub(super) struct Done {
    /// False: it was so already.
    pub(super) changed: bool,
}

/// All groups that this database knows
#[utoipa::path(
    get, path = "/api/groups",
    responses(
        (status = 200, body = Page<Group>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn list(State(site): State<Arc<Site>>) -> Result<Json<Page<Group>>, Problem> {
    let client = site.database.lend().await?;
    Ok(Json(Page::all(groups::list(&client, site.inactive_after).await?)))
}

/// One group: who is at work, what failed, where it stands
#[utoipa::path(
    get, path = "/api/groups/{name}", params(("name" = String, Path)),
    responses(
        (status = 200, body = Shown),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json")
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

/// What is ordered for a group.
#[derive(Clone, Copy)]
pub(in crate::http) enum Order {
    Pause,
    Resume,
    Forget,
}

impl Order {
    fn command(self) -> &'static str {
        match self {
            Self::Pause => "groups pause",
            Self::Resume => "groups resume",
            Self::Forget => "groups forget",
        }
    }

    async fn carry_out(
        self,
        site: &Site,
        client: &Connection,
        group: &str,
        by: &str,
    ) -> Result<bool, PgError> {
        match self {
            Self::Pause => control::pause(&**client, group, by).await,
            Self::Resume => control::resume(&**client, group).await,
            Self::Forget => groups::forget(client, group, site.inactive_after).await,
        }
    }
}

/// Does it, on record.
pub(in crate::http) async fn order(
    site: &Site,
    order: Order,
    name: &str,
    peer: Extension<Peer>,
) -> Result<bool, Problem> {
    let by = operator(peer);
    let client = site.database.lend().await?;
    let group = find(site, &client, name).await?;
    if matches!(order, Order::Forget) && !group.agents.is_empty() {
        let agents = group.agents.join(", ");
        return Err(Problem::conflict(format!("it has agents alive ({agents}): stop them first")));
    }
    let operation = operations::begin(&client, order.command(), &json!({ "group": name }), &by).await?;
    let done = order.carry_out(site, &client, name, &format!("{} from {}", by.os_user, by.host)).await;
    let result = done.as_ref().map_or_else(ToString::to_string, |_| "done".to_owned());
    operations::end(&client, operation, &result).await?;
    Ok(done?)
}

/// Start nothing more of it until it is resumed
#[utoipa::path(
    post, path = "/api/groups/{name}/pause", params(("name" = String, Path)),
    responses(
        (status = 200, body = Done),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn pause(
    State(site): State<Arc<Site>>,
    Named(name): Named<String>,
    peer: Extension<Peer>,
) -> Result<Json<Done>, Problem> {
    Ok(Json(Done { changed: order(&site, Order::Pause, &name, peer).await? }))
}

/// Let it go on, and close its breaker
#[utoipa::path(
    post, path = "/api/groups/{name}/resume", params(("name" = String, Path)),
    responses(
        (status = 200, body = Done),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn resume(
    State(site): State<Arc<Site>>,
    Named(name): Named<String>,
    peer: Extension<Peer>,
) -> Result<Json<Done>, Problem> {
    Ok(Json(Done { changed: order(&site, Order::Resume, &name, peer).await? }))
}

/// Forget one that will not come back, so that retention does not wait for it
#[utoipa::path(
    post, path = "/api/groups/{name}/forget", params(("name" = String, Path)),
    responses(
        (status = 200, body = Done),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn forget(
    State(site): State<Arc<Site>>,
    Named(name): Named<String>,
    peer: Extension<Peer>,
) -> Result<Json<Done>, Problem> {
    if order(&site, Order::Forget, &name, peer).await? {
        return Ok(Json(Done { changed: true }));
    }
    Err(Problem::new(StatusCode::CONFLICT, "an agent of it has just started"))
}
