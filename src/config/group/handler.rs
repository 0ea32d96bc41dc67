//! `[groups.NAME.handler]`: which keys there are depends on `kind`.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use toml::de::DeValue;

use super::{ExecMode, Handler, HttpHandler, SqlMode, TIMEOUT};
use crate::config::error::ConfigError;
use crate::config::mask::mask;
use crate::config::section::Section;
use crate::config::setting::{Choice, DAY, MILLISECOND, Problem, Setting, Written, any, lasting};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Log,
    Exec,
    Http,
    Sql,
    Embedded,
}

impl Choice for Kind {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("log", Self::Log),
        ("exec", Self::Exec),
        ("http", Self::Http),
        ("sql", Self::Sql),
        ("embedded", Self::Embedded),
    ];
}

impl Choice for ExecMode {
    const WORDS: &'static [(&'static str, Self)] = &[("each", Self::Each), ("worker", Self::Worker)];
}

impl Choice for SqlMode {
    const WORDS: &'static [(&'static str, Self)] = &[("each", Self::Each), ("batch", Self::Batch)];
}

pub(super) fn read(section: &mut Section<'_>) -> Result<Handler, ConfigError> {
    Ok(match section.required("kind", any)? {
        Kind::Log => Handler::Log,
        Kind::Exec => Handler::Exec {
            command: command(section)?,
            mode: section.or("mode", ExecMode::default(), any)?,
            timeout: timeout(section)?,
        },
        Kind::Embedded => Handler::Embedded { timeout: timeout(section)? },
        Kind::Http => Handler::Http(http(section)?),
        Kind::Sql => Handler::Sql {
            function: section.required("function", |name: &String| check_function(name))?,
            mode: section.or("mode", SqlMode::default(), any)?,
            timeout: timeout(section)?,
        },
    })
}

fn timeout(section: &mut Section<'_>) -> Result<Duration, ConfigError> {
    section.or("timeout", TIMEOUT, lasting(MILLISECOND..=DAY))
}

pub fn command(section: &mut Section<'_>) -> Result<Vec<String>, ConfigError> {
    let command = section.list("command", |word| {
        if word.contains('\0') { Err("must not hold a null character".into()) } else { Ok(()) }
    })?;
    if command.first().is_some_and(String::is_empty) {
        return Err(section.wrong("command", "must begin with a program"));
    }
    Ok(command)
}

fn http(section: &mut Section<'_>) -> Result<HttpHandler, ConfigError> {
    let timeout = timeout(section)?;
    let permanent = section.optional("permanent_statuses", any)?.map(|Statuses(statuses)| statuses);
    request(section, timeout, permanent)
}

/// Where a request goes, and as whom.
pub fn request(
    section: &mut Section<'_>,
    timeout: Duration,
    permanent_statuses: Option<BTreeSet<u16>>,
) -> Result<HttpHandler, ConfigError> {
    let handler = HttpHandler {
        url: section.required("url", |url: &HttpUrl| check_url(&url.0))?.0,
        timeout,
        headers: section.strings("headers", check_header)?,
        permanent_statuses,
        bearer_file: section.optional("bearer_file", any)?,
        ca_file: section.optional("ca_file", any)?,
        client_cert: section.optional("client_cert", any)?,
        client_key: section.optional("client_key", any)?,
    };
    if let Some(name) = handler.headers.keys().find(|name| name.eq_ignore_ascii_case("authorization"))
        && handler.bearer_file.is_some()
    {
        return Err(section.wrong("bearer_file", &format!("and `{name}` in `headers` exclude each other")));
    }
    match (&handler.client_cert, &handler.client_key) {
        (Some(_), None) => Err(section.wrong("client_cert", "needs `client_key` too")),
        (None, Some(_)) => Err(section.wrong("client_key", "needs `client_cert` too")),
        _ => Ok(handler),
    }
}

struct Statuses(BTreeSet<u16>);

impl Setting for Statuses {
    fn what() -> String {
        "a list of statuses from 300 to 599, such as [400, 404, 422]".into()
    }

    fn read(written: Written<'_>) -> Result<Self, Problem> {
        let DeValue::Array(items) = written.value else { return Err(written.not(&Self::what())) };
        let status = |item: &DeValue<'_>| match item {
            DeValue::Integer(number) => {
                number.as_str().parse().ok().filter(|status| (300..600).contains(status))
            }
            _ => None,
        };
        items
            .iter()
            .map(|item| status(item.get_ref()).ok_or_else(|| format!("must be {}", Self::what())))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn show(&self) -> Value {
        self.0.iter().copied().collect()
    }
}

/// Shown without its password.
struct HttpUrl(String);

impl Setting for HttpUrl {
    fn what() -> String {
        "a URL such as \"http://localhost:8080/orders\"".into()
    }

    fn read(written: Written<'_>) -> Result<Self, Problem> {
        written.text(&Self::what()).map(|url| Self(url.into_owned()))
    }

    fn show(&self) -> Value {
        mask(&self.0).into()
    }
}

fn check_url(url: &str) -> Result<(), Problem> {
    let wrong = || format!("must be {}", HttpUrl::what());
    let uri: hyper::Uri = url.parse().map_err(|error| format!("{}: {error}", wrong()))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() => Ok(()),
        (Some("http" | "https") | None, _) => Err(wrong()),
        (Some(scheme), _) => Err(format!("must begin with http:// or https://, not {scheme}://")),
    }
}

/// The rest of a request's head is ours.
const OWN_HEADERS: [&str; 5] =
    ["host", "content-length", "transfer-encoding", "connection", "idempotency-key"];

fn check_header(name: &str, value: &str) -> Result<(), Problem> {
    if hyper::header::HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Err(format!("`{name}` is not a name for a header"));
    }
    if hyper::header::HeaderValue::from_str(value).is_err() {
        return Err(format!("the value of `{name}` is not one for a header"));
    }
    let lower = name.to_ascii_lowercase();
    if OWN_HEADERS.contains(&&*lower) || lower.starts_with("outboxd-") {
        return Err(format!("`{name}` is set by outboxd for each request"));
    }
    Ok(())
}

/// A function's name goes into a statement as it is.
fn check_function(name: &str) -> Result<(), Problem> {
    let is_identifier = |part: &str| {
        let first = part.bytes().next();
        part.len() <= 63
            && first.is_some_and(|byte| byte.is_ascii_lowercase() || byte == b'_')
            && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    };
    if name.split('.').count() <= 2 && name.split('.').all(is_identifier) {
        return Ok(());
    }
    Err("must be the name of a function such as \"app.on_order\": lower-case letters, digits and underscores, no arguments".into())
}
