//! The coordinators of a runner: the one that answers is asked, the next one where it does not.

use std::{
    collections::VecDeque,
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
use futures::{StreamExt as _, stream::FuturesUnordered};
use http::Response;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

/// The status of a coordinator that does not know the runner (any more).
pub(crate) const UNKNOWN_RUNNER: u16 = 409;

/// Statuses from here on say nothing of the runner: another coordinator may answer.
const SERVER_ERROR: u16 = 500;

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
        let mut last = Self::nobody();
        for step in 0..self.peers.len() {
            let index = (first + step) % self.peers.len();
            match self.peers[index].call(path, &self.headers, within, &body).await {
                Ok(answer) => {
                    self.current.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(error) if error.nothing_happened() => last = error,
                Err(error) => {
                    match &error {
                        _ if error.status() == Some(UNKNOWN_RUNNER) => self.register_again.notify_one(),
                        // It may be there and say nothing: whoever asks again asks another one.
                        LinkError::Broken { .. } => {
                            self.current.store((index + 1) % self.peers.len(), Ordering::Relaxed);
                        }
                        _ => {}
                    }
                    return Err(error);
                }
            }
        }
        Err(last)
    }

    /// Asks what may be asked of several, and more than once: the coordinator that answered last, and the next ones where it fails,
    /// answers what is not `good`, or takes longer than `apart`; then the first one again, over another connection, since behind one
    /// address there may be several. Gives the first good answer, else the first that there is; `good` sees each. One that refuses the runner knows
    /// why from the store: nobody else is asked then. Each may take `within`.
    pub(crate) async fn ask_each<T: DeserializeOwned>(
        &self,
        path: &str,
        (within, apart): (Duration, Duration),
        message: &(impl Serialize + Sync),
        mut good: impl FnMut(&T) -> bool,
    ) -> Result<T, LinkError> {
        let first = self.current.load(Ordering::Relaxed);
        let mut next: VecDeque<usize> = (0..self.peers.len()).map(|step| (first + step) % self.peers.len()).collect();
        let mut again = next.front().copied();
        let mut asked = FuturesUnordered::new();
        let (mut passable, mut failed) = (None, None);
        loop {
            if let Some(index) = next.pop_front() {
                asked.push(async move {
                    let asked = timeout(within, self.peers[index].exchange(path, &self.headers, within, message)).await;
                    (index, asked.unwrap_or_else(|_| Err(self.silent(index, within))))
                });
            }
            let answer = tokio::select! {
                answer = asked.next() => answer,
                () = sleep(apart), if !next.is_empty() || again.is_some() => {
                    if next.is_empty() {
                        next.extend(again.take().inspect(|first| self.peers[*first].renew()));
                    }
                    continue;
                }
            };
            match answer {
                Some((index, Ok(answer))) if good(&answer) => {
                    self.current.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Some((index, Ok(answer))) => {
                    passable.get_or_insert((index, answer));
                }
                Some((_, Err(error))) if error.status().is_some_and(|status| status < SERVER_ERROR) => {
                    return Err(error);
                }
                Some((index, Err(error))) => {
                    if matches!(error, LinkError::Broken { .. }) {
                        self.peers[index].renew();
                        if next.is_empty() {
                            next.extend(again.take());
                        }
                    }
                    failed = Some(error);
                }
                None => break,
            }
        }
        if let Some((index, answer)) = passable {
            self.current.store(index, Ordering::Relaxed);
            return Ok(answer);
        }
        Err(failed.unwrap_or_else(Self::nobody))
    }

    fn silent(&self, index: usize, within: Duration) -> LinkError {
        let address = self.peers[index].address().to_owned();
        LinkError::Broken { address, reason: format!("no answer within {} s", within.as_secs()) }
    }

    fn nobody() -> LinkError {
        LinkError::Unreachable {
            address: "the coordinator".to_owned(),
            reason: "no address of one was given: name it with --coordinator".to_owned(),
        }
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

#[cfg(test)]
mod tests;
