//! Do messages flow, and if not, why not: the oldest that waits first.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use maud::{Markup, html};
use serde_json::Value;

use super::{Page, layout};
use crate::http::Site;
use crate::pg::agents::{self, Agent};
use crate::pg::census::{self, DeadBy, GroupCounts};
use crate::pg::inspect::{self, LaneStatus};

pub(super) async fn show(State(site): State<Arc<Site>>) -> Page {
    let client = site.database.lend().await?;
    let lanes = inspect::lanes(&client).await?;
    let groups = census::groups(&client).await?;
    let agents = agents::list(&client).await?;
    let dead = census::dead_by_error(&client).await?;
    drop(client);
    let body = html! {
        h1 { "Overview" }
        (own_trouble(&site))
        (figures(&lanes, &groups))
        (flow(&site))
        div.columns {
            section { h2 { "Groups" } (groups_of(&groups, &agents)) }
            section { h2 { "Agents" } (agents_of(&agents)) }
        }
        section { h2 { "Dead letters by error" } (dead_letters(&dead)) }
        section { h2 { "Lanes" } (lanes_of(&lanes)) }
    };
    Ok(layout::page(&site, "/", "Overview", true, &body))
}

/// Why this agent is not ready, if it is not.
fn own_trouble(site: &Site) -> Markup {
    let report = (site.report)();
    html! {
        @for check in report.checks.iter().filter(|check| check.problem.is_some()) {
            p.notice role="status" { strong { "This agent, " (check.name) ": " } (check.problem.as_deref().unwrap_or_default()) }
        }
    }
}

fn figures(lanes: &[LaneStatus], groups: &[GroupCounts]) -> Markup {
    let oldest = lanes.iter().filter_map(|lane| lane.oldest_pending_seconds).reduce(f64::max);
    let sum = |of: fn(&LaneStatus) -> i64| lanes.iter().map(of).sum::<i64>();
    let of_groups = |of: fn(&GroupCounts) -> i64| groups.iter().map(of).sum::<i64>();
    let figure = |name: &str, value: String, link: &str, bad: bool| {
        html! { li class=[bad.then_some("bad")] { a href=(link) { span.value { (value) } span.name { (name) } } } }
    };
    let decided = |name, count: i64, link| figure(name, layout::count(count), link, count > 0);
    let calm = |name, count: i64, link| figure(name, layout::count(count), link, false);
    html! {
        ul.figures aria-label="Figures" {
            (figure("oldest pending", oldest.map_or("none".to_owned(), layout::duration), "/messages?state=pending", oldest.is_some_and(|age| age > 60.0)))
            (calm("pending", sum(|lane| lane.pending), "/messages?state=pending"))
            (decided("parked", sum(|lane| lane.parked), "/failures?state=parked"))
            (decided("dead letters", of_groups(|group| group.dead_letters), "/failures?state=dead"))
            (calm("to be retried", of_groups(|group| group.backlog), "/failures?state=failing"))
            (decided("held", sum(|lane| lane.held), "/messages?state=held"))
            (calm("scheduled", sum(|lane| lane.scheduled), "/messages?state=scheduled"))
        }
    }
}

fn flow(site: &Site) -> Markup {
    let rates = site.flow.rates();
    html! {
        section {
            h2 { "Flow a second, last hour" }
            ul.flow {
                @for (name, rates) in [("inserted", &rates.inserted), ("published", &rates.published), ("handled", &rates.handled)] {
                    li { span.value { (rate(rates.last().copied().unwrap_or_default())) } span.name { (name) } (sparkline(name, rates)) }
                }
            }
        }
    }
}

fn rate(rate: f64) -> String {
    if rate < 10.0 { format!("{rate:.1}") } else { format!("{rate:.0}") }
}

