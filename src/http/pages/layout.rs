//! What every page has, and how values are shown.

use chrono::{DateTime, Utc};
use maud::{DOCTYPE, Markup, html};

use crate::http::Site;

const PLACES: [(&str, &str); 6] = [
    ("/", "Overview"),
    ("/messages", "Messages"),
    ("/failures", "Failures"),
    ("/groups", "Groups"),
    ("/agents", "Agents"),
    ("/jobs", "Jobs"),
];

/// A page of the site; `refresh` has its script ask for it again now and then.
pub(super) fn page(site: &Site, place: &str, title: &str, refresh: bool, body: &Markup) -> Markup {
    let environment = site.settings.environment.as_deref();
    html! {
        (DOCTYPE)
        html lang="en" {
            (head(title))
            body {
                a.skip href="#main" { "Skip to content" }
                header {
                    a.brand href="/" { "outboxd" }
                    @if let Some(name) = environment {
                        span class={ "environment " (colour(name)) } { (name) }
                    }
                    @if site.settings.read_only { span.environment.quiet { "read only" } }
                    nav aria-label="Pages" {
                        @for (path, name) in PLACES {
                            a href=(path) aria-current=[(path == place).then_some("page")] { (name) }
                        }
                    }
                }
                main #main data-refresh=[refresh.then_some("10")] { (body) }
                footer { "outboxd " (env!("CARGO_PKG_VERSION")) " · " a href="/api/openapi.json" { "API" } " · " a href="/metrics" { "Metrics" } }
            }
        }
    }
}

/// A page for whom nothing else is shown.
pub(super) fn bare(title: &str, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            (head(title))
            body { header { a.brand href="/" { "outboxd" } } main #main.narrow { (body) } }
        }
    }
}

fn head(title: &str) -> Markup {
    html! {
        head {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            title { (title) " · outboxd" }
            link rel="icon" href="data:,";
            link rel="stylesheet" href="/assets/style.css";
            script src="/assets/script.js" defer {}
        }
    }
}

/// A name keeps its colour; what sounds like production is red everywhere.
fn colour(name: &str) -> &'static str {
    const COLOURS: [&str; 4] = ["blue", "green", "violet", "amber"];
    if name.to_ascii_lowercase().starts_with("prod") {
        return "red";
    }
    let sum: usize = name.bytes().map(usize::from).sum();
    COLOURS[sum % COLOURS.len()]
}

/// A wide table scrolls by itself, by keyboard too.
pub(super) fn table(name: &str, columns: &[&str], rows: &Markup) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label=(name) {
            table {
                thead { tr { @for column in columns { th scope="col" { (column) } } } }
                tbody { (rows) }
            }
        }
    }
}

/// So long, in its two largest units.
pub(super) fn duration(seconds: f64) -> String {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative, and no age is that long"
    )]
    let whole = seconds.max(0.0) as u64;
    if whole == 0 {
        return format!("{:.0} ms", seconds.max(0.0) * 1000.0);
    }
    let text = humantime::format_duration(std::time::Duration::from_secs(whole)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

pub(super) fn ago(at: DateTime<Utc>) -> Markup {
    #[allow(clippy::cast_precision_loss, reason = "milliseconds of an age")]
    let seconds = (Utc::now() - at).num_milliseconds() as f64 / 1000.0;
    let exact = at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    html! { time datetime=(exact) title=(exact) { (duration(seconds)) " ago" } }
}

/// A count that ends at 10,000 says so.
pub(super) fn count(number: i64) -> String {
    if number >= 10_000 { "10,000+".to_owned() } else { number.to_string() }
}

pub(super) fn state(name: &str) -> Markup {
    html! { span class={ "state " (name) } { (name) } }
}

/// Something to choose from, as a filter of a list.
pub(super) fn choice(name: &str, label: &str, none: &str, choices: &[&str], chosen: Option<&str>) -> Markup {
    html! {
        label { (label)
            select name=(name) {
                option value="" { (none) }
                @for choice in choices { option value=(choice) selected[chosen == Some(*choice)] { (choice) } }
            }
        }
    }
}

pub(super) fn field(name: &str, label: &str, value: Option<&str>) -> Markup {
    html! { label { (label) input type="text" name=(name) value=(value.unwrap_or_default()) autocomplete="off"; } }
}

/// A query string of those that have a value.
pub(super) fn query(pairs: &[(&str, Option<String>)]) -> String {
    let encode = |text: &str| {
        percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
    };
    let given = pairs
        .iter()
        .filter_map(|(name, value)| Some((name, value.as_deref().filter(|value| !value.is_empty())?)));
    given.map(|(name, value)| format!("{name}={}", encode(value))).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_short_and_escaped() {
        assert_eq!(
            (duration(3_725.4), duration(59.9), duration(0.25)),
            ("1h 2m".into(), "59s".into(), "250 ms".into())
        );
        assert_eq!(
            query(&[("a", Some("x y&".into())), ("b", None), ("c", Some(String::new()))]),
            "a=x%20y%26"
        );
        let shown = field("n", "N", Some("\"><script>alert(1)</script>")).into_string();
        assert!(!shown.contains("<script") && !shown.contains("value=\"\""), "{shown}");
        assert_eq!((colour("production"), colour("PROD-eu")), ("red", "red"));
    }
}
