//! Where a sandbox's bridge comes in: a socket of its folder, or what the port of all bridges hands over.

use std::{io, path::PathBuf, time::Duration};

use ash_sandbox::WatchedProcess;
use bytes::BytesMut;
use tokio::{
    net::{TcpStream, UnixListener, UnixStream},
    sync::mpsc,
    time::timeout,
};

use super::Proven;
use crate::peer;

/// A connection that came.
pub(crate) enum Arrived {
    Unix(UnixStream),
    Tcp(TcpStream, BytesMut),
}

/// The connections of one bridge.
pub(crate) enum Dialled {
    /// Over the socket of a process's folder.
    Unix {
        listener: UnixListener,
        /// Who served the host before this one; a bridge that is dead does not come back.
        peer: Option<WatchedProcess>,
    },
    /// Over the network.
    Pod(mpsc::Receiver<Proven>),
}

impl Dialled {
    /// A listener in the folder of a sandbox.
    pub(crate) fn at(listener: UnixListener, folder: &std::path::Path) -> Self {
        Self::Unix { listener, peer: peer::recall(folder) }
    }

    /// The next connection; `None` where the bridge is dead, or stayed away for so long.
    pub(crate) async fn next(&mut self, away: Duration, folder: Option<PathBuf>) -> Option<io::Result<Arrived>> {
        match self {
            Self::Unix { listener, peer } => {
                let accepted = tokio::select! {
                    biased;
                    accepted = timeout(away, listener.accept()) => accepted.ok()?,
                    () = peer::dead(peer.as_ref()) => return None,
                };
                Some(accepted.map(|(stream, _)| {
                    *peer = peer::of(&stream);
                    if let (Some(peer), Some(folder)) = (peer, folder) {
                        peer::remember(peer, &folder);
                    }
                    Arrived::Unix(stream)
                }))
            }
            Self::Pod(connections) => {
                let Proven { stream, received } = timeout(away, connections.recv()).await.ok()??;
                Some(Ok(Arrived::Tcp(stream, received)))
            }
        }
    }

    /// Completes when the bridge has dialled anew: what it had before is dead, whatever the system knows of it. Safe to cancel.
    pub(crate) async fn newer(&mut self) -> Arrived {
        match self {
            // A Unix socket's end is seen at once.
            Self::Unix { .. } => std::future::pending().await,
            Self::Pod(connections) => match connections.recv().await {
                Some(Proven { stream, received }) => Arrived::Tcp(stream, received),
                None => std::future::pending().await,
            },
        }
    }
}
