//! What a workspace consists of, as a bridge lists it and as it is made again.

use std::{fmt, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};

/// Bytes of a path, as Linux has it (`PATH_MAX`).
pub const MAX_PATH_BYTES: usize = 4096;
/// Bytes of one name, as Linux has it (`NAME_MAX`).
pub const MAX_NAME_BYTES: usize = 255;
/// Bytes of an [`Entry`] as a line of JSON: two paths, of which every byte may take six, and a little more.
pub const MAX_LINE_BYTES: usize = 64 << 10;
/// Files that one [`ReadTree`](crate::message::Request::ReadTree) names.
pub const MAX_READ_FILES: usize = 1024;
/// A hole of a file that is shorter is sent as the zeros that it reads as.
pub const MIN_HOLE_BYTES: u64 = 1 << 20;
/// Notes that the answer to a request keeps; further ones are counted.
pub const MAX_NOTES: usize = 100;

/// A path below the workspace: names with `/` between them, any bytes that Linux takes. Never absolute, never with `.` or
/// `..`, so that it leads nowhere else. Ordered by its bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "PathText", into = "PathText")]
pub struct EntryPath(Arc<[u8]>);

/// Bytes that are no path below a workspace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEntryPath {
    /// It is empty or too long.
    #[error("a path has 1 to {MAX_PATH_BYTES} bytes, and each name in it at most {MAX_NAME_BYTES}")]
    Length,
    /// It leads elsewhere, or nowhere.
    #[error("a path is relative and consists of names: none is empty, `.` or `..`, and none has a zero byte")]
    Names,
    /// It is written as no bytes.
    #[error("the bytes of a path are not written in base64")]
    Encoding,
}

impl EntryPath {
    /// Checks a path.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(bytes: &[u8]) -> Result<Self, InvalidEntryPath> {
        if bytes.is_empty() || bytes.len() > MAX_PATH_BYTES {
            return Err(InvalidEntryPath::Length);
        }
        for name in bytes.split(|byte| *byte == b'/') {
            if name.len() > MAX_NAME_BYTES {
                return Err(InvalidEntryPath::Length);
            }
            if name.is_empty() || name == b"." || name == b".." || name.contains(&0) {
                return Err(InvalidEntryPath::Names);
            }
        }
        Ok(Self(bytes.into()))
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The path of the folder that it is in; none at the top.
    pub fn parent(&self) -> Option<&[u8]> {
        let end = self.0.iter().rposition(|byte| *byte == b'/')?;
        Some(&self.0[..end])
    }
}

impl fmt::Display for EntryPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for EntryPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// A path as JSON has it: text where it is text.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum PathText {
    Text(String),
    Bytes { base64: String },
}

impl From<EntryPath> for PathText {
    fn from(path: EntryPath) -> Self {
        match std::str::from_utf8(&path.0) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Bytes { base64: BASE64_STANDARD.encode(&path.0) },
        }
    }
}

impl TryFrom<PathText> for EntryPath {
    type Error = InvalidEntryPath;

    fn try_from(text: PathText) -> Result<Self, InvalidEntryPath> {
        match text {
            PathText::Text(text) => Self::new(text.as_bytes()),
            PathText::Bytes { base64 } => {
                Self::new(&BASE64_STANDARD.decode(base64).map_err(|_| InvalidEntryPath::Encoding)?)
            }
        }
    }
}

/// What tells a change of a file's content without reading it: the kernel sets it, no program of the sandbox can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stamp {
    /// Its inode.
    pub inode: u64,
    /// When the inode last changed (`ctime`), in nanoseconds since 1970.
    pub changed_ns: i64,
}

/// One thing in a workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Where it is.
    pub path: EntryPath,
    /// Permission bits with set-uid, set-gid and sticky: 0 to 0o7777.
    pub mode: u32,
    /// When its content last changed (`mtime`), in nanoseconds since 1970.
    pub modified_ns: i64,
    /// What it is.
    #[serde(flatten)]
    pub kind: EntryKind,
}

/// What an entry is. Sockets, pipes and devices are none: they are left out, with a note.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "kind")]
pub enum EntryKind {
    /// A folder.
    Directory,
    /// A regular file.
    File {
        /// Its bytes.
        size: u64,
        /// What tells a change of it.
        stamp: Stamp,
        /// It has holes: runs of zeros that take no room.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        sparse: bool,
    },
    /// A symbolic link. Where it leads is nobody's business here: it is made again as it was, never followed.
    Symlink {
        /// Its target, as written.
        #[serde(with = "bytes_as_text")]
        target: Vec<u8>,
    },
    /// Another name of a file that was listed before.
    HardLink {
        /// The first name.
        to: EntryPath,
    },
}

