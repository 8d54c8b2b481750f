//! The HTTP server: HTTP/1.1 with keep-alive on TCP, every connection bounded in what it may hold and for how long.

use std::{error::Error as _, io, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_io_timeout::TimeoutStream;

use crate::{metrics::Metrics, state::ApiState};

/// Pause after a connection could not be accepted (too many open files): it stays in the kernel's queue meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a server allows its clients.
#[derive(Debug, Clone)]
pub struct ServeLimits {
    /// Connections at once: 16,384. At the bound further ones wait in the kernel's queue.
    pub max_connections: usize,
    /// For how long a client may read nothing while there is something to read: 30 s. Then its connection is closed; its turn
    /// goes on.
    pub write_timeout: Duration,
    /// For how long a connection may be without a complete request head, between requests too: 75 s. Then it is closed.
    pub idle_timeout: Duration,
    /// For how long answers in progress may go on once the server shuts down: 30 s. Then their connections are closed.
    pub shutdown_grace: Duration,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            max_connections: 16_384,
            write_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            shutdown_grace: Duration::from_secs(30),
        }
    }
}

/// Serves `router` on `listener` until `shutdown` completes; then accepts nothing more, lets answers in progress end within
/// [`ServeLimits::shutdown_grace`] (streams that follow a session end at once, to be resumed elsewhere), and returns.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    state: &ApiState,
    limits: ServeLimits,
    shutdown: impl Future<Output = ()> + Send,
) {
    let metrics = &state.metrics;
    let places = Arc::new(Semaphore::new(limits.max_connections));
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let next = accept(&listener, &places, metrics);
        let (stream, place) = tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = next => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        let connection =
            Connection { place, metrics: metrics.clone(), limits: limits.clone(), closing: state.closing.subscribe() };
        connections.spawn(connection.run(stream, router.clone()));
    }
    drop(listener);
    state.closing.send_replace(true);
    let rest = async { while connections.join_next().await.is_some() {} };
    if timeout(limits.shutdown_grace, rest).await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "answers were still in progress at the end of the grace period"
        );
    }
    connections.shutdown().await;
}

/// The next connection and its place. Safe to cancel: a connection that was not taken stays in the kernel's queue.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
    metrics: &Metrics,
) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    let place = if let Ok(place) = places.clone().try_acquire_owned() {
        Some(place)
    } else {
        metrics.connections_at_bound.inc();
        tracing::warn!("the bound on connections is reached: further ones wait");
        places.clone().acquire_owned().await.ok()
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            Err(error) => {
                metrics.accept_errors.inc();
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

struct Connection {
    place: Option<OwnedSemaphorePermit>,
    metrics: Metrics,
    limits: ServeLimits,
    closing: watch::Receiver<bool>,
}

impl Connection {
    async fn run(mut self, stream: TcpStream, router: Router) {
        self.metrics.connections.inc();
        let metrics = self.metrics.clone();
        let _open = Open(metrics);
        let _place = self.place.take();
        if let Err(error) = self.prepare(&stream) {
            tracing::debug!(%error, "a connection's options could not be set");
        }
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(self.limits.write_timeout));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.idle_timeout)
            .keep_alive(true)
            .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(router));
        let mut connection = std::pin::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = closed(&mut self.closing) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            if timed_out(&error) {
                self.metrics.connections_cut_off.inc();
                tracing::info!("a client was cut off: it did not read");
            } else {
                tracing::debug!(%error, "a connection ended");
            }
        }
    }

    /// Small writes go out at once; a peer that does not acknowledge, because it is gone or reads nothing, is given up by the
    /// kernel after the same time as by [`TimeoutStream`].
    fn prepare(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let milliseconds = u32::try_from(self.limits.write_timeout.as_millis()).unwrap_or(u32::MAX);
        rustix::net::sockopt::set_tcp_user_timeout(stream, milliseconds)?;
        Ok(())
    }
}

/// Completes when the server shuts down.
pub(crate) async fn closed(closing: &mut watch::Receiver<bool>) {
    // An error means that there is nobody left who could say it: the server is gone.
    let _ = closing.wait_for(|closing| *closing).await;
}

struct Open(Metrics);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}

/// Whether a connection ended because its client did not read. A request head that did not come in time has no I/O error
/// behind it.
fn timed_out(error: &hyper::Error) -> bool {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.kind() == io::ErrorKind::TimedOut;
        }
        source = error.source();
    }
    false
}
