//! `/api/jobs`.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::Json;
use serde::Deserialize;
use utoipa::IntoParams;

use super::groups::Done;
use super::{Page, Paged, operator};
use crate::http::Site;
use crate::http::input::{Asked, Named, limit};
use crate::http::problem::Problem;
use crate::http::server::Peer;
use crate::pg::jobs::history::{self, Job, Run};
use crate::pg::jobs::orders::{JobOrder, OrderError};

/// All jobs: what runs when, and how it went
#[utoipa::path(
    get, path = "/api/jobs", params(Paged),
    responses(
        (status = 200, body = Page<Job>)
    )
)]
pub(super) async fn list(
    State(site): State<Arc<Site>>,
    Asked(paged): Asked<Paged>,
) -> Result<Json<Page<Job>>, Problem> {
    let client = site.database.lend().await?;
    let all = history::list(&**client, None).await?;
    Page::among(all, &paged, |job| job.name.clone()).map(Json)
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Older {
    /// The next page: the `next` of the one before
    #[param(minimum = 0)]
    after: Option<i64>,
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

/// The runs of a job, newest first
#[utoipa::path(
    get, path = "/api/jobs/{name}/runs", params(("name" = String, Path), Older),
    responses(
        (status = 200, body = Page<Run>)
    )
)]
pub(super) async fn runs(
    State(site): State<Arc<Site>>,
    Named(name): Named<String>,
    Asked(older): Asked<Older>,
) -> Result<Json<Page<Run>>, Problem> {
    let limit = limit(older.limit)?;
    if older.after.is_some_and(|after| after < 0) {
        return Err(Problem::bad("`after` is the `next` of the page before"));
    }
    let client = site.database.lend().await?;
    if history::list(&**client, Some(&name)).await?.is_empty() {
        return Err(unknown());
    }
    let runs = history::runs(&**client, Some(&name), older.after, limit).await?;
    Ok(Json(Page::of(runs, limit, |run| run.id.to_string())))
}

fn unknown() -> Problem {
    Problem::not_found("no job of that name is known here")
}

/// Does it, on record.
pub(in crate::http) async fn order(
    site: &Site,
    order: JobOrder,
    name: &str,
    peer: Extension<Peer>,
) -> Result<bool, Problem> {
    let by = operator(peer);
    let mut client = site.database.lend().await?;
    if history::list(&**client, Some(name)).await?.is_empty() {
        return Err(unknown());
    }
    order.carry_out(&mut client, name, &by).await.map_err(|error| match error {
        OrderError::Refused(reason) => Problem::conflict(reason),
        OrderError::Database(error) => error.into(),
    })
}

/// Run it as soon as it does not run
#[utoipa::path(
    post, path = "/api/jobs/{name}/run", params(("name" = String, Path)),
    responses(
        (status = 200, body = Done)
    )
)]
pub(super) async fn run(
    State(site): State<Arc<Site>>,
    Named(name): Named<String>,
    peer: Extension<Peer>,
) -> Result<Json<Done>, Problem> {
    Ok(Json(Done { changed: order(&site, JobOrder::Run, &name, peer).await? }))
}

/// Start nothing more of it by schedule
#[utoipa::path(
    post, path = "/api/jobs/{name}/pause", params(("name" = String, Path)),
    responses(
        (status = 200, body = Done)
    )
)]
pub(super) async fn pause(
    State(site): State<Arc<Site>>,
    Named(name): Named<String>,
    peer: Extension<Peer>,
) -> Result<Json<Done>, Problem> {
    Ok(Json(Done { changed: order(&site, JobOrder::Pause, &name, peer).await? }))
}

/// Let it go on with its next firing
#[utoipa::path(
    post, path = "/api/jobs/{name}/resume", params(("name" = String, Path)),
    responses(
        (status = 200, body = Done)
    )
)]
pub(super) async fn resume(
    State(site): State<Arc<Site>>,
    Named(name): Named<String>,
    peer: Extension<Peer>,
) -> Result<Json<Done>, Problem> {
    Ok(Json(Done { changed: order(&site, JobOrder::Resume, &name, peer).await? }))
}
