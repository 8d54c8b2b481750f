//! One entry of a session's event log, as the bridge writes it and the host keeps it.

use bytes::Bytes;
use serde::Deserialize;
use uuid::Uuid;

use crate::sequence::Sequence;

/// The longest line of Claude Code that is passed on: 64 MiB. A longer one becomes an event that says so.
pub const MAX_LINE_BYTES: usize = 64 << 20;

/// Unacknowledged bytes of one session at which its bridge stops reading from Claude Code: 64 MiB. Because a line is taken
/// whole, a session holds this and one line at the most.
pub const MAX_UNACKNOWLEDGED_BYTES: usize = 64 << 20;

/// What an entry holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// Opens an epoch. Written by the store only; refused from a bridge. The body is the JSON of an opening.
    Opening = 0,
    /// A complete line that Claude Code printed, byte for byte, without its newline.
    Claude = 1,
    /// A `stream_event` line: a partial message, superseded by the complete one that follows.
    Partial = 2,
    /// The user message that began a turn, as it was written to Claude Code's standard input.
    User = 3,
    /// Internal: bytes that Claude Code appended to its transcript ([`crate::message::TranscriptPart`]).
    Transcript = 4,
    /// Something that the bridge has to say ([`crate::message::BridgeEvent`], JSON).
    Bridge = 5,
}

impl EntryKind {
    /// The kind behind a byte of the wire or of a stored chunk; `None` for a kind of a newer release.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Opening,
            1 => Self::Claude,
            2 => Self::Partial,
            3 => Self::User,
            4 => Self::Transcript,
            5 => Self::Bridge,
            _ => return None,
        })
    }

    /// The byte of the wire and of stored chunks.
    pub fn byte(self) -> u8 {
        self as u8
    }
}

/// What the writer of an entry knows about it, so that nobody parses the body again to learn it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct EntryFlags(pub u8);

impl EntryFlags {
    /// The entry ends the turn that is in progress.
    pub const ENDS_TURN: Self = Self(1);
    /// The entry stands in the log for partial messages that were dropped: who does not read those does not read it. Written by
    /// the store only; refused from a bridge.
    pub const FOR_PARTIALS: Self = Self(2);

    /// Whether every bit of `other` is set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// One entry of a session's event log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its position.
    pub sequence: Sequence,
    /// What it holds.
    pub kind: EntryKind,
    /// What its writer knows about it.
    pub flags: EntryFlags,
    /// The raw bytes. At most [`MAX_LINE_BYTES`] and a little for the bridge's own wrapping.
    pub body: Bytes,
}

impl Entry {
    /// Whether this entry is the last one of a turn.
    pub fn ends_turn(&self) -> bool {
        self.flags.contains(EntryFlags::ENDS_TURN)
    }

    /// The turn that this entry begins: the uuid of a user's message. `None` for any other entry.
    pub fn begins_turn(&self) -> Option<Uuid> {
        #[derive(Deserialize)]
        struct UserLine {
            uuid: Option<Uuid>,
        }
        if self.kind != EntryKind::User {
            return None;
        }
        serde_json::from_slice::<UserLine>(&self.body).ok()?.uuid
    }
}
