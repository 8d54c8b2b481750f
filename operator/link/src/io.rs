//! The sockets: options that both sides set.

use std::io;

use tokio::net::TcpStream;

use crate::limits::{PING_INTERVAL, PING_TIMEOUT};

/// Small writes go out at once; a peer that acknowledges nothing is given up by the kernel as soon as by the pings.
pub(crate) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let wait = PING_INTERVAL + PING_TIMEOUT;
    rustix::net::sockopt::set_tcp_user_timeout(stream, u32::try_from(wait.as_millis()).unwrap_or(u32::MAX))?;
    Ok(())
}
