//! What can go wrong between a client and a server, and what to do next.

use std::{fmt, time::Duration};

use crate::{cluster::ClusterError, parser::TooLong};

/// Why a request or a stream failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is none that can be asked.
    #[error("{url:?} is no address of a server: {reason}")]
    InvalidUrl {
        /// What was given.
        url: String,
        /// Why not.
        reason: String,
    },
    /// The key holds bytes that no HTTP header can.
    #[error("the API key holds characters that cannot be sent: give it as it was printed, without line breaks")]
    InvalidKey,
    /// The HTTP client could not be made.
    #[error("cannot set up HTTP: {0}")]
    Setup(String),
    /// Nobody answers.
    #[error("cannot reach {url}: {reason}")]
    Unreachable {
        /// The server.
        url: String,
        /// What the system said.
        reason: String,
    },
    /// The connection ended before the answer did.
    #[error("the connection to {url} was cut: {reason}")]
    Cut {
        /// The server.
        url: String,
        /// How.
        reason: String,
    },
    /// The server refused, with a sentence of its own.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The server's sentence.
        message: String,
        /// How long the server asks to wait.
        retry_after: Option<Duration>,
    },
    /// There is no such agent or session, or it is another tenant's.
    #[error("{kind} not found: {name}")]
    NotFound {
        /// What was looked for.
        kind: Kind,
        /// The name, slug or id that was given.
        name: String,
    },
    /// The answer is not what the contract says.
    #[error("the server's answer is not understood ({what}): {reason}")]
    InvalidAnswer {
        /// What was read.
        what: String,
        /// Why it could not be.
        reason: String,
    },
    /// A frame of a stream is longer than its bound.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// The way through a cluster.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// A position that is none.
    #[error(transparent)]
    InvalidPosition(#[from] ash_core::sse::InvalidPosition),
}

/// What can be looked for by a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An agent, by name or slug.
    Agent,
    /// A session, by id.
    Session,
    /// A runner, by name.
    Runner,
}

impl Kind {
    /// The error of looking for one: that there is none, with its name, where that is what the server said.
    pub(crate) fn missing(self, name: &str) -> impl FnOnce(Error) -> Error {
        move |error| match error {
            Error::Refused { status: 404, message, .. } if message == format!("{self} not found") => {
                Error::NotFound { kind: self, name: name.to_owned() }
            }
            error => error,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Agent => "Agent",
            Self::Session => "Session",
            Self::Runner => "Runner",
        })
    }
}

impl Error {
    /// The HTTP status, where the server answered with one.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::NotFound { .. } => Some(404),
            _ => None,
        }
    }

    /// What the person can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::InvalidUrl { .. } => Some("give it like http://127.0.0.1:4100".to_owned()),
            Self::Unreachable { url, .. } => {
                Some(format!("is `ash serve` running at {url}? Start it, or give another address (--url or ASH_URL)"))
            }
            Self::Cluster(error) => Some(error.hint()),
            Self::Cut { .. } => Some(
                "is the server still running? The turn goes on without its reader: look at the session again later".to_owned(),
            ),
            Self::Refused { status: 401, .. } => Some(
                "give the API key with --api-key or ASH_API_KEY; a server's first key is in initial-api-key of its data \
                 directory (--data-dir)"
                    .to_owned(),
            ),
            Self::Refused { status: 429 | 503, retry_after, .. } => Some(match retry_after {
                Some(wait) => format!("try again in {} s", wait.as_secs().max(1)),
                None => "try again in a little while".to_owned(),
            }),
            Self::Refused { status: 500, .. } => Some("the server's log says more".to_owned()),
            Self::NotFound { kind: Kind::Agent, .. } => Some("`ash agent list` shows those that there are".to_owned()),
            Self::NotFound { kind: Kind::Session, .. } => {
                Some("`ash session list` shows those that there are".to_owned())
            }
            Self::NotFound { kind: Kind::Runner, .. } => Some("`ash runner list` shows those that there are".to_owned()),
            Self::InvalidAnswer { .. } => Some("is that the address of an Ash server, of this release?".to_owned()),
            _ => None,
        }
    }

    /// Whether the same request can succeed later without anybody changing anything.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Cut { .. } => true,
            Self::Cluster(error) => error.is_transient(),
            Self::Refused { status, .. } => matches!(status, 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    /// Whether the request was on its way when the connection ended: what is sent under a key may be sent again. Only a proxy says
    /// 502 or 504, of a server behind it.
    pub(crate) fn is_cut(&self) -> bool {
        matches!(self, Self::Cut { .. } | Self::Refused { status: 502 | 504, .. })
    }

    /// How long the server asked to wait.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
