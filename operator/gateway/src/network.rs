//! Serves sandboxes that come over the network: one listener for all pods of a node.
//!
//! Whose a connection is, is said by the first valid token on it, and stays so. Until then it has a place among the unproven
//! ones, for a bounded time, and no address has many of those: whoever has no token takes nothing from those who do.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::id::SandboxId;
use crate::limits::Limits;
use crate::serve::{Asker, NotLet, Place, Shared, serve};

/// The pause after an accept failed (too many open files, for example).
const PAUSE: Duration = Duration::from_millis(100);

/// A connection in which nothing moves is looked at after this time, and then as often, this many times.
const KEEP_ALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);

/// How long sent bytes may stay without a sign of the other end.
const UNANSWERED_MS: u32 = 60_000;

/// How many there are of each; what is not there any more takes no room.
struct Counts<K>(Mutex<HashMap<K, usize>>);

/// One of what is counted, until it is dropped.
struct Counted<K: Copy + Eq + Hash> {
    counts: Arc<Counts<K>>,
    key: K,
}

impl<K: Copy + Eq + Hash> Counts<K> {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(HashMap::new())))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more, unless there are as many as there may be.
    fn one_more(self: &Arc<Self>, key: K, most: usize) -> Option<Counted<K>> {
        let mut counts = self.lock();
        let count = counts.entry(key).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Counted { counts: self.clone(), key })
    }
}

impl<K: Copy + Eq + Hash> Drop for Counted<K> {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

/// The place of a connection that has proven nothing yet.
struct Unproven {
    _of_all: OwnedSemaphorePermit,
    _of_address: Counted<IpAddr>,
}

/// A connection of the network, and whose it turned out to be.
pub(crate) struct Visitor {
    sandboxes: Arc<Counts<SandboxId>>,
    unproven: Mutex<Option<Unproven>>,
    known: OnceLock<(SandboxId, Place)>,
    proven: Notify,
}

impl Visitor {
    /// The connection is this sandbox's, whose token was just verified.
    pub(crate) fn is_of(&self, sandbox: SandboxId, limits: &Limits) -> Result<Place, NotLet> {
        if self.known.get().is_none() {
            let place = self.sandboxes.one_more(sandbox, limits.connections).ok_or(NotLet::Full)?;
            // Requests of one connection come one after the other: nobody else sets it meanwhile.
            let _ = self.known.set((sandbox, Arc::new(place)));
            self.unproven.lock().unwrap_or_else(PoisonError::into_inner).take();
            self.proven.notify_one();
        }
        match self.known.get() {
            Some((known, place)) if *known == sandbox => Ok(place.clone()),
            _ => Err(NotLet::Unauthorized),
        }
    }

    /// Returns when the time for proving is over without a proof.
    async fn overdue(&self, within: Duration) {
        if timeout(within, self.proven.notified()).await.is_ok() {
            std::future::pending::<()>().await;
        }
    }
}

/// Accepts connections until `cut`.
pub(crate) async fn accept_network(shared: Arc<Shared>, listener: TcpListener, cut: CancellationToken) {
    let places = Arc::new(Semaphore::new(shared.limits.unproven));
    let (addresses, sandboxes) = (Counts::new(), Counts::new());
    loop {
        let Some((stream, peer, place)) = cut.run_until_cancelled(next(&shared, &listener, &places)).await else {
            return;
        };
        let Some(of_address) = addresses.one_more(peer.ip(), shared.limits.unproven_of_address) else {
            shared.metrics.unproven_refused.inc();
            continue;
        };
        if let Err(error) = watch(&stream) {
            tracing::debug!(%error, "a connection's dead end will be noticed late");
        }
        let unproven = Unproven { _of_all: place, _of_address: of_address };
        let visitor = Arc::new(Visitor {
            sandboxes: sandboxes.clone(),
            unproven: Mutex::new(Some(unproven)),
            known: OnceLock::new(),
            proven: Notify::new(),
        });
        tokio::spawn(serve_visitor(shared.clone(), stream, visitor, cut.clone()));
    }
}

async fn next(
    shared: &Shared,
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    if places.available_permits() == 0 {
        shared.metrics.unproven_at_bound.inc();
    }
    loop {
        // The semaphore is never closed, so there is always a place in the end.
        let Ok(place) = places.clone().acquire_owned().await else { continue };
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer, place),
            Err(error) => {
                shared.metrics.accept_errors.inc();
                tracing::warn!(%error, "cannot accept a connection of a sandbox");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn serve_visitor(shared: Arc<Shared>, stream: TcpStream, visitor: Arc<Visitor>, cut: CancellationToken) {
    let within = shared.limits.prove;
    let metrics = shared.metrics.clone();
    tokio::select! {
        () = serve(shared, Asker::Network(visitor.clone()), stream, cut) => {}
        () = visitor.overdue(within) => {
            metrics.unproven_too_long.inc();
        }
    }
}

/// A pod that is gone without a word is noticed.
fn watch(stream: &TcpStream) -> std::io::Result<()> {
    let (idle, interval, count) = KEEP_ALIVE;
    let socket = stream.as_fd();
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, idle)?;
    sockopt::set_tcp_keepintvl(socket, interval)?;
    sockopt::set_tcp_keepcnt(socket, count)?;
    sockopt::set_tcp_user_timeout(socket, UNANSWERED_MS)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::Counts;

    proptest! {
        #[test]
        fn nobody_has_more_than_the_bound_and_nothing_is_left(
            steps in prop::collection::vec((0u8..4, any::<bool>()), 0..100),
            most in 1usize..5,
        ) {
            let counts = Counts::new();
            let mut held = Vec::new();
            for (key, more) in steps {
                if more {
                    let had = held.iter().filter(|(of, _)| *of == key).count();
                    let got = counts.one_more(key, most);
                    prop_assert_eq!(got.is_some(), had < most);
                    held.extend(got.map(|got| (key, got)));
                } else if let Some(at) = held.iter().position(|(of, _)| *of == key) {
                    held.remove(at);
                }
            }
            drop(held);
            prop_assert!(counts.lock().is_empty());
            prop_assert_eq!(Arc::strong_count(&counts), 1);
        }
    }
}
