//! Calls to a runner: JSON both ways, or a head and a stream of entries.

use std::time::Duration;

use ash_core::ports::RunnerError;
use ash_link::{Answer, FrameReader, LinkError};
use ash_protocol::{
    fleet::{FROZEN_STATUS, INCARNATION_HEADER},
    frame::FrameKind,
};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;

use crate::registry::Target;

/// The status of a runner that was started anew.
const OTHER_INCARNATION: u16 = 410;

/// The statuses of a runner that another one, or the same in a moment, stands in for.
const COMES_BACK: [u16; 2] = [OTHER_INCARNATION, FROZEN_STATUS];

/// Why a call to a runner failed.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The runner refused, or failed.
    Runner(RunnerError),
    /// Nothing happened: it did not get the call.
    Nothing(LinkError),
    /// It may have carried it out.
    Unknown(LinkError),
}

impl From<LinkError> for CallError {
    fn from(error: LinkError) -> Self {
        let nothing = error.nothing_happened() || error.status().is_some();
        if nothing { Self::Nothing(error) } else { Self::Unknown(error) }
    }
}

impl CallError {
    /// As the API's client gets it. What the network says of itself goes to the log only.
    pub(crate) fn into_runner_error(self) -> RunnerError {
        match self {
            Self::Runner(error) => error,
            Self::Nothing(error) if error.status().is_some_and(|status| !COMES_BACK.contains(&status)) => {
                RunnerError::Internal(error.to_string())
            }
            Self::Nothing(error) | Self::Unknown(error) => {
                tracing::warn!(%error, "a runner did not answer");
                match error {
                    LinkError::Secret { .. } => return RunnerError::Untrusted,
                    LinkError::Version { .. } => return RunnerError::Incompatible,
                    _ => {}
                }
                RunnerError::Unreachable("the session's runner does not answer: try again in a moment".to_owned())
            }
        }
    }
}

fn headers(target: &Target) -> [(&'static str, String); 1] {
    [(INCARNATION_HEADER, target.id.incarnation.to_string())]
}

/// A call with an answer of JSON.
pub(crate) async fn call<T: DeserializeOwned>(
    target: &Target,
    path: &str,
    within: Duration,
    message: &(impl Serialize + Sync),
) -> Result<T, CallError> {
    let answer: Result<T, RunnerError> = target.peer.exchange(path, &headers(target), within, message).await?;
    answer.map_err(CallError::Runner)
}

/// A message that has no answer worth reading.
pub(crate) async fn tell(
    target: &Target,
    path: &str,
    within: Duration,
    message: &(impl Serialize + Sync),
) -> Result<(), LinkError> {
    target.peer.exchange(path, &headers(target), within, message).await
}

/// A call whose answer is a head and a stream of frames.
pub(crate) async fn stream<T: DeserializeOwned>(
    target: &Target,
    path: &str,
    within: Duration,
    message: &(impl Serialize + Sync),
) -> Result<(T, FrameReader<Answer>), CallError> {
    let malformed = |reason: String| CallError::Unknown(target.peer.malformed(&reason));
    let bytes = Bytes::from(serde_json::to_vec(message).map_err(|error| malformed(error.to_string()))?);
    let answer = target.peer.call(path, &headers(target), within, || ash_link::full(bytes.clone())).await?;
    let mut reader = FrameReader::new(answer.into_body());
    let head = match timeout(within, reader.next()).await {
        Ok(Ok(Some(frame))) if frame.kind == FrameKind::Reply => frame,
        Ok(Err(reason)) => return Err(malformed(reason)),
        Ok(Ok(_)) => return Err(malformed("a stream without a head".to_owned())),
        Err(_) => return Err(malformed(format!("no head within {} s", within.as_secs()))),
    };
    let head: Result<T, RunnerError> =
        serde_json::from_slice(&head.body).map_err(|error| malformed(error.to_string()))?;
    head.map(|head| (head, reader)).map_err(CallError::Runner)
}
