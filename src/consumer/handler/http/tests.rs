use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::super::example::delivery;
use super::*;

mod authority;

use authority::Authority;

const AMPLE: Duration = Duration::from_secs(60);

fn settings(url: String) -> HttpHandler {
    HttpHandler {
        url,
        timeout: AMPLE,
        headers: std::collections::BTreeMap::new(),
        bearer_file: None,
        permanent_statuses: None,
        ca_file: None,
        client_cert: None,
        client_key: None,
    }
}

async fn outcome(settings: &HttpHandler) -> Outcome {
    Poster::new(settings).unwrap().handle(&delivery()).await
}

fn refused(settings: &HttpHandler) -> String {
    Poster::new(settings).err().unwrap().to_string()
}

type Seen = (hyper::http::request::Parts, Bytes);

/// A server that answers every request with what `answer` makes, and shows what it was asked.
struct Server {
    url: String,
    seen: mpsc::UnboundedReceiver<Seen>,
    connections: Arc<AtomicUsize>,
}

impl Server {
    async fn start(answer: impl Fn() -> Response<Full<Bytes>> + Clone + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/orders?shop=1", listener.local_addr().unwrap());
        let (sender, seen) = mpsc::unbounded_channel();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(stream, answer.clone(), sender.clone()));
            }
        });
        Self { url, seen, connections }
    }

    async fn answering(
        status: u16,
        headers: &'static [(&'static str, &'static str)],
        body: &'static str,
    ) -> Self {
        Self::start(move || {
            let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            for (name, value) in headers {
                response.headers_mut().insert(*name, HeaderValue::from_static(value));
            }
            response
        })
        .await
    }
}

async fn serve<S>(
    stream: S,
    answer: impl Fn() -> Response<Full<Bytes>> + Clone + Send + Sync + 'static,
    seen: mpsc::UnboundedSender<Seen>,
) where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let (answer, seen) = (answer.clone(), seen.clone());
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let _ = seen.send((head, body));
            Ok::<_, Infallible>(answer())
        }
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// A server that reads a request's head, writes these bytes, and then closes or holds the connection.
async fn raw_server(answer: &'static [u8], hold: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"{\"id\":42}") {
                assert_ne!(stream.read_buf(&mut head).await.unwrap(), 0);
            }
            stream.write_all(answer).await.unwrap();
            if hold {
                open.push(stream);
            }
        }
    });
    address
}

#[tokio::test]
async fn a_delivery_is_told_in_headers_exactly() {
    let mut server = Server::answering(204, &[], "").await;
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "first\n").unwrap();
    let mut settings = settings(server.url.clone());
    settings.headers.insert("X-Shop".into(), "blue".into());
    settings.headers.insert("ce-source".into(), "/shop".into());
    settings.bearer_file = Some(token.clone());
    let poster = Poster::new(&settings).unwrap();
    let mut delivery = delivery();
    for (name, value) in
        [("traceparent", "00-ab-cd-01"), ("tracestate", "a=b"), ("no token", "x"), ("Cookie", "a")]
    {
        delivery.record.headers.push((name.into(), Some(Bytes::from_static(value.as_bytes()))));
    }
    assert_eq!(poster.handle(&delivery).await, Outcome::Done);
    let (head, body) = server.seen.recv().await.unwrap();
    assert_eq!((head.method.as_str(), head.uri.to_string().as_str()), ("POST", "/orders?shop=1"));
    assert_eq!(body, "{\"id\":42}");
    let mut told: Vec<String> =
        head.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    told.sort();
    let host = server.url.strip_prefix("http://").unwrap().split('/').next().unwrap();
    let agent = concat!("user-agent: outboxd/", env!("CARGO_PKG_VERSION"));
    let expected = [
        "authorization: Bearer first",
        "ce-id: 01910000-0000-7000-8000-00000000002a",
        "ce-source: /shop",
        "ce-specversion: 1.0",
        "ce-subject: customer%207",
        "ce-time: 2026-09-21T14:13:20.123Z",
        "ce-type: OrderPlaced",
        "content-length: 9",
        "content-type: application/json",
        &format!("host: {host}"),
        "idempotency-key: order-42",
        "outboxd-attempt: 3",
        "outboxd-group: orders",
        "outboxd-header-cookie: a",
        "outboxd-header-tenant: z%C3%BCrich",
        "outboxd-key: customer%207",
        "outboxd-offset: 77",
        "outboxd-partition: 5",
        "outboxd-topic: shop.orders",
        "traceparent: 00-ab-cd-01",
        "tracestate: a=b",
        agent,
        "x-shop: blue",
    ];
    assert_eq!(told, expected);

    std::fs::write(&token, "second").unwrap();
    poster.handle(&delivery).await;
    assert_eq!(server.seen.recv().await.unwrap().0.headers["authorization"], "Bearer second");
    std::fs::remove_file(&token).unwrap();
    let Outcome::Retry { reason, .. } = poster.handle(&delivery).await else { panic!() };
    assert!(reason.contains("cannot be read"), "{reason}");
}

