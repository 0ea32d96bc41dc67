//! Jobs: what runs when, how it went last, and running one now.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::Redirect;
use maud::{Markup, html};

use super::{Page, layout};
use crate::http::Site;
use crate::http::api::order_job;
use crate::http::input::Named;
use crate::http::problem::Problem;
use crate::http::server::Peer;
use crate::pg::jobs::history::{self, Job, Run};
use crate::pg::jobs::orders::JobOrder;

const RUNS: i64 = 30;

pub(super) async fn list(State(site): State<Arc<Site>>) -> Page {
    let client = site.database.lend().await?;
    let jobs = history::list(&**client, None).await?;
    let runs = history::runs(&**client, None, None, RUNS).await?;
    drop(client);
    let body = html! {
        h1 { "Jobs" }
        @if jobs.is_empty() { p.none { "No job is known here." } } @else { section { (rows(&site, &jobs)) } }
        section { h2 { "Last runs" } @if runs.is_empty() { p.none { "None is on record." } } @else { (run_rows(&runs)) } }
    };
    Ok(layout::page(&site, "/jobs", "Jobs", true, &body))
}

fn rows(site: &Site, jobs: &[Job]) -> Markup {
    let button = |job: &Job, order: JobOrder, label: &str, class: &str| {
        html! { form method="post" action={ "/jobs/" (job.name) "/" (order.name()) } { button class=(class) aria-label={ (label) " " (job.name) } { (label) } } }
    };
    let rows = html! {
        @for job in jobs {
            tr {
                th scope="row" { (job.name) }
                td { (layout::state(&job.state)) }
                td { (job.schedule) @if job.timezone != "UTC" { " " (job.timezone) } }
                td { @if let Some(next) = job.next.first() { time datetime=(next.to_rfc3339()) { (next.format("%F %T UTC")) } } }
                td { @if let Some(ended) = job.ended_at { (layout::ago(ended)) " " (job.result.as_deref().unwrap_or_default()) } }
                td.wide { (job.error.as_deref().unwrap_or_default()) }
                td { @if !site.settings.read_only { div.actions {
                    @if is_open(job, JobOrder::Run) { (button(job, JobOrder::Run, "Run now", "")) }
                    @if is_open(job, JobOrder::Resume) { (button(job, JobOrder::Resume, "Resume", "quiet")) }
                    @if is_open(job, JobOrder::Pause) { (button(job, JobOrder::Pause, "Pause", "quiet")) }
                } } }
            }
        }
    };
    layout::table("Jobs", &["Job", "State", "Schedule", "Next", "Last", "Error", "Order"], &rows)
}

/// It would change something.
fn is_open(job: &Job, order: JobOrder) -> bool {
    let (is_paused, schedule, state) = (job.paused_at.is_some(), job.schedule.as_str(), job.state.as_str());
    order.refusal(&job.name).is_none()
        && match order {
            JobOrder::Run => state != "disabled" && (schedule, state) != ("continuous", "running"),
            JobOrder::Pause => !is_paused,
            JobOrder::Resume => is_paused,
        }
}

fn run_rows(runs: &[Run]) -> Markup {
    let rows = html! {
        @for run in runs {
            tr {
                th scope="row" { (run.job) }
                td { (layout::state(&run.result)) }
                td { (layout::ago(run.ended_at)) }
                td { (run.agent) }
                td { (run.requested_by.as_deref().unwrap_or("its schedule")) }
                td.wide { (run.error.as_deref().unwrap_or_default()) }
            }
        }
    };
    layout::table("Last runs", &["Job", "Result", "Ended", "Agent", "Wanted by", "Error"], &rows)
}

pub(super) async fn order(
    State(site): State<Arc<Site>>,
    Named((name, wanted)): Named<(String, String)>,
    peer: Extension<Peer>,
) -> Result<Redirect, Problem> {
    let wanted = match wanted.as_str() {
        "run" => JobOrder::Run,
        "pause" => JobOrder::Pause,
        "resume" => JobOrder::Resume,
        _ => return Err(Problem::not_found("a job can be run, paused and resumed")),
    };
    order_job(&site, wanted, &name, peer).await?;
    Ok(Redirect::to("/jobs"))
}
