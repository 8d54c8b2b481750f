//! What goes wrong while a step is carried out, and how the reader is told.

use ash_core::ports::{RunnerError, StoreError};
use ash_crd::Reason;

/// Why a step was not carried out. It is tried again with growing pauses.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    /// The API server did not do something.
    #[error("the API server: {0}")]
    Kubernetes(#[from] kube::Error),
    /// The store did not do something.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The session's runner did not do something.
    #[error(transparent)]
    Runner(#[from] RunnerError),
    /// Something that should not be.
    #[error("{0}")]
    Internal(String),
}

impl StepError {
    /// The reason for a condition; none where the object has changed meanwhile, or is gone, so that there is nothing to tell.
    pub(crate) fn reason(&self) -> Option<Reason> {
        match self {
            Self::Kubernetes(error) if is_conflict(error) || is_gone(error) => None,
            // It says so when it is back: nothing can be written now.
            Self::Kubernetes(kube::Error::Api(_)) => Some(Reason::InternalError),
            Self::Kubernetes(_) => None,
            Self::Store(StoreError::Overtaken { .. } | StoreError::Conflict(_)) => None,
            Self::Runner(RunnerError::Store(StoreError::Overtaken { .. } | StoreError::Conflict(_))) => None,
            Self::Store(StoreError::Unavailable(_) | StoreError::Full)
            | Self::Runner(RunnerError::Store(StoreError::Unavailable(_) | StoreError::Full)) => {
                Some(Reason::StoreUnavailable)
            }
            Self::Runner(RunnerError::NoCapacity { .. }) => Some(Reason::NoCapacity),
            Self::Runner(RunnerError::Unreachable(_)) => Some(Reason::NoRunner),
            Self::Runner(RunnerError::Untrusted) => Some(Reason::RunnerSecretRefused),
            Self::Runner(RunnerError::Incompatible) => Some(Reason::RunnerIncompatible),
            Self::Store(_) | Self::Runner(_) | Self::Internal(_) => Some(Reason::InternalError),
        }
    }

    /// What the object's owner reads. What a database says about itself names its users and hosts: that stays in the operator's
    /// log.
    pub(crate) fn told(&self) -> String {
        match self {
            Self::Store(error) | Self::Runner(RunnerError::Store(error)) => match error {
                StoreError::Unavailable(_) => "the database is unavailable: it is tried again".to_owned(),
                StoreError::Damaged(_) => {
                    "what is stored of it cannot be read: the operator's log says more".to_owned()
                }
                error => error.to_string(),
            },
            error => error.to_string(),
        }
    }

    /// The label of the metric.
    pub(crate) fn category(&self) -> &'static str {
        match self {
            Self::Kubernetes(error) if is_conflict(error) => "Conflict",
            Self::Kubernetes(_) => "ApiServer",
            Self::Store(_) => "Store",
            Self::Runner(_) => "Runner",
            Self::Internal(_) => "Internal",
        }
    }
}

/// The object is another than the one that was looked at.
pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// The object is not there.
pub(crate) fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// What is gone already is as gone as it can be.
pub(crate) fn unless_gone<T>(result: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use ash_core::ports::{RunnerError, StoreError};

    use super::StepError;

    #[test]
    fn what_a_database_says_of_itself_is_for_the_log() {
        let words = || "password authentication failed for user \"ash\" at 10.0.0.5".to_owned();
        let errors: [StepError; 3] = [
            StoreError::Unavailable(words()).into(),
            StoreError::Damaged(words()).into(),
            RunnerError::Store(StoreError::Unavailable(words())).into(),
        ];
        for error in errors {
            assert!(error.to_string().contains("10.0.0.5"));
            let told = error.told();
            assert!(!told.contains("10.0.0.5") && !told.is_empty(), "{told}");
        }
        let refused = StepError::from(RunnerError::OptionRefused("betas: no".to_owned()));
        assert!(refused.told().contains("betas"));
    }
}
