//! Connections: so many and no more, none for long without a request, so that whoever connects takes nothing from the
//! daemon's own work.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Who comes when all are taken waits until one goes.
const MOST_CONNECTIONS: usize = 1_024;

/// Within this the head of a request has to come, the first and every next one.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);

/// A client that reads nothing of its answer for so long is gone.
const READ_PATIENCE: Duration = Duration::from_secs(30);

const MOST_HEADERS: usize = 100;
const MOST_HEADER_BYTES: usize = 32 << 10;

/// After an accept that failed, as it does when the process has no file left.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// From where a request comes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) IpAddr);

/// Until it is dropped; connections that are open then end with the process.
pub(super) async fn serve(listener: TcpListener, routes: Router) {
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_headers(MOST_HEADERS)
        .max_header_size(MOST_HEADER_BYTES);
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!("a connection is not accepted: {error}");
                tokio::time::sleep(TRY_AGAIN_AFTER).await;
                continue;
            }
        };
        let patience = u32::try_from(READ_PATIENCE.as_millis()).unwrap_or(u32::MAX);
        // Kept for what has been sent, and for a window that stays closed.
        let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, patience);
        let _ = stream.set_nodelay(true);
        let routes = routes.clone().layer(Extension(Peer(peer.ip())));
        let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
        tokio::spawn(async move {
            // However it ends, it was the client's connection.
            let _ = connection.await;
            drop(place);
        });
    }
}
