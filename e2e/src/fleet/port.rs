//! Ports for servers whose address has to be known before they listen, and again after they were killed.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process,
    sync::atomic::{AtomicU16, Ordering},
};

/// Below what the kernel gives to outgoing connections (32768 and up, `ip_local_port_range`): one of those takes a port of that
/// range while the server that it was meant for is not there.
const FIRST: u16 = 11_000;
const COUNT: u16 = 19_000;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// A port that nobody listens at, and that this process gives to nobody else soon.
///
/// # Panics
/// When none of all is free.
pub fn free_port() -> SocketAddr {
    // Programs that run side by side begin far from each other.
    let start = process::id().wrapping_mul(2_654_435_761) % u32::from(COUNT);
    (0..COUNT)
        .find_map(|_| {
            let next = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
            let offset = u16::try_from((start + next) % u32::from(COUNT)).ok()?;
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, FIRST + offset));
            TcpListener::bind(address).is_ok().then_some(address)
        })
        .expect("a free port")
}
