//! POSTs to one place, over connections that are kept.

mod address;
mod tls;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_openssl::client::legacy::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::{Instant, timeout_at};

use super::{SetupError, words};
use crate::config::group::HttpHandler;

/// Shorter than the five seconds after which many servers close an idle connection: a request that meets the
/// closing is an attempt lost.
const KEEP_IDLE: Duration = Duration::from_secs(4);

/// How much of an answer is read so that its connection can be used again; what is longer costs a connection.
const DRAIN_LIMIT: usize = 256 * 1024;

pub struct Poster {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    url: Uri,
    headers: HeaderMap,
    bearer_file: Option<PathBuf>,
}

/// What came back.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// The beginning of its body.
    pub words: Vec<u8>,
}

/// Why nothing came back.
pub enum Silence {
    TimedOut,
    Failed(String),
}

impl Poster {
    pub fn new(settings: &HttpHandler) -> Result<Self, SetupError> {
        let url = address::url(&settings.url)?;
        let headers = address::own_headers(&settings.headers)?;
        if let Some(path) = &settings.bearer_file {
            if headers.contains_key(AUTHORIZATION) {
                let problem = "and an `authorization` in `headers` exclude each other: drop one".into();
                return Err(SetupError::Setting { key: "bearer_file", problem });
            }
            let text = std::fs::read_to_string(path).map_err(|source| SetupError::File {
                key: "bearer_file",
                path: path.clone(),
                source,
            })?;
            bearer(path, &text).map_err(|problem| SetupError::Setting { key: "bearer_file", problem })?;
        }
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let connector = HttpsConnector::with_connector(tcp, tls::builder(settings)?).map_err(|error| {
            SetupError::Setting { key: "url", problem: format!("cannot have TLS: {error}") }
        })?;
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(KEEP_IDLE)
            .pool_timer(TokioTimer::new())
            .build(connector);
        let bearer_file = settings.bearer_file.clone();
        Ok(Self { client, url, headers, bearer_file })
    }

    /// `describe` tells in headers what the body is; the operator's own go over it.
    pub async fn post(
        &self,
        body: Bytes,
        describe: impl FnOnce(&mut HeaderMap),
        deadline: Instant,
    ) -> Result<Answer, Silence> {
        let request = self.request(body, describe).await.map_err(Silence::Failed)?;
        match timeout_at(deadline, self.client.request(request)).await {
            Err(_) => Err(Silence::TimedOut),
            Ok(Err(error)) => Err(Silence::Failed(words::chain(&error))),
            Ok(Ok(response)) => {
                let (head, body) = response.into_parts();
                let words = drain(body, deadline).await;
                Ok(Answer { status: head.status, headers: head.headers, words })
            }
        }
    }

    async fn request(
        &self,
        body: Bytes,
        describe: impl FnOnce(&mut HeaderMap),
    ) -> Result<Request<Full<Bytes>>, String> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.clone();
        let headers = request.headers_mut();
        describe(headers);
        for (name, value) in &self.headers {
            headers.insert(name, value.clone());
        }
        if let Some(path) = &self.bearer_file {
            let text = tokio::fs::read_to_string(path)
                .await
                .map_err(|error| format!("bearer_file {} cannot be read: {error}", path.display()))?;
            headers.insert(AUTHORIZATION, bearer(path, &text)?);
        }
        Ok(request)
    }
}

fn bearer(path: &Path, text: &str) -> Result<HeaderValue, String> {
    let token = text.trim();
    let mut value = HeaderValue::try_from(format!("Bearer {token}"))
        .ok()
        .filter(|_| !token.is_empty() && !token.contains(char::is_whitespace))
        .ok_or_else(|| format!("{} does not hold one token on one line", path.display()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Reads an answer as far as it is of use, and keeps its beginning. The status has told the outcome already: an
/// answer that breaks off, or never ends, changes nothing.
async fn drain(mut body: Incoming, deadline: Instant) -> Vec<u8> {
    let mut words = Vec::new();
    let mut read = 0;
    while read < DRAIN_LIMIT && !body.is_end_stream() {
        let Ok(Some(Ok(frame))) = timeout_at(deadline, body.frame()).await else { break };
        if let Ok(data) = frame.into_data() {
            read += data.len();
            let room = words::LIMIT.saturating_sub(words.len()).min(data.len());
            words.extend_from_slice(&data[..room]);
        }
    }
    words
}
