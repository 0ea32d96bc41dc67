//! Where requests go, and the operator's headers.

use std::collections::BTreeMap;

use hyper::Uri;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING,
};

use super::super::SetupError;

pub fn url(text: &str) -> Result<Uri, SetupError> {
    let refuse = |problem: &str| SetupError::Setting { key: "url", problem: problem.to_owned() };
    let url: Uri = text.parse().map_err(|error| refuse(&format!("is not a URL: {error}")))?;
    if !matches!(url.scheme_str(), Some("http" | "https")) || url.host().is_none_or(str::is_empty) {
        return Err(refuse("must name scheme and host, as in http://localhost:8080/orders"));
    }
    let authority = url.authority().map_or("", |authority| authority.as_str());
    if authority.contains('@') {
        return Err(refuse(
            "must not hold a user or password: use `bearer_file`, or an `authorization` in `headers`",
        ));
    }
    if url.port().is_none() && authority.rsplit(']').next().is_some_and(|end| end.contains(':')) {
        return Err(refuse("has a port that is not a number"));
    }
    Ok(url)
}

/// The operator's headers, which replace those of the same name.
pub fn own_headers(settings: &BTreeMap<String, String>) -> Result<HeaderMap, SetupError> {
    let mut headers = HeaderMap::new();
    for (name, value) in settings {
        let refuse =
            |problem: &str| SetupError::Setting { key: "headers", problem: format!("`{name}` {problem}") };
        let header: HeaderName = name.parse().map_err(|_| refuse("is not a header's name"))?;
        if [CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING].contains(&header) {
            return Err(refuse("belongs to the connection: leave it out"));
        }
        if header == "idempotency-key" || header.as_str().starts_with("outboxd-") {
            return Err(refuse("is outboxd's own, and differs by message: leave it out"));
        }
        let mut value: HeaderValue =
            value.parse().map_err(|_| refuse("has a value that no header can carry"))?;
        value.set_sensitive(true);
        headers.insert(header, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_that_cannot_be_posted_to_is_refused() {
        for good in ["http://localhost:8080/orders?x=1", "https://[::1]:8443", "http://h"] {
            assert!(url(good).is_ok(), "{good}");
        }
        for (bad, why) in [
            ("", "is not a URL"),
            ("/orders", "must name scheme"),
            ("localhost:8080", "must name scheme"),
            ("ftp://h/", "must name scheme"),
            ("http://", "is not a URL"),
            ("http://h:port/", "has a port"),
            ("http://[::1]:99999/", "has a port"),
            ("http://h:/", "has a port"),
            ("http://user:secret@h/", "must not hold a user"),
        ] {
            let error = url(bad).unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("secret"), "{bad}: {error}");
        }
    }

    #[test]
    fn an_operators_header_cannot_break_the_request() {
        let own =
            |name: &str, value: &str| own_headers(&BTreeMap::from([(name.to_owned(), value.to_owned())]));
        assert_eq!(own("X-Shop", "a").unwrap()["x-shop"], "a");
        for (name, value) in [
            ("bad name", "a"),
            ("x", "a\r\nb: c"),
            ("Content-Length", "3"),
            ("Host", "h"),
            ("Idempotency-Key", "k"),
            ("outboxd-group", "g"),
        ] {
            let error = own(name, value).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
