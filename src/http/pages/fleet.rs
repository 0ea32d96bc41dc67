//! Agents with their health, groups with their orders.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::Redirect;
use chrono::{TimeDelta, Utc};
use maud::{Markup, html};
use serde_json::Value;
use uuid::Uuid;

use super::{Page, layout, overview};
use crate::http::Site;
use crate::http::api::{order as carry_out, order_agent as order_agent_of};
use crate::http::input::Named;
use crate::http::problem::Problem;
use crate::http::server::Peer;
use crate::pg::agents::{self, Agent, AgentOrder};
use crate::pg::group_orders::GroupOrder;
use crate::pg::groups::{self, Shown};

/// Who has been gone for longer is counted, and not shown.
const GONE_FOR: TimeDelta = TimeDelta::days(1);

pub(super) async fn agents(State(site): State<Arc<Site>>) -> Page {
    let client = site.database.lend().await?;
    let agents = agents::list(&client).await?;
    drop(client);
    let (shown, old): (Vec<_>, Vec<_>) = agents
        .iter()
        .partition(|agent| !agent.has_ended() || Utc::now() - agent.last_heartbeat_at < GONE_FOR);
    let body = html! {
        h1 { "Agents" }
        @if agents.is_empty() { p.none { "No agent has ever joined." } }
        @for agent in shown { (agent_of(&site, agent)) }
        @if !old.is_empty() {
            p.none { (old.len()) " more have been gone for longer than a day; " code { "outboxd agents prune" } " forgets them." }
        }
    };
    Ok(layout::page(&site, "/agents", "Agents", true, &body))
}

fn agent_of(site: &Site, agent: &Agent) -> Markup {
    let facts: Vec<(String, String)> = match &agent.health {
        Value::Object(health) => {
            let simple = health.iter().filter(|(_, value)| !value.is_object() && !value.is_null());
            simple.map(|(name, value)| fact(name, value)).collect()
        }
        _ => Vec::new(),
    };
    html! {
        article id=(agent.id) class=[agent.has_ended().then_some("gone")] {
            h2 { (agent.name) " " (layout::state(&agent.state)) @if agent.config_mismatch { " " span.state.differs title="Its file says other things than those of most of its role" { "config differs" } } }
            p { (agent.role) @if !agent.groups.is_empty() { " of " (agent.groups.join(", ")) } ", process " (agent.pid) " on " (agent.host) ", version " (agent.version)
                ", heard " (layout::ago(agent.last_heartbeat_at)) ", started " (layout::ago(agent.started_at)) }
            dl.facts { @for (name, value) in facts { dt { (name) } dd { (value) } } }
            @if !agent.has_ended() && !site.settings.read_only { (orders_to(agent)) }
        }
    }
}

