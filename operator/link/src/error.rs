//! What goes wrong between two processes.

use ash_protocol::version::ProtocolVersion;

/// Why a request did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Nothing was sent: nobody answers there, or it did not prove itself.
    #[error("{address} does not answer: {reason}")]
    Unreachable {
        /// The address.
        address: String,
        /// Why.
        reason: String,
    },
    /// It has another secret, or none.
    #[error("{address} does not have the shared secret: give both sides the same --fleet-secret-file")]
    Secret {
        /// The address.
        address: String,
    },
    /// It speaks another version.
    #[error(
        "{address} speaks version {theirs} of the fleet's protocol and this program {ours}: run releases of one generation"
    )]
    Version {
        /// The address.
        address: String,
        /// Its version.
        theirs: String,
        /// Our version.
        ours: String,
    },
    /// The connection broke after the request was sent: it may have been carried out, or not.
    #[error("the connection to {address} broke: {reason}")]
    Broken {
        /// The address.
        address: String,
        /// Why.
        reason: String,
    },
    /// The other side refused.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The sentence.
        message: String,
    },
    /// What came is not what was agreed.
    #[error("{address} answered with something else than agreed: {reason}")]
    Malformed {
        /// The address.
        address: String,
        /// What is wrong.
        reason: String,
    },
}

impl LinkError {
    /// Whether the request certainly had no effect.
    pub fn nothing_happened(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Secret { .. } | Self::Version { .. })
    }

    /// The status of a refusal.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// Why a side cannot prove itself.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file cannot be read.
    #[error("the secret file {path} cannot be read: {source}; let this user read it")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// There is no usable secret in it.
    #[error(
        "the secret file {path} has to hold 1 to 4 lines of at least 32 characters each (`openssl rand -hex 32` makes one): \
         the first is used, all are accepted"
    )]
    NoSecret {
        /// The file.
        path: String,
    },
    /// The system has no random numbers.
    #[error("the system has no random numbers: {0}")]
    NoRandom(String),
}

/// A version for a person.
pub(crate) fn shown(version: ProtocolVersion) -> String {
    ash_protocol::fleet::version_text(version)
}

/// An error and what caused it, in one sentence: what breaks a connection is told by the causes.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |cause| cause.source())
        .fold(error.to_string(), |sentence, cause| format!("{sentence}: {cause}"))
}
