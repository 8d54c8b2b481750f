//! The event that opens an epoch: written by the store with the change of state, so that no two can open the same one.

use ash_protocol::{Entry, EntryFlags, EntryKind, Epoch, Sequence};
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What opened an epoch, and how the one before it ended. JSON body of an entry of kind `Opening`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Opening {
    /// Why.
    pub reason: OpeningReason,
    /// The last committed entry before this one: whatever a reader saw between it and this entry does not count.
    pub last_committed: Sequence,
    /// The turn that was in progress and is over now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interrupted: Option<Uuid>,
    /// What a person is told about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What the session goes on with, where its workspace was not at hand any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovered: Option<Recovered>,
    /// The sandbox that was claimed, where one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<Uuid>,
}

/// From which turns a session goes on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Recovered {
    /// The last turn that the conversation holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation: Option<Uuid>,
    /// The last turn that had ended when the workspace was as it is now; none where it is as the agent's files make it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<Uuid>,
    /// When the workspace was so; none where it is as the agent's files make it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_at: Option<Timestamp>,
    /// Newer snapshots of the workspace that were damaged, and not used.
    #[serde(default)]
    pub damaged: u32,
    /// How many files and folders are not in the workspace as they were, or not at all: they could not be kept, or are lost.
    #[serde(default)]
    pub incomplete: u64,
    /// The first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
}

/// Why an epoch was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpeningReason {
    /// A sandbox was claimed.
    Claimed,
    /// The sandbox is gone: its bridge died or did not come back.
    Lost,
    /// The sandbox was given up: the session sleeps.
    Asleep,
    /// A sandbox could not be started.
    Failed,
    /// A person paused or stopped the session.
    Suspended,
    /// A person resumed it: it has no sandbox yet.
    Resumed,
    /// The session was ended.
    Ended,
}

impl Opening {
    /// The entry that opens an epoch.
    ///
    /// # Panics
    /// Never: the JSON of this type has string keys only.
    #[allow(clippy::expect_used, reason = "serialising our own type to memory cannot fail")]
    pub fn entry(&self, epoch: Epoch) -> Entry {
        Entry {
            sequence: epoch.opening(),
            kind: EntryKind::Opening,
            flags: if self.interrupted.is_some() { EntryFlags::ENDS_TURN } else { EntryFlags::default() },
            body: Bytes::from(serde_json::to_vec(self).expect("an opening has string keys")),
        }
    }

    /// Reads the body of an entry of kind `Opening`.
    pub fn read(body: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(body)
    }
}
