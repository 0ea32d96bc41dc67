//! `outboxd health`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Uri;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::global::{Global, connect_to_look};
use super::output;
use crate::config::http::LISTEN;
use crate::failure::{self, Exit, Failure};
use crate::pg::agents;

/// An answer that is longer is none of ours.
const ANSWER_LIMIT: usize = 1 << 20;

/// Ask a daemon of this machine whether it is ready: exit 0 if it is, 1 if not
///
/// Asks over HTTP, so that it says what a load balancer or Kubernetes would see. Without options it asks at `[http] listen`, or at
/// 127.0.0.1:9464. Needs neither database nor broker, but for --name.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  outboxd health\n  outboxd health --name relay-1\n  outboxd health --url http://127.0.0.1:9465 --json"
)]
pub struct Options {
    /// The agent of that name, wherever it is: its address is in the database
    #[arg(long, conflicts_with = "url")]
    name: Option<String>,
    /// Where to ask, without a path
    #[arg(long, value_name = "URL")]
    url: Option<Uri>,
    /// How long an answer may take
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// One object: the answer of /readyz
    #[arg(long)]
    json: bool,
}

impl Options {
    pub async fn run(&self, global: &Global) -> anyhow::Result<Exit> {
        let base = self.address(global).await?;
        let answer = timeout(self.timeout, ask(&base, self.json)).await;
        let answer = answer.unwrap_or_else(|_| {
            anyhow::bail!("no answer within {}", humantime::format_duration(self.timeout))
        });
        let (is_ready, text) = match answer {
            Ok(answer) => answer,
            Err(error) => (false, unheard(&base, &error, self.json)),
        };
        output::line(&text)?;
        Ok(if is_ready { Exit::Done } else { Exit::Failed })
    }

    async fn address(&self, global: &Global) -> anyhow::Result<String> {
        if let Some(url) = &self.url {
            let is_plain = url.scheme_str() == Some("http") && url.host().is_some();
            return if is_plain {
                Ok(url.to_string().trim_end_matches('/').to_owned())
            } else {
                Err(Failure::usage("--url must be like http://127.0.0.1:9464").into())
            };
        }
        let config = global.load()?.config;
        let Some(name) = &self.name else {
            return Ok(config.http.listen.map_or_else(|| format!("http://{LISTEN}"), local));
        };
        let client = connect_to_look(&config, "health").await?;
        let of_that_name = agents::list(&client).await?.into_iter().filter(|agent| agent.name == *name);
        let newest = of_that_name.max_by_key(|agent| agent.last_heartbeat_at);
        newest.and_then(|agent| agent.http).ok_or_else(|| {
            Failure::not_found(format!(
                "no agent `{name}` that answers HTTP; `outboxd agents list` shows those there are"
            ))
            .into()
        })
    }
}

/// A daemon that listens everywhere is asked on loopback.
fn local(listen: SocketAddr) -> String {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    format!("http://{}", SocketAddr::new(ip, listen.port()))
}

/// Whether it is ready, and its own words.
async fn ask(base: &str, as_json: bool) -> anyhow::Result<(bool, String)> {
    let path = if as_json { "/readyz" } else { "/readyz?verbose" };
    let url: Uri = format!("{base}{path}").parse()?;
    let client: Client<HttpConnector, Empty<Bytes>> =
        Client::builder(TokioExecutor::new()).build(HttpConnector::new());
    let response = client.get(url).await?;
    let is_ready = response.status().is_success();
    let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!(error)).context("the answer breaks off")?.to_bytes();
    let text = String::from_utf8_lossy(&body);
    if as_json {
        let document: Value =
            serde_json::from_str(&text).context("the answer is not JSON: not an outboxd?")?;
        return Ok((is_ready, serde_json::to_string_pretty(&document)?));
    }
    let shown: Vec<String> = text.lines().map(output::printable).collect();
    Ok((is_ready, shown.join("\n")))
}

/// Nobody there is not ready either, in the words that are asked for.
fn unheard(base: &str, error: &anyhow::Error, as_json: bool) -> String {
    let problem = format!("{base}: {}", failure::words(error.chain()));
    if as_json {
        let document = json!({ "status": "not ready", "checks": { "answer": problem } });
        return format!("{document:#}");
    }
    format!(
        "[-] answer: {problem}\nIs it running? Another address: --url, or --name to have it from the database."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_listens_everywhere_is_asked_on_loopback() {
        for (listen, asked) in [
            ("0.0.0.0:80", "http://127.0.0.1:80"),
            ("[::]:80", "http://[::1]:80"),
            ("10.0.0.7:9464", "http://10.0.0.7:9464"),
        ] {
            assert_eq!(local(listen.parse().unwrap()), asked);
        }
    }
}
