//! `/api/operations`: what operators do to many messages, and how far it is.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Json;

use crate::http::Site;
use crate::http::input::Named;
use crate::http::problem::Problem;
use crate::pg::operations::{self, Operation};

fn unknown() -> Problem {
    Problem::not_found("no operation of that number is on record")
}

/// One operation: who, what, how far
#[utoipa::path(
    get, path = "/api/operations/{id}", params(("id" = i64, Path)),
    responses(
        (status = 200, body = Operation)
    )
)]
pub(super) async fn show(
    State(site): State<Arc<Site>>,
    Named(id): Named<i64>,
) -> Result<Json<Operation>, Problem> {
    let client = site.database.lend().await?;
    operations::show(&client, id).await?.map(Json).ok_or_else(unknown)
}

/// End it after its present step; what is done stays done
#[utoipa::path(
    post, path = "/api/operations/{id}/cancel", params(("id" = i64, Path)),
    responses(
        (status = 202, body = Operation, description = "It ends soon")
    )
)]
pub(super) async fn cancel(
    State(site): State<Arc<Site>>,
    Named(id): Named<i64>,
) -> Result<(axum::http::StatusCode, Json<Operation>), Problem> {
    let client = site.database.lend().await?;
    let operation = operations::show(&client, id).await?.ok_or_else(unknown)?;
    if !site.bulk.cancel(id) {
        return Err(Problem::conflict("it is not under way in this agent"));
    }
    Ok((axum::http::StatusCode::ACCEPTED, Json(operation)))
}
