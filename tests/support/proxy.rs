//! A TCP proxy that breaks the network between a client and a server.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};

use super::port;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    Requests,
    /// From the server to the client.
    Answers,
}

/// What is wrong with the network right now.
#[derive(Clone, Default)]
struct Faults {
    /// Connections of an earlier era are cut.
    era: u64,
    refusing: bool,
    swallowing: Option<Direction>,
    delay: Duration,
}

/// Whose answer to lose, once.
#[derive(Default)]
struct Ambush {
    pattern: Mutex<Option<Vec<u8>>>,
    sprung: Notify,
}

pub struct Proxy {
    address: SocketAddr,
    faults: watch::Sender<Faults>,
    ambush: Arc<Ambush>,
}

impl Proxy {
    /// In front of a server on 127.0.0.1.
    pub async fn to(upstream: u16) -> Self {
        Self::at(port::free(), upstream).await
    }

    /// The same, on a port that clients know already.
    pub async fn at(port: u16, upstream: u16) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listener = TcpListener::bind(address).await.unwrap();
        let (faults, seen) = watch::channel(Faults::default());
        let ambush = Arc::new(Ambush::default());
        tokio::spawn(accept(listener, upstream, seen, Arc::clone(&ambush)));
        Self { address, faults, ambush }
    }

    /// Where clients connect to.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The same URL by way of this proxy.
    pub fn reroute(&self, url: &str) -> String {
        let (before, after) = url.split_once("127.0.0.1:").expect("a URL of a test server");
        let (_, database) = after.split_once('/').expect("a URL with a database");
        format!("{before}127.0.0.1:{}/{database}", self.port())
    }

    /// Cuts all connections that there are; new ones are welcome.
    pub fn cut(&self) {
        self.faults.send_modify(|faults| faults.era += 1);
    }

    /// Closes every new connection at once, until `heal`.
    pub fn refuse(&self) {
        self.faults.send_modify(|faults| faults.refusing = true);
    }

    /// Nothing passes in that direction any more, on old and new connections, and nobody is told: until `heal`, after
    /// which it passes, or `cut`, which loses it.
    pub fn swallow(&self, direction: Direction) {
        self.faults.send_modify(|faults| faults.swallowing = Some(direction));
    }

    /// Whatever passes takes so much longer, until `heal`.
    pub fn slow(&self, delay: Duration) {
        self.faults.send_modify(|faults| faults.delay = delay);
    }

    /// Ends `refuse`, `swallow` and `slow`.
    pub fn heal(&self) {
        self.faults.send_modify(|faults| *faults = Faults { era: faults.era, ..Faults::default() });
    }

    /// The next request that contains the pattern reaches the server, and is answered; the answer is lost and the
    /// connection cut. Waits until that has happened. The text of a prepared statement passes when it is prepared, not
    /// when it is executed: its parameters are what to look for then.
    pub fn lose_answer_to<P: Into<Vec<u8>>>(&self, pattern: P) -> impl Future<Output = ()> + use<P> {
        *self.ambush.pattern.lock().unwrap() = Some(pattern.into());
        let ambush = Arc::clone(&self.ambush);
        async move { ambush.sprung.notified().await }
    }
}

async fn accept(
    listener: TcpListener,
    upstream: u16,
    mut faults: watch::Receiver<Faults>,
    ambush: Arc<Ambush>,
) {
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let client = accepted.unwrap().0;
                if !faults.borrow().refusing {
                    tokio::spawn(carry(client, upstream, faults.clone(), Arc::clone(&ambush)));
                }
            }
            () = gone(&mut faults) => return,
        }
    }
}

/// Returns when the proxy has been dropped.
async fn gone(faults: &mut watch::Receiver<Faults>) {
    while faults.changed().await.is_ok() {}
}

async fn carry(client: TcpStream, upstream: u16, faults: watch::Receiver<Faults>, ambush: Arc<Ambush>) {
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, upstream)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let doomed = watch::Sender::new(false);
    let era = faults.borrow().era;
    let mut cut = faults.clone();
    let requests = async {
        let watched = |bytes: &[u8]| {
            let mut pattern = ambush.pattern.lock().unwrap();
            if pattern.as_ref().is_some_and(|pattern| contains(bytes, pattern)) {
                *pattern = None;
                doomed.send_replace(true);
            }
            true
        };
        pump(from_client, to_server, Direction::Requests, faults.clone(), watched).await;
    };
    let answers = async {
        pump(from_server, to_client, Direction::Answers, faults.clone(), |_| !*doomed.borrow()).await;
        if *doomed.borrow() {
            ambush.sprung.notify_one();
        }
    };
    // Whichever ends first takes the connection with it. The cut is looked at first: nothing passes after it, even if
    // the network is healed at once.
    tokio::select! {
        biased;
        _ = cut.wait_for(|faults| faults.era != era) => {}
        () = requests => {}
        () = answers => {}
    }
}

/// Passes bytes on until one side closes or `pass` says no to some, which are lost.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    direction: Direction,
    mut faults: watch::Receiver<Faults>,
    pass: impl Fn(&[u8]) -> bool,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if faults.wait_for(|faults| faults.swallowing != Some(direction)).await.is_err()
            || !pass(&buffer[..count])
        {
            return;
        }
        // Not a wait: the slowness that was asked for.
        let delay = faults.borrow().delay;
        tokio::time::sleep(delay).await;
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

fn contains(bytes: &[u8], pattern: &[u8]) -> bool {
    bytes.windows(pattern.len()).any(|window| window == pattern)
}
