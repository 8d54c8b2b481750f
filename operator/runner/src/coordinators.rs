//! The coordinators of a runner: the one that answers is asked, the next one where it does not.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ash_core::fleet::RunnerId;
use ash_link::{Answer, Body, LinkError, Peer, SecretFile};
use ash_protocol::fleet::{INCARNATION_HEADER, RUNNER_HEADER};
use bytes::Bytes;
use http::Response;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::Notify;

/// The status of a coordinator that does not know the runner (any more).
pub(crate) const UNKNOWN_RUNNER: u16 = 409;

/// The coordinators that a runner was told of.
#[derive(Debug)]
pub struct Coordinators {
    peers: Vec<Peer>,
    current: AtomicUsize,
    headers: Vec<(&'static str, String)>,
    /// A coordinator asked to be told who the runner is.
    pub(crate) register_again: Notify,
}

impl Coordinators {
    /// Coordinators at these addresses, for this life of a runner. Connects to none yet.
    pub fn new(addresses: &[String], secret: &Arc<SecretFile>, runner: &RunnerId) -> Result<Self, LinkError> {
        let peers = addresses.iter().map(|address| Peer::new(address, Arc::clone(secret))).collect::<Result<_, _>>()?;
        let headers =
            vec![(RUNNER_HEADER, runner.name.to_string()), (INCARNATION_HEADER, runner.incarnation.to_string())];
        Ok(Self { peers, current: AtomicUsize::new(0), headers, register_again: Notify::new() })
    }

    /// Completes when a connection to the coordinator that answered last ends.
    pub(crate) async fn disconnected(&self) {
        match self.peers.get(self.current.load(Ordering::Relaxed)) {
            Some(peer) => drop(peer.ended().changed().await),
            None => std::future::pending().await,
        }
    }

    /// Asks the coordinator that answered last; where it certainly got nothing, the next ones.
    pub(crate) async fn call(
        &self,
        path: &str,
        within: Duration,
        body: impl Fn() -> Body + Send + Sync,
    ) -> Result<Response<Answer>, LinkError> {
        let first = self.current.load(Ordering::Relaxed);
        let mut last = LinkError::Unreachable {
            address: "the coordinator".to_owned(),
            reason: "no address of one was given: name it with --coordinator".to_owned(),
        };
        for step in 0..self.peers.len() {
            let index = (first + step) % self.peers.len();
            match self.peers[index].call(path, &self.headers, within, &body).await {
                Ok(answer) => {
                    self.current.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(error) if error.nothing_happened() => last = error,
                Err(error) => {
                    if error.status() == Some(UNKNOWN_RUNNER) {
                        self.register_again.notify_one();
                    }
                    return Err(error);
                }
            }
        }
        Err(last)
    }

    /// Sends JSON and reads JSON.
    pub(crate) async fn exchange<T: DeserializeOwned>(
        &self,
        path: &str,
        within: Duration,
        message: &(impl Serialize + Sync),
    ) -> Result<T, LinkError> {
        let malformed = |reason: String| LinkError::Malformed { address: "the coordinator".to_owned(), reason };
        let bytes = Bytes::from(serde_json::to_vec(message).map_err(|error| malformed(error.to_string()))?);
        let answer = self.call(path, within, || ash_link::full(bytes.clone())).await?;
        tokio::time::timeout(within, ash_link::read_json(answer.into_body()))
            .await
            .map_err(|_| malformed("no whole answer in time".to_owned()))?
            .map_err(|reason| LinkError::Broken { address: "the coordinator".to_owned(), reason })
    }
}
