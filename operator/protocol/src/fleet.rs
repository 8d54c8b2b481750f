//! What crosses a socket between a coordinator and a runner, beside what `ash-core`'s own types say: version, paths, headers,
//! and the frames of a stream of entries.
//!
//! Both sides speak HTTP/2. A connection begins with a handshake ([`HANDSHAKE`]) in which both prove that they have the shared
//! secret, without either showing it; every other request carries what the handshake gave. Small bodies are JSON; entries of
//! a log travel as [`Frame`](crate::frame::Frame)s of kind `Event`, raw.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{sequence::Sequence, version::ProtocolVersion};

/// The version of what coordinator and runner say to each other.
///
/// The major number changes when the other side could misread something; the minor when something was added that it may ignore.
pub const FLEET_VERSION: ProtocolVersion = ProtocolVersion { major: 1, minor: 1 };

/// Whether two sides understand each other: those of one generation do, whichever is newer, so that a fleet can be upgraded one
/// by one.
pub fn understands(one: ProtocolVersion, other: ProtocolVersion) -> bool {
    one.major == other.major
}

/// Header of the handshake, both ways: the version, as `major.minor`.
pub const VERSION_HEADER: &str = "ash-fleet-version";
/// Header of the handshake, both ways: 32 random bytes, base64url.
pub const NONCE_HEADER: &str = "ash-nonce";
/// Header of the handshake's answer: one proof for each secret that the server takes, with commas between.
pub const PROOF_HEADER: &str = "ash-proof";
/// Header of a runner's requests: its name.
pub const RUNNER_HEADER: &str = "ash-runner";
/// Header of a runner's requests, and of a coordinator's to it: the incarnation that is meant.
pub const INCARNATION_HEADER: &str = "ash-incarnation";

/// The status of a runner that nobody answers: it serves nobody until a coordinator has written that it lives. What the model API
/// says when it is overloaded, and Claude Code tries again after.
pub const FROZEN_STATUS: u16 = 529;

/// The first request of a connection.
pub const HANDSHAKE: &str = "/fleet/v1/handshake";

/// Paths of a coordinator, for runners.
pub mod coordinator {
    /// A runner says who it is.
    pub const REGISTER: &str = "/fleet/v1/register";
    /// A runner says that it lives, and how much it does.
    pub const HEARTBEAT: &str = "/fleet/v1/heartbeat";
    /// A runner announces that its process is started anew: it is not lost for a while.
    pub const RESTARTING: &str = "/fleet/v1/restarting";
    /// A runner leaves.
    pub const DEREGISTER: &str = "/fleet/v1/deregister";
    /// A session's row.
    pub const SESSION: &str = "/fleet/v1/store/session";
    /// The sessions on the runner's sandboxes.
    pub const PLACED_SESSIONS: &str = "/fleet/v1/store/placed-sessions";
    /// Whether there is a session.
    pub const SESSION_EXISTS: &str = "/fleet/v1/store/session-exists";
    /// A version of an agent.
    pub const AGENT_VERSION: &str = "/fleet/v1/store/agent-version";
    /// A bundle's bytes.
    pub const BUNDLE: &str = "/fleet/v1/store/bundle";
    /// The next epoch.
    pub const OPEN_EPOCH: &str = "/fleet/v1/store/open-epoch";
    /// Entries of many sessions.
    pub const APPEND: &str = "/fleet/v1/store/append";
    /// Entries after a position.
    pub const READ: &str = "/fleet/v1/store/read";
    /// The conversation.
    pub const TRANSCRIPT: &str = "/fleet/v1/store/transcript";
    /// The turn that has not ended.
    pub const UNFINISHED_TURN: &str = "/fleet/v1/store/unfinished-turn";
    /// A turn by its id.
    pub const TURN: &str = "/fleet/v1/store/turn";
    /// The last turn that has ended.
    pub const LAST_TURN: &str = "/fleet/v1/store/last-turn";
    /// A snapshot of a session's workspace was taken.
    pub const ADD_SNAPSHOT: &str = "/fleet/v1/store/add-snapshot";
    /// The snapshots of a session.
    pub const SNAPSHOTS: &str = "/fleet/v1/store/snapshots";
    /// A snapshot was found damaged.
    pub const SNAPSHOT_DAMAGED: &str = "/fleet/v1/store/snapshot-damaged";
    /// Which sandbox a pod is, whose bridge proved itself.
    pub const ADMIT_POD: &str = "/fleet/v1/pods/admit";
    /// A pod's Claude is ready for any session.
    pub const POD_WARM: &str = "/fleet/v1/pods/warm";
    /// A pod's sandbox is over: nobody may claim it any more, and its pod goes.
    pub const POD_OVER: &str = "/fleet/v1/pods/over";
}

/// Paths of a runner, for coordinators.
pub mod runner {
    /// Which versions of agents to keep warm.
    pub const WARM: &str = "/fleet/v1/warm";
    /// A new session.
    pub const PLACE: &str = "/fleet/v1/place";
    /// A message; the answer is its turn's stream of entries.
    pub const SEND: &str = "/fleet/v1/send";
    /// A stream of a session's entries.
    pub const READ: &str = "/fleet/v1/read";
    /// The end of a turn in progress.
    pub const INTERRUPT: &str = "/fleet/v1/interrupt";
    /// The answer to a permission request.
    pub const ANSWER: &str = "/fleet/v1/answer";
    /// Other options of a session.
    pub const CONFIGURE: &str = "/fleet/v1/configure";
    /// The pause, stop or end of a session.
    pub const CLOSE: &str = "/fleet/v1/close";
    /// The resumption of a session.
    pub const RESUME: &str = "/fleet/v1/resume";
}

/// The body of a frame of kind `Status` in a stream of entries. It comes first, after every batch of entries, and whenever there
/// was none for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamStatus {
    /// Up to where entries were given, internal ones included.
    pub through: Sequence,
    /// Whether a turn was in progress, or about to begin, when the entries before this frame were all there were.
    pub turn_in_progress: bool,
    /// The stream is over: nothing comes after everything that was given.
    #[serde(default)]
    pub over: bool,
    /// The log cannot be written, for this reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unwritten: Option<String>,
    /// The log cannot be read, for this reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread: Option<String>,
}

/// A secret in a message. It is never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hidden(pub String);

impl fmt::Debug for Hidden {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Hidden")
    }
}

/// Why a request was refused: the body of every answer that is no success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// A sentence that says what to do.
    pub error: String,
}

/// A version as it stands in a header.
pub fn version_text(version: ProtocolVersion) -> String {
    format!("{}.{}", version.major, version.minor)
}

/// Reads a version from a header.
pub fn read_version(text: &str) -> Option<ProtocolVersion> {
    let (major, minor) = text.split_once('.')?;
    Some(ProtocolVersion { major: major.parse().ok()?, minor: minor.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::{FLEET_VERSION, Hidden, read_version, understands, version_text};
    use crate::version::ProtocolVersion;

    #[test]
    fn a_generation_understands_itself() {
        let next = ProtocolVersion { major: 1, minor: 9 };
        assert!(understands(FLEET_VERSION, next) && understands(next, FLEET_VERSION));
        assert!(!understands(FLEET_VERSION, ProtocolVersion { major: 2, minor: 0 }));
        assert_eq!(read_version(&version_text(next)), Some(next));
        for text in ["", "1", "1.", "a.b", "1.2.3", "70000.0"] {
            assert_eq!(read_version(text), None, "{text}");
        }
    }

    #[test]
    fn a_secret_is_not_printed() {
        assert!(!format!("{:?}", Hidden("sesame".to_owned())).contains("sesame"));
    }
}