/// A line of its health for people: units of the name go to the value.
fn fact(name: &str, value: &Value) -> (String, String) {
    let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let text = match value {
        Value::Array(values) if values.is_empty() => "none".to_owned(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(", "),
        value => plain(value),
    };
    let name_of = |unit| name.strip_suffix(unit).map(|name| name.replace('_', " "));
    match (name_of("_bytes"), name_of("_seconds"), value.as_f64()) {
        (Some(name), _, Some(bytes)) => (name, format!("{:.1} MiB", bytes / f64::from(1 << 20))),
        (_, Some(name), Some(seconds)) => (name, layout::duration(seconds)),
        _ => (name.replace('_', " "), text),
    }
}

/// Taking one out of service asks twice.
fn orders_to(agent: &Agent) -> Markup {
    let form = |order: &str, label: &str| {
        html! { form method="post" action={ "/agents/" (agent.id) "/" (order) } { button { (label) " " (agent.name) } } }
    };
    html! {
        @if let Some(at) = agent.drain_ordered_at { p { "An operator has taken it out of service, " (layout::ago(at)) "." } div.actions { (form("resume", "Resume")) } } @else {
            details {
                summary aria-label={ "Drain " (agent.name) "…" } { "Drain…" }
                p { "It finishes what runs and takes nothing new on, until it is resumed; others take its work over." }
                (form("drain", "Drain"))
            }
        }
    }
}

pub(super) async fn order_agent(
    State(site): State<Arc<Site>>,
    Named((id, wanted)): Named<(Uuid, String)>,
    peer: Extension<Peer>,
) -> Result<Redirect, Problem> {
    let wanted = match wanted.as_str() {
        "drain" => AgentOrder::Drain,
        "resume" => AgentOrder::Resume,
        _ => return Err(Problem::not_found("an agent can be drained and resumed here")),
    };
    order_agent_of(&site, wanted, id, peer).await?;
    Ok(Redirect::to("/agents"))
}

pub(super) async fn groups(State(site): State<Arc<Site>>) -> Page {
    let client = site.database.lend().await?;
    let agents = agents::list(&client).await?;
    let mut shown = Vec::new();
    for group in groups::list(&client, site.inactive_after).await? {
        shown.push(groups::show(&client, group).await?);
    }
    drop(client);
    let body = html! {
        h1 { "Groups" }
        @if shown.is_empty() { p.none { "No group has run here." } }
        @for group in &shown { (group_of(&site, group, &agents)) }
    };
    Ok(layout::page(&site, "/groups", "Groups", true, &body))
}

fn group_of(site: &Site, shown: &Shown, agents: &[Agent]) -> Markup {
    let name = &shown.group.name;
    let button = |order: &str, label: &str| {
        html! { form method="post" action={ "/groups/" (name) "/" (order) } { button aria-label={ (label) " group " (name) } { (label) } } }
    };
    let positions = html! {
        @for at in &shown.partitions {
            tr { th scope="row" { (at.topic) } td.number { (at.partition) } td.number { (at.next_offset) } td { (layout::ago(at.updated_at)) } }
        }
    };
    html! {
        article id=(name) {
            h2 { (name) @if shown.group.paused_at.is_some() { " " (layout::state("paused")) } @if shown.breaker_open_until.is_some() { " " (layout::state("breaker")) } }
            dl.facts {
                dt { "topics" } dd { (shown.group.topics.join(", ")) }
                dt { "agents" } dd { @if shown.group.agents.is_empty() { "none alive" } @else { (shown.group.agents.join(", ")) } }
                dt { "lag" } dd { (overview::of_group(agents, name, "lag")) }
                @if let Some(rate) = shown.group.rate { dt { "handled" } dd { (format!("{rate:.1} a second")) } }
                dt { "to be retried" } dd { (shown.group.failures) }
                dt { "held" } dd { (shown.held) " behind " (shown.group.held_keys) " keys" }
                dt { "dead letters" } dd { a href={ "/failures?" (layout::query(&[("state", Some("dead".into())), ("group", Some(name.clone()))])) } { (shown.group.dead_letters) } }
                @if let Some(by) = &shown.group.paused_by { dt { "paused by" } dd { (by) } }
                @if let Some(reason) = &shown.breaker_reason { dt { "breaker" } dd { (reason) } }
            }
            @if !site.settings.read_only {
                div.actions {
                    @if shown.group.paused_at.is_some() || shown.breaker_open_until.is_some() { (button("resume", "Resume")) } @else { (button("pause", "Pause")) }
                }
            }
            details { summary { "Positions in " (shown.partitions.len()) " partitions" }
                (layout::table(&format!("Positions of {name}"), &["Topic", "Partition", "Next offset", "Moved"], &positions)) }
        }
    }
}

pub(super) async fn order(
    State(site): State<Arc<Site>>,
    Named((name, wanted)): Named<(String, String)>,
    peer: Extension<Peer>,
) -> Result<Redirect, Problem> {
    let wanted = match wanted.as_str() {
        "pause" => GroupOrder::Pause,
        "resume" => GroupOrder::Resume,
        _ => return Err(Problem::not_found("a group can be paused and resumed here")),
    };
    carry_out(&site, wanted, &name, peer).await?;
    Ok(Redirect::to("/groups"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn health_is_told_in_units_that_people_read() {
        let told = |name: &str, value: Value| {
            let (name, value) = fact(name, &value);
            format!("{name}: {value}")
        };
        assert_eq!(told("resident_bytes", json!(48_234_496)), "resident: 46.0 MiB");
        assert_eq!(told("uptime_seconds", json!(3_725)), "uptime: 1h 2m");
        assert_eq!(told("owned_lanes", json!(["high", "low"])), "owned lanes: high, low");
        assert_eq!(told("jobs_running", json!([])), "jobs running: none");
        assert_eq!(told("in_flight", json!(3)), "in flight: 3");
    }
}