/// A line from left to right, the highest at the top.
fn sparkline(name: &str, rates: &[f64]) -> Markup {
    const WIDTH: f64 = 240.0;
    const HEIGHT: f64 = 40.0;
    let highest = rates.iter().copied().fold(0.0, f64::max);
    let scale = if highest > 0.0 { highest } else { 1.0 };
    #[allow(clippy::cast_precision_loss, reason = "a picture")]
    let step = WIDTH / (rates.len().max(2) - 1) as f64;
    #[allow(clippy::cast_precision_loss, reason = "a picture")]
    let point = |(place, rate): (usize, &f64)| {
        format!("{:.1},{:.1}", place as f64 * step, HEIGHT - 1.0 - rate / scale * (HEIGHT - 2.0))
    };
    let points: Vec<String> = rates.iter().enumerate().map(point).collect();
    let label = format!("{name}: at most {} a second", rate(highest));
    html! {
        svg.spark viewBox="0 0 240 40" preserveAspectRatio="none" role="img" aria-label=(label) {
            title { (label) }
            @if points.len() > 1 { polyline points=(points.join(" ")) vector-effect="non-scaling-stroke" {} }
        }
    }
}

/// Of a group, summed over the agents that live: what its part of their health says.
pub(super) fn of_group(agents: &[Agent], group: &str, fact: &str) -> i64 {
    let live = agents.iter().filter(|agent| !agent.has_ended());
    live.filter_map(|agent| agent.health["groups"][group][fact].as_i64()).sum()
}

fn groups_of(groups: &[GroupCounts], agents: &[Agent]) -> Markup {
    if groups.is_empty() {
        return html! { p.none { "No group has run here." } };
    }
    let rows = html! {
        @for group in groups {
            tr {
                th scope="row" { a href={ "/groups#" (group.name) } { (group.name) } }
                td.number { (of_group(agents, &group.name, "lag")) }
                td.number { (of_group(agents, &group.name, "in_flight")) }
                td.number { (layout::count(group.backlog)) }
                td.number { a href={ "/failures?" (layout::query(&[("state", Some("dead".into())), ("group", Some(group.name.clone()))])) } { (layout::count(group.dead_letters)) } }
                td { @if group.paused { (layout::state("paused")) } @else if group.breaker_open { (layout::state("breaker")) } @else { "runs" } }
            }
        }
    };
    layout::table("Groups", &["Group", "Lag", "In flight", "Retries", "Dead", "State"], &rows)
}

fn agents_of(agents: &[Agent]) -> Markup {
    let live: BTreeMap<&str, &Agent> = agents
        .iter()
        .filter(|agent| agent.state != "stopped")
        .map(|agent| (agent.name.as_str(), agent))
        .collect();
    if live.is_empty() {
        return html! { p.none { "No agent is alive." } };
    }
    let waits = |agent: &Agent| match &agent.health["waiting_for"] {
        Value::String(what) => what.clone(),
        _ => String::new(),
    };
    let rows = html! {
        @for agent in live.values() {
            tr {
                th scope="row" { a href={ "/agents#" (agent.id) } { (agent.name) } }
                td { (agent.role) }
                td { (layout::state(&agent.state)) }
                td { (layout::ago(agent.last_heartbeat_at)) }
                td { (waits(agent)) }
            }
        }
    };
    layout::table("Agents", &["Agent", "Role", "State", "Heard", "Waits for"], &rows)
}

fn dead_letters(dead: &[DeadBy]) -> Markup {
    if dead.is_empty() {
        return html! { p.none { "None." } };
    }
    let link = |dead: &DeadBy| {
        layout::query(&[
            ("state", Some("dead".into())),
            ("group", Some(dead.group.clone())),
            ("error", Some(dead.error.clone())),
        ])
    };
    let rows = html! {
        @for dead in dead {
            tr {
                th scope="row" { (dead.group) }
                td.number { (layout::count(dead.messages)) }
                td { (layout::ago(dead.newest)) }
                td.wide { a href={ "/failures?" (link(dead)) } { @if dead.error.is_empty() { "no error" } @else { (dead.error) } } }
            }
        }
    };
    layout::table("Dead letters by error", &["Group", "Messages", "Newest", "Error"], &rows)
}

fn lanes_of(lanes: &[LaneStatus]) -> Markup {
    let rows = html! {
        @for lane in lanes {
            tr {
                th scope="row" { (lane.name) }
                td { (layout::state(&lane.state)) }
                td { (lane.agent.as_deref().unwrap_or("nobody")) }
                td.number { (layout::count(lane.pending)) }
                td { @if let Some(age) = lane.oldest_pending_seconds { (layout::duration(age)) } }
                td { (lane.stopped_reason.as_deref().unwrap_or_default()) }
            }
        }
    };
    layout::table("Lanes", &["Lane", "State", "Owner", "Pending", "Oldest", "Stopped by"], &rows)
}
