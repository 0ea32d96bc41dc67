//! What waits for a decision, with its filters in the address, and a way to decide about all that fit.

use std::sync::Arc;

use axum::extract::State;
use maud::{Markup, html};
use serde::Deserialize;
use uuid::Uuid;

use super::{Page, layout};
use crate::http::Site;
use crate::http::api::Waiting;
use crate::http::input::{Asked, given};
use crate::pg::retry::{self, Entry, STATES, WAITING};

const PAGE: i64 = 50;

/// What narrows them down, of a form.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    #[serde(default, deserialize_with = "given")]
    pub(super) group: Option<String>,
    #[serde(default, deserialize_with = "given")]
    pub(super) topic: Option<String>,
    #[serde(default, deserialize_with = "given")]
    pub(super) key: Option<String>,
    #[serde(default, rename = "type", deserialize_with = "given")]
    pub(super) event_type: Option<String>,
    #[serde(default, deserialize_with = "given")]
    pub(super) error: Option<String>,
    #[serde(default, deserialize_with = "given")]
    pub(super) state: Option<Waiting>,
    pub(super) after: Option<Uuid>,
    /// Of the form that decides.
    pub(super) decision: Option<String>,
    pub(super) id: Option<Uuid>,
}

impl Filter {
    pub(super) fn read(&self, limit: Option<i64>) -> retry::Filter {
        let states = match self.state {
            Some(state) => vec![state.name().to_owned()],
            None => WAITING.map(str::to_owned).to_vec(),
        };
        retry::Filter {
            states,
            group: self.group.clone(),
            topic: self.topic.clone(),
            key: self.key.clone(),
            event_type: self.event_type.clone(),
            error: self.error.clone(),
            after: self.after,
            limit,
            ..retry::Filter::default()
        }
    }

    /// As it stands in an address.
    pub(super) fn pairs(&self) -> [(&'static str, Option<String>); 6] {
        [
            ("group", self.group.clone()),
            ("topic", self.topic.clone()),
            ("key", self.key.clone()),
            ("type", self.event_type.clone()),
            ("error", self.error.clone()),
            ("state", self.state.map(|state| state.name().to_owned())),
        ]
    }

    fn with(&self, name: &'static str, value: String) -> String {
        let mut pairs = self.pairs().to_vec();
        pairs.push((name, Some(value)));
        layout::query(&pairs)
    }
}

pub(super) async fn list(State(site): State<Arc<Site>>, Asked(filter): Asked<Filter>) -> Page {
    let client = site.database.lend().await?;
    let entries = retry::list(&client, &filter.read(Some(PAGE))).await?;
    drop(client);
    let is_full = i64::try_from(entries.len()).is_ok_and(|count| count >= PAGE);
    let next = entries.last().filter(|_| is_full).map(|last| filter.with("after", last.id.to_string()));
    let body = html! {
        h1 { "Failures" }
        form.filters method="get" action="/failures" {
            (layout::field("group", "Group", filter.group.as_deref()))
            (layout::field("topic", "Topic", filter.topic.as_deref()))
            (layout::field("key", "Key", filter.key.as_deref()))
            (layout::field("type", "Type", filter.event_type.as_deref()))
            (layout::field("error", "Error contains", filter.error.as_deref()))
            (layout::choice("state", "State", "waiting", &STATES, filter.state.map(Waiting::name)))
            button { "Filter" }
            a href="/failures" { "Clear" }
        }
        @if entries.is_empty() { p.none { "Nothing waits for a decision here." } } @else {
            @if !site.settings.read_only {
                p.actions {
                    a.button href={ "/failures/decide?" (filter.with("decision", "replay".into())) } { "Replay all that fit…" }
                    a.button.quiet href={ "/failures/decide?" (filter.with("decision", "discard".into())) } { "Discard all that fit…" }
                }
            }
            section { (rows(&entries, !site.settings.read_only)) }
        }
        @if let Some(next) = next { p.pages { a href={ "/failures?" (next) } rel="next" { "Next" } } }
    };
    Ok(layout::page(&site, "/failures", "Failures", false, &body))
}

/// With a way to decide about each, where there is one.
pub(super) fn rows(entries: &[Entry], decide: bool) -> Markup {
    let rows = html! {
        @for entry in entries {
            tr {
                th.id scope="row" { a href={ "/messages/" (entry.id) } { (entry.id) } }
                td { (layout::state(&entry.state)) }
                td { (entry.group.as_deref().unwrap_or_default()) }
                td { (entry.topic) }
                td.key title=[entry.key.as_deref()] { (entry.key.as_deref().unwrap_or_default()) }
                td { (layout::ago(entry.since)) }
                td.wide { (entry.error.as_deref().unwrap_or_default()) }
                @if decide { td { a href={ "/failures/decide?decision=replay&id=" (entry.id) } aria-label={ "Replay " (entry.id) } { "Replay…" } } }
            }
        }
    };
    let columns = ["Id", "State", "Group", "Topic", "Key", "Since", "Error", "Decide"];
    layout::table("Failures", &columns[..columns.len() - usize::from(!decide)], &rows)
}
