//! Every bound of the gateway, in one place. What happens at each is said where it stands.

use std::time::Duration;

/// Bounds of the gateway. The defaults are for production; tests make some smaller.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections of one sandbox. At the bound nothing is accepted: further ones wait in the
    /// kernel's backlog until one closes.
    pub connections: usize,
    /// Running model calls of one sandbox. At the bound: 529, which Claude retries.
    pub model_calls: usize,
    /// Open tunnels of one sandbox. At the bound: 503.
    pub tunnels: usize,
    /// Running name lookups of one sandbox. At the bound: 503.
    pub lookups: usize,
    /// Running name lookups of all sandboxes. At the bound a lookup waits, within its timeout.
    pub all_lookups: usize,
    /// Bytes of a model request's body. At the bound: 413.
    pub request_body: u64,
    /// Bytes of a model request that the rehearsal reads. At the bound: 413.
    pub rehearsal_body: usize,
    /// Bytes of the model's error answer that are passed on. At the bound: cut off there.
    pub error_body: usize,
    /// How long a connection may take to send a request head, or idle between requests. At the
    /// bound it is closed.
    pub head: Duration,
    /// Establishing a connection to the model. At the bound: 502.
    pub upstream_connect: Duration,
    /// Silence of the model, before the head or inside the answer. At the bound: 504, or the
    /// answer is cut.
    pub upstream_silence: Duration,
    /// One name lookup, waiting included. At the bound: 504.
    pub lookup: Duration,
    /// Establishing a tunnel's connection, over all addresses of the host. At the bound: 504.
    pub tunnel_connect: Duration,
    /// A tunnel in which nothing moves. At the bound it is closed.
    pub tunnel_idle: Duration,
    /// Addresses of a host that are tried. Further ones are checked and not tried.
    pub addresses: usize,
    /// Connections over the network that have not shown a valid token yet, of all. At the bound nothing more is accepted: further
    /// ones wait in the kernel's backlog.
    pub unproven: usize,
    /// ... and from one address. At the bound: closed at once.
    pub unproven_of_address: usize,
    /// How long a connection over the network may take to show a valid token. At the bound it is closed.
    pub prove: Duration,
    /// Refused hosts per minute and binding that the session's log is told. Further ones are only
    /// counted.
    pub refusals_per_minute: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            model_calls: 64,
            tunnels: 128,
            lookups: 8,
            all_lookups: 64,
            request_body: 64 * 1024 * 1024,
            rehearsal_body: 4 * 1024 * 1024,
            error_body: 256 * 1024,
            head: Duration::from_mins(10),
            upstream_connect: Duration::from_secs(10),
            upstream_silence: Duration::from_mins(10),
            lookup: Duration::from_secs(5),
            tunnel_connect: Duration::from_secs(10),
            tunnel_idle: Duration::from_mins(10),
            addresses: 8,
            unproven: 1024,
            unproven_of_address: 64,
            prove: Duration::from_secs(10),
            refusals_per_minute: 20,
        }
    }
}
