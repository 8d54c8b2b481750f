//! What can go wrong, each with what the person can do about it.

use thiserror::Error;

use crate::id::{Epoch, SandboxId, SessionId};

/// Why a sandbox token was not accepted.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TokenError {
    /// Not the shape of a sandbox token.
    #[error("this is not a sandbox token; use the one in the sandbox's environment")]
    Malformed,
    /// Made by another version of Ash.
    #[error("sandbox token version {0} is not known here; recycle the sandbox")]
    Version(u8),
    /// The signature does not fit the id.
    #[error("the sandbox token was not issued by this server; recycle the sandbox")]
    Forged,
}

/// Why the gateway cannot be built from its configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The base address is not one that paths can be put behind.
    #[error(
        "the model's base URL must be http:// or https:// without user, query or fragment; \
         check ANTHROPIC_BASE_URL"
    )]
    BaseUrl,
    /// A key or header value holds characters that HTTP forbids.
    #[error("{0} holds characters that an HTTP header cannot carry; check it for line ends")]
    HeaderValue(String),
    /// A header that the gateway sets itself.
    #[error("the extra header {0} is set by the gateway itself; remove it")]
    ReservedHeader(String),
    /// The proxy address cannot be used.
    #[error("the proxy address cannot be used; check HTTPS_PROXY (http://host:port)")]
    Proxy,
    /// The extra certificate authority file cannot be read or holds no certificate.
    #[error("cannot use the CA file {path}: {reason}; it must hold PEM certificates")]
    CaFile {
        /// The file as configured.
        path: String,
        /// What failed.
        reason: String,
    },
    /// The HTTP client could not be built.
    #[error("cannot set up TLS: {0}; install ca-certificates or give an extra CA file")]
    Client(String),
    /// The address is one that a tenant may not send requests to.
    #[error("the model's base URL is not permitted: {0}; the operator can allow the host by name")]
    TargetRefused(String),
    /// A network of the egress policy is not understood.
    #[error("cannot read the network {rule:?}: {reason}")]
    Rule {
        /// The rule as given.
        rule: String,
        /// What is wrong, and what is expected.
        reason: &'static str,
    },
}

/// Why a change of a sandbox's binding was refused.
#[derive(Debug, Error)]
pub enum BindError {
    /// The gateway holds no state of this sandbox.
    #[error("sandbox {0} is not registered with the gateway; register or bind it first")]
    Unknown(SandboxId),
    /// It has or had a session; its identity is never changed.
    #[error("sandbox {sandbox} belongs to session {session}; take another sandbox")]
    Taken {
        /// The sandbox.
        sandbox: SandboxId,
        /// The session that it is or was bound to.
        session: SessionId,
    },
    /// A newer claim has been seen.
    #[error("epoch {given} of sandbox {sandbox} is over, the gateway knows {current}; give it up")]
    Stale {
        /// The sandbox.
        sandbox: SandboxId,
        /// The epoch of the request.
        given: Epoch,
        /// The newest epoch that was seen.
        current: Epoch,
    },
    /// It is warm and has no session that could be bound again or released.
    #[error("sandbox {0} has no session; bind it first")]
    Unclaimed(SandboxId),
    /// The session's own model key or address cannot be used.
    #[error(transparent)]
    Upstream(#[from] ConfigError),
}

/// Why a listener cannot be served.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The socket that the bridge handed over is not usable.
    #[error("the sandbox's listening socket cannot be used: {0}; recycle the sandbox")]
    Listener(#[from] std::io::Error),
}
