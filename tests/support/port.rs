//! Ports for services that a test may stop and start again.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the range that the system takes ports from for outgoing connections: one of those could take the port of a
/// service that is down, or even connect to itself.
const FIRST: u16 = 10_000;
const COUNT: u16 = 20_000;

/// A free port on loopback, handed out once per run.
pub fn free() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    static START: std::sync::LazyLock<u16> = std::sync::LazyLock::new(|| fastrand::u16(..COUNT));
    loop {
        let offset = (u32::from(*START) + u32::from(NEXT.fetch_add(1, Ordering::Relaxed))) % u32::from(COUNT);
        let port = FIRST + u16::try_from(offset).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