#[tokio::test]
async fn a_bare_record_is_a_valid_event_too() {
    let mut server = Server::answering(200, &[], "").await;
    let mut bare = delivery();
    bare.idempotency_key = None;
    bare.record.headers.clear();
    bare.record.key = Some(Bytes::from_static(&[0xff, b'"']));
    bare.record.timestamp = None;
    bare.record.payload = None;
    let poster = Poster::new(&settings(server.url.clone())).unwrap();
    assert_eq!(poster.handle(&bare).await, Outcome::Done);
    let (head, body) = server.seen.recv().await.unwrap();
    assert!(body.is_empty());
    for (name, value) in [
        ("ce-source", "/outboxd/shop.orders"),
        ("ce-type", "outboxd.message"),
        ("content-length", "0"),
        ("content-type", "application/octet-stream"),
        ("idempotency-key", "01910000-0000-7000-8000-00000000002a"),
        ("outboxd-key", "%FF%22"),
        ("outboxd-tombstone", "1"),
    ] {
        assert_eq!(head.headers[name], value);
    }
    for name in ["ce-subject", "ce-time", "traceparent"] {
        assert!(!head.headers.contains_key(name), "{name}");
    }
}

#[tokio::test]
async fn the_status_is_the_outcome() {
    let retry = |reason: &str, after: Option<u64>| Outcome::Retry {
        reason: reason.into(),
        after: after.map(Duration::from_secs),
    };
    let permanent = |reason: &str| Outcome::Permanent { reason: reason.into() };
    for (status, headers, body, expected) in [
        (200, &[][..], "fine", Outcome::Done),
        (500, &[], "oh no", retry("500 Internal Server Error: oh no", None)),
        (503, &[("retry-after", "7")], "", retry("503 Service Unavailable", Some(7))),
        (
            503,
            &[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")],
            "",
            retry("503 Service Unavailable", Some(0)),
        ),
        (404, &[], "no such order", permanent("404 Not Found: no such order")),
    ] {
        let server = Server::answering(status, headers, body).await;
        assert_eq!(outcome(&settings(server.url)).await, expected);
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let mut elsewhere = Server::answering(200, &[], "").await;
    let location: &'static str = elsewhere.url.clone().leak();
    let headers: &'static [_] = vec![("location", location)].leak();
    let server = Server::answering(307, headers, "").await;
    let Outcome::Retry { reason, .. } = outcome(&settings(server.url)).await else { panic!() };
    assert!(
        reason.starts_with(&format!("307 Temporary Redirect to {location}: redirects are not")),
        "{reason}"
    );
    assert!(elsewhere.seen.try_recv().is_err());
}

#[tokio::test]
async fn a_slow_server_is_a_time_out() {
    let address = raw_server(b"", true).await;
    let mut settings = settings(format!("http://{address}/"));
    settings.timeout = Duration::from_millis(100);
    assert_eq!(outcome(&settings).await, reason::retry("timed out after 100ms"));
}

#[tokio::test]
async fn an_answer_without_end_is_an_answer_all_the_same() {
    let address = raw_server(b"HTTP/1.1 500 X\r\ncontent-length: 100\r\n\r\nhalf", true).await;
    let mut settings = settings(format!("http://{address}/"));
    settings.timeout = Duration::from_millis(300);
    assert_eq!(outcome(&settings).await, reason::retry("500 Internal Server Error: half"));
}

#[tokio::test]
async fn a_connection_closed_midway_is_tried_again() {
    for answer in [&b""[..], b"HTTP/1.1 200 O"] {
        let address = raw_server(answer, false).await;
        let Outcome::Retry { reason, .. } = outcome(&settings(format!("http://{address}/"))).await else {
            panic!()
        };
        assert!(reason.contains("connection closed before message completed"), "{reason}");
    }
    let address = raw_server(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf", false).await;
    assert_eq!(outcome(&settings(format!("http://{address}/"))).await, Outcome::Done);
}

#[tokio::test]
async fn nobody_there_is_tried_again() {
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let Outcome::Retry { reason, .. } = outcome(&settings(format!("http://{address}/"))).await else {
        panic!()
    };
    assert!(reason.contains("Connection refused"), "{reason}");
}

#[tokio::test]
async fn a_huge_answer_is_cut_and_costs_only_its_connection() {
    let huge = || {
        let mut response = Response::new(Full::new(Bytes::from(vec![b'x'; 50_000_000])));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        response
    };
    let server = Server::start(huge).await;
    let poster = Poster::new(&settings(server.url)).unwrap();
    for _ in 0..2 {
        let Outcome::Permanent { reason } = poster.handle(&delivery()).await else { panic!() };
        assert_eq!(reason.len(), "400 Bad Request: ".len() + reason::LIMIT);
    }
    assert_eq!(server.connections.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_connection_is_kept() {
    let server = Server::answering(200, &[], "some words").await;
    let poster = Poster::new(&settings(server.url)).unwrap();
    for _ in 0..20 {
        assert_eq!(poster.handle(&delivery()).await, Outcome::Done);
    }
    assert_eq!(server.connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_connection_closed_while_idle_costs_no_message() {
    // Closes behind each answer, and does not say so before.
    let address = raw_server(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false).await;
    let poster = Poster::new(&settings(format!("http://{address}/"))).unwrap();
    for _ in 0..20 {
        assert_eq!(poster.handle(&delivery()).await, Outcome::Done);
        // The end is there before the next request, as it is after idleness.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_server_that_drips_its_answer_is_cut() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        assert_ne!(stream.read_buf(&mut Vec::new()).await.unwrap(), 0);
        // Never a whole head, and never silent for long.
        for byte in b"HTTP/1.1 200 OK\r\nx-slow: ".iter().chain(std::iter::repeat(&b'x')) {
            if stream.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let mut settings = settings(format!("http://{address}/"));
    settings.timeout = Duration::from_millis(200);
    assert_eq!(outcome(&settings).await, reason::retry("timed out after 200ms"));
}

#[tokio::test]
async fn an_answer_that_is_no_http_is_tried_again() {
    let address = raw_server(b"\x16\x03\x01 what?\r\n\r\n", false).await;
    let outcome = outcome(&settings(format!("http://{address}/"))).await;
    assert!(matches!(outcome, Outcome::Retry { after: None, .. }), "{outcome:?}");
}

#[tokio::test]
async fn tls_trusts_the_named_authority_and_no_other() {
    let ours = Authority::new();
    let address = ours.serve(None).await;
    let other = Authority::new();
    let mut settings = settings(format!("https://localhost:{}/", address.port()));
    settings.ca_file = Some(ours.file());
    assert_eq!(outcome(&settings).await, Outcome::Done);
    // The certificate is for `localhost`.
    settings.url = format!("https://{address}/");
    let Outcome::Retry { reason, .. } = outcome(&settings).await else { panic!() };
    assert!(reason.contains("certificate verify failed"), "{reason}");
    settings.url = format!("https://localhost:{}/", address.port());
    for ca_file in [None, Some(other.file())] {
        settings.ca_file = ca_file;
        let Outcome::Retry { reason, .. } = outcome(&settings).await else { panic!() };
        assert!(reason.contains("certificate verify failed"), "{reason}");
    }
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_a_server_that_asks() {
    let ours = Authority::new();
    let address = ours.serve(Some(&ours)).await;
    let mut settings = settings(format!("https://localhost:{}/", address.port()));
    settings.ca_file = Some(ours.file());
    assert!(matches!(outcome(&settings).await, Outcome::Retry { .. }));
    let (cert, key) = ours.client_files();
    settings.client_cert = Some(cert);
    settings.client_key = Some(key);
    assert_eq!(outcome(&settings).await, Outcome::Done);
}

#[test]
fn what_is_wrong_with_files_is_found_at_start() {
    let ours = Authority::new();
    let other = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    let good = settings("https://localhost/".into());
    let (cert, key) = ours.client_files();
    for (settings, says) in [
        (HttpHandler { ca_file: Some(missing.clone()), ..good.clone() }, "`ca_file` "),
        (HttpHandler { ca_file: Some(empty.clone()), ..good.clone() }, "holds no certificate in PEM"),
        (HttpHandler { ca_file: Some(key.clone()), ..good.clone() }, "holds no certificate in PEM"),
        (HttpHandler { bearer_file: Some(missing.clone()), ..good.clone() }, "cannot be read: No such file"),
        (HttpHandler { bearer_file: Some(empty), ..good.clone() }, "does not hold one token"),
        (
            HttpHandler { client_cert: Some(cert.clone()), ..good.clone() },
            "`client_cert` needs `client_key` too",
        ),
        (HttpHandler { client_key: Some(key), ..good.clone() }, "`client_key` needs `client_cert` too"),
        (
            HttpHandler { client_cert: Some(cert), client_key: Some(other.client_files().1), ..good.clone() },
            "`client_key` cannot be used",
        ),
        (
            HttpHandler {
                bearer_file: Some(missing),
                headers: [("Authorization".into(), "Basic x".into())].into(),
                ..good
            },
            "exclude each other",
        ),
    ] {
        let error = refused(&settings);
        assert!(error.contains(says), "{error}");
    }
}