/// What comes next of a file with holes in the stream that a workspace is made from: a line of JSON each, behind the entry's,
/// until the file has its size. The bytes of a file without holes follow its entry as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Extent {
    /// So many bytes, which follow the line.
    Data(u64),
    /// So many zeros, which take no room.
    Hole(u64),
}

/// A file whose content is asked for, as it was listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedFile {
    /// Where it is.
    pub path: EntryPath,
    /// Its bytes; no more are sent.
    pub size: u64,
    /// What tells whether it changed since.
    pub stamp: Stamp,
}

/// Something that is not in a snapshot as it was in the workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Where.
    pub path: EntryPath,
    /// What.
    pub note: NoteKind,
}

/// What is not as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NoteKind {
    /// It changed while it was read: what is kept may be a mixture.
    Changed,
    /// It went away before it was read: it is not in the snapshot.
    Gone,
    /// It could not be read: it, or what is in it, is not in the snapshot.
    Unreadable,
    /// A socket, pipe or device: it is not in the snapshot.
    Special,
    /// Its path is too long, or it lies in too many folders: it, or what is in it, is not in the snapshot.
    TooDeep,
}

/// Bytes as text where they are text.
mod bytes_as_text {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Text {
        Text(String),
        Bytes { base64: String },
    }

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => Text::Text(text.to_owned()),
            Err(_) => Text::Bytes { base64: BASE64_STANDARD.encode(bytes) },
        };
        text.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let bytes = match Text::deserialize(deserializer)? {
            Text::Text(text) => text.into_bytes(),
            Text::Bytes { base64 } => BASE64_STANDARD.decode(base64).map_err(D::Error::custom)?,
        };
        if bytes.len() > super::MAX_PATH_BYTES {
            return Err(D::Error::custom("the target of a link is longer than a path can be"));
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::{Entry, EntryKind, EntryPath, InvalidEntryPath, MAX_PATH_BYTES, Stamp};

    #[test]
    fn what_leads_elsewhere_is_no_path() {
        for wrong in ["", "/", "/etc", "a//b", "a/", "..", "a/../b", "./a", "a/.", "a\0b"] {
            assert!(EntryPath::new(wrong.as_bytes()).is_err(), "{wrong:?}");
        }
        assert_eq!(EntryPath::new(&[b'a'; 256]), Err(InvalidEntryPath::Length));
        assert_eq!(EntryPath::new("a/".repeat(2049).as_bytes()), Err(InvalidEntryPath::Length));
        for right in ["a", "...", "a/..b", " ", "a\nb", "-rf", "\u{1F600}"] {
            assert!(EntryPath::new(right.as_bytes()).is_ok(), "{right:?}");
        }
        assert_eq!(EntryPath::new(b"a/b/c").unwrap().parent(), Some(&b"a/b"[..]));
        assert_eq!(EntryPath::new(b"a").unwrap().parent(), None);
    }

    #[test]
    fn a_links_target_is_no_longer_than_a_path() {
        let link = |length: usize| {
            let target = "x".repeat(length);
            format!(r#"{{"path":"l","mode":511,"modifiedNs":0,"kind":"symlink","target":"{target}"}}"#)
        };
        assert!(serde_json::from_str::<Entry>(&link(MAX_PATH_BYTES)).is_ok());
        assert!(serde_json::from_str::<Entry>(&link(MAX_PATH_BYTES + 1)).is_err());
    }

    proptest! {
        #[test]
        fn an_entry_survives_json(
            names in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 1..4),
            target in prop::collection::vec(any::<u8>(), 0..30),
            which in 0..4,
        ) {
            let Ok(path) = EntryPath::new(&names.join(&b'/')) else { return Ok(()) };
            let kind = match which {
                0 => EntryKind::Directory,
                1 => EntryKind::File { size: 7, stamp: Stamp { inode: 1, changed_ns: -1 }, sparse: true },
                2 => EntryKind::Symlink { target },
                _ => EntryKind::HardLink { to: path.clone() },
            };
            let entry = Entry { path, mode: 0o644, modified_ns: 5, kind };
            let json = serde_json::to_string(&entry).unwrap();
            prop_assert_eq!(serde_json::from_str::<Entry>(&json).unwrap(), entry, "{}", json);
        }
    }
}
