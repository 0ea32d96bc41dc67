//! Requests to a daemon, byte by byte, so that a test may send whatever it likes.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// A page for people, with that on it.
    pub fn is_page(&self, says: &str) -> bool {
        self.header("content-type").is_some_and(|kind| kind.starts_with("text/html"))
            && self.body.starts_with("<!DOCTYPE html>")
            && self.body.contains(says)
    }

    /// A problem of that status, with that in its detail.
    pub fn is_problem(&self, status: u16, detail: &str) -> bool {
        self.status == status
            && self.header("content-type") == Some("application/problem+json")
            && self.json()["status"] == status
            && self.json()["detail"].as_str().is_some_and(|text| text.contains(detail))
    }
}

/// One request, to be sent.
pub struct Request<'a> {
    to: SocketAddr,
    line: &'a str,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// `request(daemon.listen, "GET /api/agents")`.
pub fn request(to: SocketAddr, line: &str) -> Request<'_> {
    let headers = vec![("host".to_owned(), to.to_string()), ("connection".to_owned(), "close".to_owned())];
    Request { to, line, headers, body: Vec::new() }
}

impl Request<'_> {
    /// Instead of one of that name, if there is one.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn json(self, body: &str) -> Self {
        self.header("content-type", "application/json").body(body)
    }

    pub fn form(self, body: &str) -> Self {
        self.header("content-type", "application/x-www-form-urlencoded").body(body)
    }

    pub fn body(mut self, body: &str) -> Self {
        self.body = body.as_bytes().to_vec();
        self.header("content-length", &body.len().to_string())
    }

    pub async fn send(self) -> Answer {
        let mut stream = TcpStream::connect(self.to).await.expect("it listens");
        let headers: Vec<String> =
            self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let headers = headers.concat();
        let post = self.line.starts_with("POST") && self.body.is_empty();
        let empty = if post { "content-length: 0\r\n" } else { "" };
        let head = format!("{} HTTP/1.1\r\n{headers}{empty}\r\n", self.line);
        // It may answer, and close, before all is said.
        let _ = stream.write_all(head.as_bytes()).await;
        let _ = stream.write_all(&self.body).await;
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes).await;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        let body = if is_chunked { unchunk(body) } else { body.to_owned() };
        Answer { status, head: head.to_owned(), body }
    }
}

fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        whole.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    whole
}
