//! What a runner of pods asks: a coordinator, which sandbox a pod is; the API server, which pod a token is of.

use async_trait::async_trait;

use super::{PodIdentity, StoreError};
use crate::{fleet::Admitted, id::SandboxId};

/// The calls of a runner about the pods of its node.
#[async_trait]
pub trait RunnerPods: Send + Sync {
    /// Admits a pod whose bridge proved itself. `None` where no sandbox is in this pod, or it is over.
    async fn admit(&self, pod: &PodIdentity) -> Result<Option<Admitted>, StoreError>;

    /// Says that a pod's Claude is ready for any session. False where nobody may claim it: it is over, or a session's.
    async fn warm(&self, sandbox: SandboxId) -> Result<bool, StoreError>;

    /// Says that a sandbox is over, and why: nobody may claim it any more, and its pod goes. False where that was known.
    async fn over(&self, sandbox: SandboxId, reason: Option<String>) -> Result<bool, StoreError>;
}

/// Says which pod a token is of, as `TokenReview` of the API server does for the audience of runners.
#[async_trait]
pub trait TokenReviews: Send + Sync {
    /// The pod that this token was made for.
    async fn review(&self, token: &str) -> Result<PodIdentity, ReviewError>;
}

/// Why a token proved nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    /// The token is none of a pod for this audience, or has expired.
    #[error("the token is refused: {0}")]
    Refused(String),
    /// Nobody can be asked at the moment.
    #[error("the API server cannot be asked: {0}")]
    Unavailable(String),
}
