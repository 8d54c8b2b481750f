//! Names to addresses, through a trait so that policy can be proven with any answer.

use std::io;
use std::net::{IpAddr, ToSocketAddrs as _};

use futures::future::BoxFuture;

/// Asks for the addresses of a host name.
pub trait Resolve: Send + Sync + 'static {
    /// Every address of the name. The caller bounds time and number of lookups.
    fn resolve(&self, name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// The machine's own resolver (`getaddrinfo`: hosts file, then DNS).
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            tokio::task::spawn_blocking(move || {
                (name.as_str(), 0_u16).to_socket_addrs().map(|found| found.map(|address| address.ip()).collect())
            })
            .await
            .map_err(io::Error::other)?
        })
    }
}
