//! Who may ask: nobody by a foreign name or from a foreign page, off loopback nobody without the token, and nobody for
//! long.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use super::Site;
use super::pages::is_wanted;
use super::problem::Problem;

/// A request that has not come, or not been answered, within this time is given up.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
     form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// What a browser keeps instead of the token.
const COOKIE: &str = "outboxd";

/// Where a browser gives the token.
const LOGIN: &str = "/login";

pub(super) async fn limit_time(State(patience): State<Duration>, request: Request, next: Next) -> Response {
    tokio::time::timeout(patience, next.run(request)).await.unwrap_or_else(|_| {
        let detail = format!("it took longer than {}", humantime::format_duration(patience));
        Problem::new(StatusCode::REQUEST_TIMEOUT, detail).into_response()
    })
}

/// For all but health and metrics.
pub(super) async fn check(State(site): State<Arc<Site>>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    match judge(&site, &parts).await {
        Ok(()) => next.run(Request::from_parts(parts, body)).await,
        Err(problem)
            if problem.status() == StatusCode::UNAUTHORIZED && is_wanted(&parts.uri, &parts.headers) =>
        {
            Redirect::to(LOGIN).into_response()
        }
        Err(problem) => problem.into_response(),
    }
}

/// What a browser may do with an answer, whatever is in it.
pub(super) async fn confine(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

async fn judge(site: &Site, request: &Parts) -> Result<(), Problem> {
    let forbidden = |detail: &str| Problem::new(StatusCode::FORBIDDEN, detail);
    let headers = &request.headers;
    let host = text(headers, header::HOST).unwrap_or_default();
    if !is_ours(host, &site.settings.allowed_hosts) {
        return Err(forbidden("this host is not in `[http] allowed_hosts`"));
    }
    if is_foreign(headers, host) {
        return Err(forbidden("a page of another site may not ask this"));
    }
    let path = request.uri.path();
    if path == LOGIN || path.starts_with("/assets/") {
        return Ok(());
    }
    if needs_token(site) && !has_token(site, headers).await? {
        return Err(Problem::new(StatusCode::UNAUTHORIZED, "the token of `[http] token_file` is needed"));
    }
    let changes = !matches!(request.method, Method::GET | Method::HEAD | Method::OPTIONS);
    if changes && site.settings.read_only {
        return Err(forbidden("`[http] read_only` is set: nothing is changed here"));
    }
    Ok(())
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Without its port, and the brackets of IPv6.
fn name_of(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

/// A name that somebody else's DNS may point at us is foreign; an address is not.
fn is_ours(host: &str, allowed: &[String]) -> bool {
    let name = name_of(host);
    name.parse::<std::net::IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || allowed
            .iter()
            .any(|allowed| allowed.eq_ignore_ascii_case(host) || allowed.eq_ignore_ascii_case(name))
}

/// Sent by a browser for a page that is not ours.
fn is_foreign(headers: &HeaderMap, host: &str) -> bool {
    if let Some(origin) = text(headers, header::ORIGIN) {
        let of = origin.split_once("://").map(|(_, of)| of);
        return of.is_none_or(|of| !of.eq_ignore_ascii_case(host));
    }
    let site = headers.get("sec-fetch-site").and_then(|value| value.to_str().ok());
    // A link that somebody follows is answered, with a page.
    let follows = headers.get("sec-fetch-mode").is_some_and(|mode| mode == "navigate")
        && headers.get("sec-fetch-dest").is_some_and(|dest| dest == "document");
    site.is_some_and(|site| matches!(site, "cross-site" | "same-site")) && !follows
}

fn needs_token(site: &Site) -> bool {
    site.settings.token_file.is_some() || !site.is_local
}

/// Read each time, so that it may be changed.
async fn token(site: &Site) -> Result<String, Problem> {
    let Some(path) = &site.settings.token_file else {
        let detail = "off loopback this needs a token: set `[http] token_file`";
        return Err(Problem::new(StatusCode::FORBIDDEN, detail));
    };
    let token = tokio::fs::read_to_string(path).await.map(|token| token.trim().to_owned());
    token.ok().filter(|token| !token.is_empty()).ok_or_else(|| {
        tracing::error!("`[http] token_file` {} cannot be read, or is empty", path.display());
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "`[http] token_file` cannot be read, or is empty")
    })
}

async fn has_token(site: &Site, headers: &HeaderMap) -> Result<bool, Problem> {
    let token = token(site).await?;
    let bearer = text(headers, header::AUTHORIZATION).and_then(|value| {
        let (scheme, given) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(given.trim())
    });
    if let Some(given) = bearer {
        return Ok(is_same(given, &token));
    }
    let cookies = text(headers, header::COOKIE).unwrap_or_default().split(';');
    let given = cookies.filter_map(|cookie| cookie.trim().split_once('=')).find(|(name, _)| *name == COOKIE);
    Ok(given.is_some_and(|(_, given)| is_same(given, &session(&token))))
}

/// The cookie for whoever knows the token.
pub(super) async fn enter(site: &Site, given: &str) -> Result<Option<String>, Problem> {
    let token = token(site).await?;
    let cookie = || format!("{COOKIE}={}; HttpOnly; SameSite=Strict; Path=/", session(&token));
    Ok(is_same(given, &token).then(cookie))
}

/// In a time that tells nothing of where they differ.
fn is_same(given: &str, expected: &str) -> bool {
    openssl::memcmp::eq(&Sha256::digest(given), &Sha256::digest(expected))
}

/// Made of the token, so that it ends with it.
fn session(token: &str) -> String {
    let digest = Sha256::new().chain_update("outboxd session\n").chain_update(token).finalize();
    URL_SAFE_NO_PAD.encode(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_that_stops_in_the_middle_is_given_up() {
        let patience = Duration::from_millis(20);
        let routes = axum::Router::new()
            .route("/", axum::routing::post(async |_: bytes::Bytes| ()))
            .layer(axum::middleware::from_fn_with_state(patience, limit_time));
        let stopped = futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>();
        let request = Request::post("/").body(axum::body::Body::from_stream(stopped)).unwrap();
        let service = hyper_util::service::TowerToHyperService::new(routes);
        let response = hyper::service::Service::call(&service, request).await.unwrap();
        assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
        let problem = response.extensions().get::<Problem>().unwrap();
        assert_eq!(problem.detail(), "it took longer than 20ms");
    }

    #[test]
    fn only_our_own_names_and_addresses_are_ours() {
        let allowed = ["outboxd.example".to_owned(), "other.example:9000".to_owned()];
        for host in
            ["127.0.0.1:9464", "[::1]:9464", "localhost", "LOCALHOST:1", "10.0.0.7", "outboxd.example:80"]
        {
            assert!(is_ours(host, &allowed), "{host}");
        }
        for host in
            ["", "evil.example", "127.0.0.1.evil.example:9464", "other.example", "localhost.evil.example"]
        {
            assert!(!is_ours(host, &allowed), "{host}");
        }
        assert!(is_ours("other.example:9000", &allowed));
    }

    #[test]
    fn a_page_elsewhere_is_foreign_and_a_link_is_not() {
        let foreign = |pairs: &[(&'static str, &'static str)]| {
            let headers = pairs.iter().map(|(name, value)| {
                (header::HeaderName::from_static(name), HeaderValue::from_static(value))
            });
            is_foreign(&headers.collect(), "127.0.0.1:9464")
        };
        assert!(!foreign(&[]) && !foreign(&[("origin", "http://127.0.0.1:9464")]));
        for origin in ["http://evil.example", "null", "http://127.0.0.1:80", "https://127.0.0.1"] {
            assert!(foreign(&[("origin", origin)]), "{origin}");
        }
        assert!(foreign(&[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")]));
        let link = [
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "navigate"),
            ("sec-fetch-dest", "document"),
        ];
        assert!(!foreign(&link) && !foreign(&[("sec-fetch-site", "same-origin")]));
    }

    #[test]
    fn a_token_is_compared_as_a_whole() {
        assert!(is_same("secret", "secret"));
        assert!(!is_same("secre", "secret") && !is_same("secrets", "secret") && !is_same("", "secret"));
        assert_ne!(session("a"), session("b"));
    }
}
