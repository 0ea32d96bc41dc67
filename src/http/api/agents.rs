//! `/api/agents`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Json;

use super::Page;
use crate::http::Site;
use crate::http::problem::Problem;
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
