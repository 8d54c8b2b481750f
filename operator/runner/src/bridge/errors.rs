//! Why a request or a connection came to nothing.

use std::io;

use ash_protocol::{frame::FrameError, message::Refusal};
use tokio::time::Duration;

use crate::{hub::NotTaken, limits::LONG_LINE};

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// The bridge said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The bridge went away first.
    #[error("the sandbox's bridge went away")]
    Gone,
    /// The bridge is there and does not answer.
    #[error("the sandbox's bridge did not answer within {} s: the sandbox is ended; try again", .0.as_secs())]
    Silent(Duration),
    /// The bridge's answer is none.
    #[error("the bridge's answer cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    /// The other end closed it or the system did.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// What came is no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The greeting is none, or of a version that this host does not serve.
    #[error("{0}")]
    Greeting(String),
    /// An entry was not taken.
    #[error(transparent)]
    Entry(#[from] NotTaken),
    /// The bridge dialled anew.
    #[error("the bridge dialled anew")]
    Superseded,
    /// The bridge was told that its session went on without it.
    #[error("the session went on without this bridge")]
    Overtaken,
    /// A long line, for which room was made, did not come.
    #[error("a line of {} bytes did not come within {} s", .0, LONG_LINE.as_secs())]
    Late(usize),
    /// ... again and again: whoever announces lines and sends none keeps others from theirs.
    #[error("{} lines did not come within {} s each", .0, LONG_LINE.as_secs())]
    LateAgain(u64),
}

impl ConnectionError {
    /// Whether the peer broke the protocol, so that its sandbox cannot be trusted to go on.
    pub(crate) fn is_violation(&self) -> bool {
        !matches!(
            self,
            Self::Io(_) | Self::Superseded | Self::Overtaken | Self::Late(_) | Self::Entry(NotTaken::Full(_))
        )
    }
}
