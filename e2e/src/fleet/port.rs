//! Ports for servers whose address has to be known before they listen, and again after they were killed.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
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
    free_port_of(Ipv4Addr::LOCALHOST.into())
}

/// The same, of another address of this machine.
///
/// # Panics
/// When none of all is free.
pub fn free_port_of(address: IpAddr) -> SocketAddr {
    // Programs that run side by side begin far from each other.
    let start = process::id().wrapping_mul(2_654_435_761) % u32::from(COUNT);
    (0..COUNT)
        .find_map(|_| {
            let next = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
            let offset = u16::try_from((start + next) % u32::from(COUNT)).ok()?;
            let address = SocketAddr::from((address, FIRST + offset));
            // A listener of our own would tell as well, and could be held for a while by a program that is being started beside this.
            TcpStream::connect(address).is_err().then_some(address)
        })
        .expect("a free port")
}
