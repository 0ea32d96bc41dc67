//! Messages: a list with its filters in the address, and what became of one.

use std::sync::Arc;

use axum::extract::State;
use chrono::Utc;
use maud::{Markup, html};
use serde::Deserialize;
use uuid::Uuid;

use super::{Page, layout};
use crate::domain::payload::Payload;
use crate::http::Site;
use crate::http::api::Stage;
use crate::http::input::{Asked, Named, given};
use crate::http::problem::Problem;
use crate::pg::inspect::{self, MessageFilter, MessageState, MessageStory, Publication};

const PAGE: i64 = 50;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    #[serde(default, deserialize_with = "given")]
    topic: Option<String>,
    #[serde(default, deserialize_with = "given")]
    key: Option<String>,
    #[serde(default, deserialize_with = "given")]
    state: Option<Stage>,
    after: Option<i64>,
}

pub(super) async fn list(State(site): State<Arc<Site>>, Asked(filter): Asked<Filter>) -> Page {
    let (topic, key, state) = (filter.topic, filter.key, filter.state.map(|state| state.name().to_owned()));
    let filter = MessageFilter {
        topic: topic.clone(),
        key: key.clone(),
        state: state.clone(),
        before: filter.after,
        limit: PAGE,
    };
    let client = site.database.lend().await?;
    let messages = inspect::messages(&client, &filter).await?;
    drop(client);
    let is_full = i64::try_from(messages.len()).is_ok_and(|count| count == PAGE);
    let next = messages.last().filter(|_| is_full).map(|last| last.seq.to_string());
    let next = next.map(|next| {
        layout::query(&[
            ("topic", topic.clone()),
            ("key", key.clone()),
            ("state", state.clone()),
            ("after", Some(next)),
        ])
    });
    let body = html! {
        h1 { "Messages" }
        form.filters method="get" action="/messages" {
            (layout::field("topic", "Topic", topic.as_deref()))
            (layout::field("key", "Key", key.as_deref()))
            (layout::choice("state", "State", "any", &Stage::ALL.map(Stage::name), state.as_deref()))
            button { "Filter" }
            @if topic.is_some() || key.is_some() || state.is_some() { a href="/messages" { "Clear" } }
        }
        @if messages.is_empty() { p.none { "No message fits." } } @else { section { (rows(&messages)) } }
        @if let Some(next) = next { p.pages { a href={ "/messages?" (next) } rel="next" { "Older" } } }
    };
    Ok(layout::page(&site, "/messages", "Messages", false, &body))
}

fn rows(messages: &[MessageState]) -> Markup {
    let rows = html! {
        @for message in messages {
            tr {
                th.id scope="row" { a href={ "/messages/" (message.id) } { (message.id) } }
                td { (layout::state(&message.state)) }
                td { (message.topic) }
                td.key title=[message.key.as_deref()] { (message.key.as_deref().unwrap_or_default()) }
                td { (message.event_type.as_deref().unwrap_or_default()) }
                td { (layout::ago(message.created_at)) }
            }
        }
    };
    layout::table("Messages", &["Id", "State", "Topic", "Key", "Type", "Created"], &rows)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Look {
    /// Asked for: a payload is nothing to be seen by accident.
    payload: Option<Seen>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Seen {
    Show,
}

pub(super) async fn show(
    State(site): State<Arc<Site>>,
    Named(id): Named<Uuid>,
    Asked(look): Asked<Look>,
) -> Page {
    let client = site.database.lend().await?;
    let story = inspect::message(&client, id).await?;
    drop(client);
    let story = story.ok_or_else(|| {
        Problem::not_found(format!(
            "no message {id} is in the outbox: it was never committed, or it is past its retention"
        ))
    })?;
    let body = html! {
        h1 { "Message" }
        section { (facts(&story)) }
        section { h2 { "Time line" } (time_line(&story)) }
        section { h2 { "Content" } (content(&story, look.payload.is_some())) }
    };
    Ok(layout::page(&site, "/messages", "Message", false, &body))
}

fn facts(story: &MessageStory) -> Markup {
    let message = &story.message;
    let fact = |name: &str, value: &str| html! { @if !value.is_empty() { dt { (name) } dd { (value) } } };
    html! {
        dl.facts {
            dt { "id" } dd.id { (message.id) }
            dt { "state" } dd { (layout::state(&message.state)) " " (message.reason.as_deref().unwrap_or_default()) }
            (fact("topic", &message.topic))
            (fact("key", message.key.as_deref().unwrap_or_default()))
            (fact("type", message.event_type.as_deref().unwrap_or_default()))
            (fact("idempotency key", message.idempotency_key.as_deref().unwrap_or_default()))
            (fact("priority", message.priority.name()))
            (fact("seq", &message.seq.to_string()))
        }
    }
}

fn time_line(story: &MessageStory) -> Markup {
    html! {
        ol.line {
            li { (layout::ago(story.message.created_at)) " inserted" }
            @if let Some(due) = story.message.deliver_after { li { "to be published after " (due.to_rfc3339()) } }
            @if let Some(publication) = &story.publication { (published(publication)) }
            @for attempt in &story.failed_attempts {
                li.bad { (layout::ago(attempt.failed_at)) " group " strong { (attempt.group) } " failed, attempt " (attempt.attempt) " by " (attempt.agent) ": " (attempt.error) }
            }
            @for handled in &story.handled {
                li { (layout::ago(handled.handled_at)) " group " strong { (handled.group) }
                    @if handled.duplicate_of.is_some() { " skipped it as a duplicate" } @else { " handled it" }
                    ", attempt " (handled.attempt) " by " (handled.agent) ", partition " (handled.partition) ", offset " (handled.offset)
                    @if let Some(took) = handled.took_seconds { ", in " (layout::duration(took)) } }
            }
            @for failing in &story.failing {
                li.bad { "group " strong { (failing.group) } ": " (layout::state(&failing.state)) ", attempts: " (failing.attempts)
                    @if let Some(error) = &failing.error { ": " (error) } }
            }
        }
    }
}

/// At some time of a span, to one of some places: nothing is written per message.
fn published(publication: &Publication) -> Markup {
    let (from, to) = (publication.began_at, publication.ended_at.unwrap_or_else(Utc::now));
    html! {
        li {
            (layout::ago(to))
            @if (to - from).num_milliseconds() >= 1_000 { ", or up to " (layout::duration((to - from).as_seconds_f64())) " before," }
            " published"
            @if let Some(agent) = &publication.agent { " by " (agent) }
            @for (place, at) in publication.places.iter().enumerate() {
                @if place == 0 { " to " } @else { ", or " }
                "partition " (at.partition) ", offset at most " (at.offset_at_most)
            }
        }
    }
}

fn content(story: &MessageStory, show: bool) -> Markup {
    let Some(content) = &story.content else {
        return html! { p.none { "This user may look at messages, but not into them." } };
    };
    let headers = content.headers.as_object().cloned().unwrap_or_default();
    html! {
        @if !show { p { a.button href="?payload=show" { "Show headers and payload" } } }
        @else {
            dl.facts { @for (name, value) in &headers { dt { (name) } dd { (value.as_str().unwrap_or_default()) } } }
            pre tabindex="0" { (match &content.payload {
                Payload::Text(Some(text)) => text.as_str(),
                Payload::Text(None) => "(a tombstone)",
                Payload::Base64(text) => text.as_str(),
            }) }
        }
    }
}
